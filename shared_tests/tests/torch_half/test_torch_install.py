"""Call sites one cannot edit: torchdiffeq's own functions after install(), and before and after."""

import functools
import importlib.util
import sys
import threading
import types

import pytest
import torch
import torchdiffeq

from steptape import HostChangedError, OptionError, UnsupportedError
from steptape.compat import _torchdiffeq as host
from steptape.compat._torchdiffeq import SOLVERS
from steptape.shared_tests.oracles.distance import distance
from steptape.shared_tests.problems.problems import PROBLEMS
from steptape.torch import install, odeint_adjoint, record_solves
from steptape_helpers.torch_solves import differentiate

HOLDERS = host.HOLDERS["odeint_adjoint"]
PROBLEM = PROBLEMS["pendulum"]
INNER = {"method": "dopri5", "first_step": 0.05}
T = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)


def held():
    return [sys.modules[name].odeint_adjoint for name in HOLDERS]


def is_restored():
    return held() == [host.odeint_adjoint] * len(HOLDERS) and "aca" not in SOLVERS


@pytest.fixture(autouse=True)
def _nothing_is_left_behind():
    assert is_restored()
    yield
    assert is_restored()


class Rotation(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=torch.float64))

    def forward(self, t, y):
        return y**3 @ self.rate * torch.cos(t)


def start():
    return torch.tensor([1.0, -0.5], dtype=torch.float64, requires_grad=True)


def through(odeint, **kwargs):
    """The solution, and its gradients in (y0, t, parameter)."""
    func, y0, t = Rotation(), start(), T.clone().requires_grad_()
    ys = odeint(func, y0, t, **kwargs)
    return ys, torch.autograd.grad(ys.square().sum(), (y0, t, func.rate))


def by_module_attribute(*args, **kwargs):
    return torchdiffeq.odeint_adjoint(*args, **kwargs)


def test_the_host_s_adjoint_understands_aca():
    ys, expected = through(torchdiffeq.odeint, options={"first_step": 0.05})
    with install():
        ours, found = through(by_module_attribute, options={"first_step": 0.05}, adjoint_method="aca")
    assert torch.equal(ys, ours)
    assert distance(found, expected) <= 1e-12


def test_every_other_adjoint_stays_the_host_s():
    options = {"method": "bosh3", "rtol": 1e-4, "adjoint_options": {"norm": "seminorm"}}
    ys, expected = through(host.odeint_adjoint, **options)
    with install():
        ours, found = through(by_module_attribute, **options)
    assert torch.equal(ys, ours)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("adjoint_method", [None, "aca"])
def test_aca_named_as_the_solver_of_an_adjoint(adjoint_method):
    with install(), pytest.raises(OptionError, match=r"odeint_adjoint\(..., method='aca'\).*adjoint_method='aca'"):
        through(by_module_attribute, method="aca", adjoint_method=adjoint_method)


def test_installing_is_undone_once():
    installation = install()
    assert len({id(function) for function in held()}) == 1
    assert host.odeint_adjoint not in held()
    installation.uninstall()
    assert is_restored()
    installation.uninstall()
    assert is_restored()
    with pytest.raises(ValueError, match='Invalid method "aca"'):
        torchdiffeq.odeint(Rotation(), start(), T, method="aca")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_the_last_uninstall_restores(order):
    installations = [install() for _ in range(3)]
    for i in order[:2]:
        installations[i].uninstall()
        installations[i].uninstall()
        assert "aca" in SOLVERS
    installations[order[2]].uninstall()
    assert is_restored()


def test_an_error_inside_the_block_uninstalls():
    with pytest.raises(ZeroDivisionError), install():
        raise ZeroDivisionError
    assert is_restored()


@pytest.fixture
def library():
    """A library that takes the function by name: ``from torchdiffeq import odeint_adjoint as odeint``."""
    module = types.ModuleType("a_library")
    exec(
        "import functools\n"
        "from torchdiffeq import odeint_adjoint as odeint\n"
        "partial = functools.partial(odeint, rtol=1e-5)\n"
        "def solve(*args, **kwargs): return odeint(*args, **kwargs)\n",
        vars(module),
    )
    sys.modules["a_library"] = module
    yield module
    del sys.modules["a_library"]


def test_a_name_taken_before_install_is_reached(library):
    with install():
        through(library.solve, adjoint_method="aca")
    assert library.odeint is host.odeint_adjoint


def test_a_name_taken_after_install_is_given_back(library):
    with install():
        library.another = torchdiffeq.odeint_adjoint
        assert library.another is not host.odeint_adjoint
    assert library.another is host.odeint_adjoint


