"""Call sites that name no adjoint: torchdiffeq's own functions after install(default=...)."""

import contextlib
import sys
import threading
import types

import pytest
import torch
import torchdiffeq

import steptape.torch
from steptape import GradientError, HostChangedError, OptionError, UnsupportedError
from steptape.compat import _torchdiffeq as host
from steptape.shared_tests.oracles.distance import distance
from steptape.torch import install, record_solves

T = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
FIRST = {"first_step": 0.05}
PLACES = [(module, function) for function, modules in host.HOLDERS.items() for module in modules]


@pytest.fixture(autouse=True)
def _nothing_is_left_behind():
    yield
    for module, function in PLACES:
        assert getattr(sys.modules[module], function) is getattr(host, function)
    assert "aca" not in host.SOLVERS


class Rotation(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=torch.float64))

    def forward(self, t, y):
        return y**3 @ self.rate * torch.cos(t)


class Pair(Rotation):
    def forward(self, t, state):
        y, z = state
        return super().forward(t, y), -z * y.sum()


def start():
    return torch.tensor([1.0, -0.5], dtype=torch.float64, requires_grad=True)


def by_adjoint(*args, **kwargs):
    return torchdiffeq.odeint_adjoint(*args, **kwargs)


def plain(*args, **kwargs):
    return torchdiffeq.odeint(*args, **kwargs)


def through(odeint, **kwargs):
    """The solution, its gradients in (y0, t, parameter), and the solves of ours."""
    func, y0, t = Rotation(), start(), T.clone().requires_grad_()
    with record_solves() as solves:
        ys = odeint(func, y0, t, **{"options": FIRST, **kwargs})
        return ys, torch.autograd.grad(ys.square().sum(), (y0, t, func.rate)), solves


def assert_replayed(found, expected):
    assert torch.equal(found[0], expected[0])
    assert distance(found[1], expected[1]) <= 1e-12
    assert len(found[2]) == 1


def assert_host_s(found, expected):
    assert torch.equal(found[0], expected[0])
    assert all(map(torch.equal, found[1], expected[1]))
    assert len(found[2]) == 0


def test_a_call_that_names_no_adjoint_takes_the_default():
    expected = through(host.odeint)
    with install(default="aca"):
        assert_replayed(through(by_adjoint), expected)


def test_a_name_taken_before_takes_it(monkeypatch):
    library = types.ModuleType("a_library")
    exec("from torchdiffeq import odeint, odeint_adjoint as adjoint", vars(library))
    monkeypatch.setitem(sys.modules, "a_library", library)
    expected = through(host.odeint)
    with install(default="aca", override=True):
        assert_replayed(through(library.adjoint), expected)
        assert_replayed(through(library.odeint), expected)
    assert (library.odeint, library.adjoint) == (host.odeint, host.odeint_adjoint)


def test_without_override_what_names_another_way_keeps_it():
    named = {"adjoint_method": "dopri5", "adjoint_options": {"norm": "seminorm"}}
    with install(default="aca"):
        assert_host_s(through(by_adjoint, **named), through(host.odeint_adjoint, **named))
        assert_host_s(through(plain), through(host.odeint))
        assert torchdiffeq.odeint is host.odeint


@pytest.mark.filterwarnings("ignore::steptape.SteptapeWarning")
def test_with_override_an_adjoint_of_the_host_s_gives_way():
    named = {"adjoint_method": "bosh3", "adjoint_options": {"norm": "seminorm"}, "adjoint_rtol": 1e-3}
    with install(default="aca", override=True):
        assert_replayed(through(by_adjoint, **named), through(host.odeint))
        with pytest.raises(OptionError, match=r"adjoint_method='dopri6'.*no such adjoint"):
            through(by_adjoint, adjoint_method="dopri6")


def test_with_override_an_adjoint_of_ours_that_a_call_names_is_taken():
    call = {"adjoint_method": "quadrature", "adjoint_options": {}}
    expected = through(steptape.torch.odeint_adjoint, **call)
    with install(default="aca", override=True):
        found = through(by_adjoint, **call)
    assert all(map(torch.equal, found[1], expected[1]))


