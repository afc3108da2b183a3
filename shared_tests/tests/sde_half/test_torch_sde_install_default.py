"""Call sites that name no adjoint: torchsde's own functions after install(default=...)."""

import numpy
import pytest
import torch
import torchsde

from steptape.compat import _torchsde as host
from steptape.shared_tests.oracles.distance import distance
from steptape.torch import install, record_solves

TS = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _nothing_is_left_behind():
    yield
    assert (torchsde.sdeint, torchsde.sdeint_adjoint) == (host.sdeint, host.sdeint_adjoint)


class Sde(torch.nn.Module):
    """Geometric Brownian motion."""

    noise_type, sde_type = "diagonal", "stratonovich"

    def __init__(self):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def f(self, t, y):
        return self.rate * y

    def g(self, t, y):
        return 0.2 * y

    def h(self, t, y):
        return 0.1 * y


def by_adjoint(*args, **kwargs):
    return torchsde.sdeint_adjoint(*args, **kwargs)


def plain(*args, **kwargs):
    return torchsde.sdeint(*args, **kwargs)


def through(sdeint, *positional, channels=1, **kwargs):
    """The solution, its gradients in (y0, parameter), and the solves of ours."""
    sde, y0 = Sde(), torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    bm = torchsde.BrownianInterval(0.0, 1.0, size=(2, channels), dtype=torch.float64, entropy=1)
    with record_solves() as solves:
        ys = sdeint(sde, y0, TS, bm, *positional, **{"dt": 0.05, **kwargs})
        outputs = ys if isinstance(ys, tuple) else (ys,)
        return outputs, torch.autograd.grad(sum(y.sin().sum() for y in outputs), (y0, sde.rate)), solves


def assert_replayed(found, expected):
    assert all(map(torch.equal, found[0], expected[0]))
    assert distance(found[1], expected[1]) <= 1e-12
    assert len(found[2]) == 1


def assert_host_s(found, expected):
    assert all(map(torch.equal, (*found[0], *found[1]), (*expected[0], *expected[1])))
    assert len(found[2]) == 0


@pytest.mark.parametrize("method", ["midpoint", "reversible_heun", "heun"])
def test_a_call_that_names_no_adjoint_takes_the_default(method):
    expected = through(host.sdeint, method=method)
    with install(default="aca"):
        assert_replayed(through(by_adjoint, method=method), expected)
        assert_replayed(through(by_adjoint, method), expected)


def test_without_override_what_names_another_way_keeps_it():
    pair = {"method": "reversible_heun", "adjoint_method": "adjoint_reversible_heun"}
    with install(default="aca"):
        assert_host_s(through(by_adjoint, **pair), through(host.sdeint_adjoint, **pair))
        assert_host_s(through(plain), through(host.sdeint))


def test_with_override_a_reversible_pair_gives_way():
    expected = through(host.sdeint, method="reversible_heun")
    with install(default="aca", override=True):
        pair = {"method": "reversible_heun", "adjoint_method": "adjoint_reversible_heun"}
        assert_replayed(through(by_adjoint, **pair), expected)
        assert_replayed(through(by_adjoint, *pair.values()), expected)


@pytest.mark.parametrize("call", [{}, {"adaptive": True, "rtol": 1e-2}, {"logqp": True, "channels": 2}], ids=repr)
def test_with_override_plain_calls_are_replayed(call):
    with install(default="aca", override=True):
        assert_replayed(through(plain, **call), through(host.sdeint, **call))


class Penalised(Sde):
    """A sum for the loss of what it computed, some of it at random."""

    penalty, since = 0.0, 0.0

    def f(self, t, y):
        noise = torch.rand_like(y)
        if t >= self.since:
            self.penalty = self.penalty + (super().f(t, y) * noise).sum()
        return super().f(t, y)


@pytest.mark.parametrize("since", [0.0, 0.4])
def test_a_plain_call_of_an_sde_that_stores_something_for_the_loss(since):
    def gradient():
        torch.manual_seed(0)
        numpy.random.seed(0)
        sde, y0 = Penalised(), torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
        sde.since = since
        ys = torchsde.sdeint(sde, y0, TS, dt=0.1)
        return ys, *torch.autograd.grad(ys[-1].sum() + sde.penalty, (y0, sde.rate))

    expected = gradient()
    with install(default="aca", override=True), record_solves() as solves:
        assert all(map(torch.equal, gradient(), expected))
    assert len(solves) == 0


def test_arguments_by_place():
    with install(default="aca", override=True):
        assert_replayed(through(lambda *args, dt: plain(*args, dt), "heun"), through(host.sdeint, method="heun"))


def test_an_argument_that_plain_calls_do_not_have_is_said_to_be_unused():
    with install(default="aca", override=True), pytest.warns(UserWarning, match="`sdeint`.*adjoint_params"):
        assert_replayed(through(plain, adjoint_params=()), through(host.sdeint))


def test_where_no_gradient_is_asked_for():
    with install(default="aca", override=True), torch.no_grad():
        for sdeint in plain, by_adjoint:
            bms = [torchsde.BrownianInterval(0.0, 1.0, size=(2, 1), dtype=torch.float64, entropy=1) for _ in range(2)]
            y0 = torch.ones(2, 1, dtype=torch.float64)
            assert torch.equal(sdeint(Sde(), y0, TS, bms[0], dt=0.1), host.sdeint(Sde(), y0, TS, bms[1], dt=0.1))


def test_the_options_of_the_default():
    with install(default="aca", adjoint_options={"checkpoints": 3, "graph": "stage"}, override=True):
        assert through(by_adjoint)[2][0].states_kept <= 3
        assert through(plain)[2][0].states_kept <= 3
        assert through(by_adjoint, adjoint_options={"checkpoints": None})[2][0].states_kept == 20


def test_the_quadrature_is_for_odes_alone():
    with install(default="quadrature", override=True):
        assert_host_s(through(by_adjoint), through(host.sdeint_adjoint))
        assert_host_s(through(plain), through(host.sdeint))