def test_a_lazy_module_is_not_loaded(monkeypatch):
    spec = importlib.util.find_spec("this")
    spec.loader = importlib.util.LazyLoader(spec.loader)
    lazy = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "this", lazy)
    spec.loader.exec_module(lazy)
    with install():
        pass
    assert "d" not in object.__getattribute__(lazy, "__dict__")


def test_our_own_function_keeps_its_name(library):
    library.ours = odeint_adjoint
    with install():
        assert library.ours is odeint_adjoint
    assert library.ours is odeint_adjoint


def test_what_install_cannot_reach_is_refused_in_the_backward_pass(library):
    with install(), pytest.raises(UnsupportedError, match=r"reached the host's own function.*call steptape.torch.odei"):
        through(library.partial, adjoint_method="aca", adjoint_options={})


def test_the_host_was_changed_before(monkeypatch):
    monkeypatch.setattr(torchdiffeq, "odeint_adjoint", lambda *args: None)
    with pytest.raises(HostChangedError, match=r"torchdiffeq.odeint_adjoint is .*test_torch_install.py:\d+, not"):
        install()
    monkeypatch.undo()


def test_a_solver_of_that_name_was_there_before(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(SOLVERS, "aca", SOLVERS["euler"])
        with pytest.raises(HostChangedError, match=r"solver 'aca' is .*Euler.*, not None.*Call install\(\) before"):
            install()


@pytest.mark.parametrize("place", HOLDERS)
def test_the_host_was_changed_in_the_meantime(place):
    installation = install()
    module, ours = sys.modules[place], sys.modules[place].odeint_adjoint
    traced = functools.wraps(ours)(lambda *args, **kwargs: ours(*args, **kwargs))
    module.odeint_adjoint = traced
    with pytest.raises(HostChangedError, match=rf"{place}.odeint_adjoint is .*Undo that first"):
        installation.uninstall()
    with pytest.raises(HostChangedError, match="someone else has replaced it"):
        install()
    assert module.odeint_adjoint is traced
    assert "aca" in SOLVERS
    module.odeint_adjoint = ours
    installation.uninstall()


def test_threads_install_solve_and_uninstall():
    expected = through(torchdiffeq.odeint, options={"first_step": 0.05})[1]
    errors = []

    def work():
        try:
            for _ in range(3):
                with install():
                    adjoint = through(by_module_attribute, options={"first_step": 0.05}, adjoint_method="aca")
                    solver = through(torchdiffeq.odeint, method="aca", options=INNER)
                assert distance(adjoint[1], expected) <= 1e-12
                assert distance(solver[1], expected) <= 1e-12
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


OPTIONS = {
    "dopri5": {"first_step": 0.05},
    "bosh3": {"first_step": 0.05, "step_t": torch.tensor([0.33, 0.7]).double()},
    "adaptive_heun": {"first_step": 0.05},
    "dopri8": {"first_step": 0.05, "jump_t": torch.tensor([0.33]).double(), "max_step": 0.2},
    "rk4": {"step_size": 0.07, "interp": "cubic"},
    "implicit_adams": {"step_size": 0.07},
    "midpoint": {"grid_constructor": lambda func, y0, t: torch.linspace(t[0].item(), t[-1].item(), 9).double()},
}


@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_the_registered_solver_is_the_named_one_with_exact_gradients(method, reverse):
    def solve(**kwargs):
        t = (T.flip(0) if reverse else T).clone().requires_grad_()
        func, y0 = Rotation(), (start(), torch.ones(1, 2, dtype=torch.float64, requires_grad=True))
        pair = PairOf(func)
        ys = torchdiffeq.odeint(pair, y0, t, rtol=1e-3, atol=1e-3, **kwargs)
        inputs = (*y0, func.rate) if method == "midpoint" else (*y0, func.rate, t)
        return ys, torch.autograd.grad(ys[0].square().sum() + ys[1].sin().sum(), inputs)

    expected = solve(method=method, options=OPTIONS[method])
    with install():
        found = solve(method="aca", options={"method": method, **OPTIONS[method]})
    assert all(torch.equal(a, b) for a, b in zip(found[0], expected[0], strict=True))
    assert distance(found[1], expected[1]) <= 1e-12


class PairOf(torch.nn.Module):
    """A tuple state, whose func is a module with a module."""

    def __init__(self, func):
        super().__init__()
        self.func = func

    def forward(self, t, state):
        y, z = state
        return self.func(t, y), z * y.mean() - t


def test_the_registered_solver_on_a_shared_problem():
    expected = differentiate(torchdiffeq.odeint, PROBLEM, method="dopri5", options={"first_step": 0.05})
    with install():
        found = differentiate(torchdiffeq.odeint, PROBLEM, method="aca", options=INNER)
    assert torch.equal(found.solution, expected.solution)
    assert distance(found.gradients, expected.gradients) <= 1e-12


def test_dopri5_where_no_inner_method_is_named():
    expected = torchdiffeq.odeint(Rotation(), start(), T)
    with install():
        assert torch.equal(torchdiffeq.odeint(Rotation(), start(), T, method="aca"), expected)


def test_the_registered_solver_takes_a_checkpoint_budget():
    options = {"method": "rk4", "step_size": 0.01, "adjoint_options": {"checkpoints": 3}}
    with install(), record_solves() as solves:
        torchdiffeq.odeint(Rotation(), start(), T, method="aca", options=options)
    assert solves[0].accepted_steps == 100
    assert solves[0].states_kept <= 3


def test_the_registered_solver_differentiates_the_parameters_it_is_told():
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    func = lambda t, y: weight * y.sin()  # noqa: E731
    expected = torch.autograd.grad(torchdiffeq.odeint(func, start(), T, options={"first_step": 0.05}).sum(), weight)
    with install():
        ys = torchdiffeq.odeint(func, start(), T, method="aca", options={**INNER, "adjoint_params": (weight,)})
        found = torch.autograd.grad(ys.sum(), weight)
    assert distance(found, expected) <= 1e-12


def test_the_registered_solver_needs_no_parameters_where_no_gradient_is_asked_for():
    with install(), torch.no_grad():
        ys = torchdiffeq.odeint(lambda t, y: y.sin(), start(), T, method="aca")
    assert torch.equal(ys, torchdiffeq.odeint(lambda t, y: y.sin(), start(), T))


@pytest.mark.parametrize("inner", [{"method": "dopri5", "first_step": 0.05}, {"method": "rk4", "step_size": 0.02}])
def test_the_registered_solver_stops_at_an_event(inner):
    def fall(**kwargs):
        drag = torch.nn.Linear(2, 2, bias=False).double()
        torch.nn.init.constant_(drag.weight, -0.05)
        func = Falling(drag)
        y0 = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
        t0 = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
        event_t, ys = torchdiffeq.odeint_event(func, y0, t0, event_fn=lambda t, y: y[0], atol=1e-12, **kwargs)
        return event_t, ys, torch.autograd.grad(event_t + ys[-1].square().sum(), (y0, t0, drag.weight))

    options = {name: value for name, value in inner.items() if name != "method"}
    expected = fall(method=inner["method"], options=options)
    with install():
        found = fall(method="aca", options=inner)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert distance(found[2], expected[2]) <= 1e-12


class Falling(torch.nn.Module):
    def __init__(self, drag):
        super().__init__()
        self.drag = drag

    def forward(self, t, y):
        return torch.stack([y[1], y.new_tensor(-9.81)]) + self.drag(y)


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"first_stp": 1}, OptionError, r"options=\{'first_stp': 1\}\): unknown option.*'dopri5' takes .*'first_step'"),
        ({"method": "rk4", "first_step": 1}, OptionError, "'first_step': 1.*unknown option.*'rk4' takes.*'step_size'"),
        ({"method": "dopri6"}, OptionError, r"'method': 'dopri6'\}\): no solver of torchdiffeq. Use one of dopri8, do"),
        ({"method": "aca"}, OptionError, "'method': 'aca'}.: no solver of torchdiffeq"),
        ({"adjoint_options": {"checkpoint": 3}}, OptionError, "unknown option.*'checkpoints', 'checkpoint_device'"),
        ({"method": "scipy_solver"}, UnsupportedError, "method='scipy_solver'.*cannot be replayed.*Use one of"),
    ],
    ids=repr,
)
def test_an_option_that_the_registered_solver_does_not_take(options, error, reason):
    with install(), pytest.raises(error, match=reason):
        torchdiffeq.odeint(Rotation(), start(), T, method="aca", options=options)


def test_the_user_s_callbacks_are_called_without_a_warning(recwarn):
    func, seen = Rotation(), []
    func.callback_accept_step = lambda t, y, h: seen.append(float(t))
    torchdiffeq.odeint(func, start(), T)
    expected, seen[:] = list(seen), []
    with install():
        torchdiffeq.odeint(func, start(), T, method="aca")
    assert seen == expected
    assert len(seen) > 3
    assert not [warning for warning in recwarn if "callbacks" in str(warning.message)]