@pytest.mark.parametrize(
    "call",
    [
        {"method": "bosh3", "options": {**FIRST, "step_t": torch.tensor([0.33, 0.7]).double()}},
        {"method": "rk4", "options": {"step_size": 0.07, "interp": "cubic"}},
        {"method": "implicit_adams", "options": {"step_size": 0.07}},
        {"rtol": 1e-3, "atol": 1e-3, "method": "dopri8"},
    ],
    ids=lambda call: call["method"],
)
@pytest.mark.parametrize("odeint", [by_adjoint, plain])
def test_every_solver_that_is_replayed(odeint, call):
    expected = through(host.odeint, **call)
    with install(default="aca", override=True):
        assert_replayed(through(odeint, **call), expected)


def test_a_tuple_backward_in_time():
    def solved(odeint):
        func, state = Pair(), (start(), start())
        ys = odeint(func, state, T.flip(0), method="dopri5", options=FIRST)
        return torch.cat(ys), torch.autograd.grad(sum(y.sin().sum() for y in ys), (*state, func.rate)), [None]

    with install(default="aca", override=True):
        assert_replayed(solved(plain), solved(host.odeint))


def test_second_derivatives_of_a_plain_call():
    def second(odeint):
        func, y0 = Rotation(), start()
        ys = odeint(func, y0, T, method="rk4", options={"step_size": 0.1})
        (g,) = torch.autograd.grad(ys[-1].sum(), func.rate, create_graph=True)
        return torch.autograd.grad(g.square().sum(), (y0, func.rate))

    with install(default="aca", override=True):
        assert distance(second(plain), second(host.odeint)) <= 1e-12


def test_a_plain_call_draws_the_random_numbers_that_it_drew():
    class Noisy(Rotation):
        def forward(self, t, y):
            return super().forward(t, torch.nn.functional.dropout(y, 0.3))

    def solved(odeint):
        torch.manual_seed(3)
        func = Noisy()
        with record_solves() as solves:
            ys = odeint(func, start(), T, method="rk4", options={"step_size": 0.1})
        return ys, torch.autograd.grad(ys.square().sum(), func.rate), solves

    with install(default="aca", override=True):
        assert_replayed(solved(plain), solved(host.odeint))


class Stored(Rotation):
    """What the loss reads of the evaluations: a sum of what was computed, or all states."""

    def __init__(self, what):
        super().__init__()
        self.what, self.penalty, self.evaluations = what, 0.0, 0

    def forward(self, t, y):
        self.evaluations += 1
        slope = super().forward(t, y)
        self.penalty = self.penalty + (slope if self.what == "slopes" else y).square().sum()
        return slope


@pytest.mark.parametrize("default", ["aca", "quadrature"])
@pytest.mark.parametrize("what", ["slopes", "states"])
def test_a_plain_call_whose_func_stores_something_for_the_loss(what, default):
    def gradient():
        func, y0 = Stored(what), start()
        ys = torchdiffeq.odeint(func, y0, T, options=FIRST)
        found = torch.autograd.grad(ys[-1].sum() + func.penalty, (y0, func.rate))
        return ys, found, func.evaluations

    expected = gradient()
    with install(default=default, override=True), record_solves() as solves:
        found = gradient()
    assert torch.equal(found[0], expected[0])
    assert all(map(torch.equal, found[1], expected[1]))
    assert found[2] == expected[2]
    assert len(solves) == 0


class Checkpointed(Rotation):
    """torch can take its gradient as a whole alone."""

    def forward(self, t, y):
        return torch.utils.checkpoint.checkpoint(super().forward, t, y, use_reentrant=True)


class Cached(Rotation):
    """It keeps what it computes, and computes it again in the end."""

    kept = None

    def forward(self, t, y):
        if self.kept is None or t > 0.9:
            self.kept = torch.tanh(self.rate)
        return y @ self.kept


@pytest.mark.parametrize("kind", [Checkpointed, Cached])
def test_a_plain_call_whose_func_is_refused_is_the_host_s(kind):
    def gradient():
        func, y0 = kind(), start()
        ys = torchdiffeq.odeint(func, y0, T, options=FIRST)
        ys[-1].sum().backward()
        return ys, y0.grad, func.rate.grad

    with pytest.raises(GradientError):
        steptape.torch.odeint_adjoint(kind(), start(), T, options=FIRST, adjoint_method="aca")
    expected = gradient()
    with install(default="aca", override=True), record_solves() as solves:
        assert all(map(torch.equal, gradient(), expected))
    assert len(solves) == 0


def test_a_plain_call_at_an_event():
    def solved(**kwargs):
        func, y0, t0 = Rotation(), start(), torch.zeros((), dtype=torch.float64, requires_grad=True)
        with record_solves() as solves:
            event_t, ys = torchdiffeq.odeint_event(func, y0, t0, event_fn=lambda t, y: y[0] - 0.9, **kwargs)
        return ys, torch.autograd.grad(event_t + ys[-1].square().sum(), (y0, t0, func.rate)), solves

    call = {"method": "dopri5", "options": FIRST, "atol": 1e-12}
    expected = solved(**call)
    with install(default="aca", override=True):
        assert_replayed(solved(**call), expected)
        assert_replayed(solved(**call, odeint_interface=torchdiffeq.odeint_adjoint), expected)
        assert_replayed(solved(**call, odeint_interface=torchdiffeq.odeint), expected)


def test_the_dense_output_is_back_propagated_through():
    def gradient():
        func = Rotation()
        dense = torchdiffeq.odeint_dense(func, start(), T[0], T[-1])
        return torch.autograd.grad(dense(torch.tensor(0.3)).sum(), func.rate)

    expected = gradient()
    with install(default="aca", override=True), record_solves() as solves:
        assert torch.equal(*gradient(), *expected)
    assert len(solves) == 0


def test_where_no_gradient_is_asked_for_a_plain_call_is_the_host_s():
    with install(default="aca", override=True), record_solves() as solves, torch.no_grad():
        assert torch.equal(plain(Rotation(), start(), T), host.odeint(Rotation(), start(), T))
    assert len(solves) == 0


@pytest.mark.parametrize("method", ["dopri5", "rk4", "scipy_solver"])
@pytest.mark.parametrize("default", ["aca", "quadrature"])
def test_where_no_gradient_is_asked_for_every_solver_runs(default, method):
    pytest.importorskip("scipy")
    options = {"solver": "RK45"} if method == "scipy_solver" else None
    call = {"method": method, "options": options}
    field = lambda t, y: -y  # noqa: E731
    with install(default=default), torch.no_grad():
        found = by_adjoint(field, start(), T, **call, adjoint_options={"norm": "seminorm"}, adjoint_rtol=0.1)
        assert torch.equal(found, host.odeint(field, start(), T, **call))


def test_the_options_of_the_default_are_for_the_calls_that_take_it():
    steps = {"method": "rk4", "options": {"step_size": 0.01}}
    with install(default="aca", adjoint_options={"checkpoints": 3, "graph": "stage"}, override=True):
        assert through(by_adjoint, **steps)[2][0].states_kept == 3
        assert through(plain, **steps)[2][0].states_kept == 3
        assert through(by_adjoint, **steps, adjoint_options={"checkpoints": 5})[2][0].states_kept == 5
        assert through(by_adjoint, **steps, adjoint_method="aca")[2][0].states_kept == 100
        # A step of an Adams method has no stages of its own.
        assert through(by_adjoint, method="fixed_adams", options={"step_size": 0.01})[2][0].states_kept == 3


@pytest.mark.filterwarnings("ignore::steptape.SteptapeWarning")
def test_a_caller_s_options_for_a_backward_solve_leave_those_of_the_default():
    with install(default="aca", adjoint_options={"checkpoints": 3}):
        call = {"method": "rk4", "options": {"step_size": 0.01}, "adjoint_options": {"norm": "seminorm"}}
        assert through(by_adjoint, **call)[2][0].states_kept == 3


def test_the_latest_default_still_active_counts():
    def kept():
        found = through(by_adjoint, method="rk4", options={"step_size": 0.01})[2]
        return found[0].states_kept if len(found) else None

    outer = install(default="aca", adjoint_options={"checkpoints": 3})
    inner = install(default="aca", adjoint_options={"checkpoints": 4}, override=True)
    neither = install()
    assert kept() == 4
    inner.uninstall()
    assert kept() == 3
    assert torchdiffeq.odeint is host.odeint
    with install(default="aca"):
        assert kept() == 100
    outer.uninstall()
    outer.uninstall()
    assert kept() is None
    neither.uninstall()


def test_the_quadrature_by_default():
    expected = through(host.odeint, rtol=1e-9, atol=1e-9)
    call = {"adjoint_method": "quadrature"}
    named = through(steptape.torch.odeint_adjoint, **call)
    with install(default="quadrature", override=True):
        for odeint in by_adjoint, plain:
            found = through(odeint)
            assert all(map(torch.equal, found[1], named[1]))
            assert distance(found[1], expected[1]) <= 1e-5
        fixed = {"method": "rk4", "options": {"step_size": 0.1}}
        assert_host_s(through(plain, **fixed), through(host.odeint, **fixed))
        with pytest.raises(UnsupportedError, match=r"dense output of an adaptive solver.*default='quadrature'"):
            through(by_adjoint, **fixed)


def step_with_gradient():
    step = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    ys = plain(Rotation(), start(), T, method="dopri5", options={"first_step": step})
    return torch.autograd.grad(ys.sum(), step)


def in_transform():
    func = Rotation()
    return torch.func.jacrev(lambda y0: plain(func, y0, T, method="rk4", options={"step_size": 0.1}))(start().detach())


def in_forward_mode():
    with torch.autograd.forward_ad.dual_level():
        y0 = torch.autograd.forward_ad.make_dual(start(), torch.ones(2, dtype=torch.float64))
        return torch.autograd.forward_ad.unpack_dual(plain(Rotation(), y0, T, method="rk4")).tangent


@pytest.mark.parametrize("call", [step_with_gradient, in_transform, in_forward_mode])
def test_a_plain_call_that_cannot_be_replayed_is_the_host_s(call):
    expected = call()
    with install(default="aca", override=True), record_solves() as solves:
        found = call()
    assert len(solves) == 0
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_plain_call_of_a_solver_that_cannot_be_replayed_is_the_host_s():
    pytest.importorskip("scipy")
    call = {"method": "scipy_solver", "options": {"solver": "RK45"}}
    with install(default="aca", override=True):
        assert torch.equal(plain(Rotation(), start(), T, **call), host.odeint(Rotation(), start(), T, **call))


def test_a_refusal_under_a_default_names_what_asked_and_the_way_out():
    call = {"method": "scipy_solver", "options": {"solver": "RK45"}}
    said = r"'scipy_solver' cannot be replayed.*install\(default='aca'\) does.*such as adjoint_method='dopri5', or call"
    with install(default="aca"):
        with pytest.raises(UnsupportedError, match=said):
            through(by_adjoint, **call)
        named = {**call, "adjoint_method": "dopri5", "adjoint_options": {}}
        _, gradients, solves = through(by_adjoint, **named)
    assert distance(gradients, through(host.odeint)[1]) <= 1e-2
    assert len(solves) == 0


def test_a_refusal_under_override_names_the_installation():
    with install(default="aca", override=True), pytest.raises(UnsupportedError, match=r"override=True.* does.*outside"):
        through(by_adjoint, method="scipy_solver", options={"solver": "RK45"}, adjoint_method="dopri5")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"default": "ACA"}, "default='ACA'.*no adjoint of steptape"),
        ({"override": True}, "install.override=True.: is for a default adjoint"),
        ({"adjoint_options": {"checkpoints": 3}}, "install.adjoint_options=.*is for a default adjoint"),
        ({"default": "aca", "adjoint_options": {"checkpoint": 3}}, "unknown option"),
        ({"default": "aca", "adjoint_options": {"checkpoints": 0}}, "must be a positive number"),
    ],
    ids=repr,
)
def test_a_wrong_argument_installs_nothing(arguments, said):
    with pytest.raises(OptionError, match=said):
        install(**arguments)


def test_only_what_is_replaced_must_be_the_host_s(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torchdiffeq, "odeint", lambda *args: None)
        with install(default="aca"):
            with pytest.raises(HostChangedError, match=r"torchdiffeq.odeint is .*Call install\(\) before"):
                install(default="aca", override=True)
            assert len(through(by_adjoint)[2]) == 1


def test_an_installation_that_someone_else_covered_stays_whole(monkeypatch):
    outer, inner = install(), install(default="aca", override=True)
    ours, torchdiffeq.odeint = torchdiffeq.odeint, lambda *args: None
    with pytest.raises(HostChangedError, match=r"torchdiffeq.odeint is .*Undo that first"):
        inner.uninstall()
    assert torchdiffeq.odeint_event is not host.odeint_event
    torchdiffeq.odeint = ours
    inner.uninstall()
    assert torchdiffeq.odeint is host.odeint
    outer.uninstall()


def test_threads_install_solve_and_uninstall():
    expected = through(host.odeint)[1]
    errors = []

    def work(k):
        try:
            for _ in range(3):
                with install(default="aca", override=True, adjoint_options={"checkpoints": k}):
                    assert distance(through(by_adjoint)[1], expected) <= 1e-12
                    assert distance(through(plain)[1], expected) <= 1e-12
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k + 1,)) for k in range(4)]
    with contextlib.ExitStack() as stack:
        for thread in threads:
            thread.start()
            stack.callback(thread.join)
    assert not errors
