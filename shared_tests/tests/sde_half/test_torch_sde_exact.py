"""ACA equals back-propagation through torchsde's own solver, step for step, and leaves its solution alone."""

import pytest
import torch

torchsde = pytest.importorskip("torchsde")

from steptape.shared_tests.oracles.distance import distance  # noqa: E402
from steptape.torch import sdeint_adjoint  # noqa: E402
from steptape.torch._hosts.grid import _is_as_host  # noqa: E402
from steptape_helpers.sde_problems import (  # noqa: E402
    BATCH,
    CHANNELS,
    LEVY,
    NOISES,
    STATE,
    Sde,
    cases,
    differentiate,
    initial,
    interval,
    loss,
)

pytestmark = pytest.mark.filterwarnings("ignore:Numerical solution is not guaranteed to converge")


def assert_exact(sde, brownian, ts=None, adjoint_options=None, bound=1e-12, y0=None, **kwargs):
    times = {} if ts is None else {"ts": ts}
    y0 = initial() if y0 is None else y0
    host = differentiate(torchsde.sdeint, sde, y0, bm=brownian(), **times, **kwargs)
    kwargs |= {"adjoint_method": "aca", "adjoint_options": adjoint_options, "adjoint_params": tuple(sde.parameters())}
    ours = differentiate(sdeint_adjoint, sde, y0, bm=brownian(), **times, **kwargs)
    assert len(ours.outputs) == len(host.outputs)
    for found, expected in zip(ours.outputs, host.outputs, strict=True):
        assert torch.equal(found, expected)
    assert distance(ours.gradients, host.gradients) <= bound


def named(case):
    return f"{case.sde_type}-{case.noise_type}-{case.method}" + ("-grad_free" * case.options.get("grad_free", False))


ADAPTIVE = {"adaptive": True, "rtol": 1e-2, "atol": 1e-2, "dt": 0.3, "dt_min": 1e-4}
STEPS = {"fixed": {"dt": 0.05}, "adaptive": ADAPTIVE}


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("keep", [{}, {"checkpoints": 3}], ids=str)
@pytest.mark.parametrize("case", list(cases()), ids=named)
def test_every_method(case, keep, steps):
    sde = Sde(case.sde_type, case.noise_type)
    levy = LEVY.get(case.method, "none")
    assert_exact(
        sde,
        lambda: interval(case.noise_type, levy),
        method=case.method,
        options=case.options,
        adjoint_options=keep,
        **STEPS[steps],
    )


@pytest.mark.parametrize("keep", [{}, {"checkpoints": 1}, {"checkpoint_device": "cpu"}], ids=str)
@pytest.mark.parametrize("case", [("ito", "srk"), ("ito", "euler"), ("stratonovich", "reversible_heun")], ids=str)
@pytest.mark.parametrize("noise", NOISES)
def test_logqp_and_extra(case, noise, keep):
    sde_type, method = case
    if method == "srk" and noise == "general":
        pytest.skip("the host has no such method")
    sde = Sde(sde_type, noise)
    # The penalty is one more channel of the state, and of diagonal noise.
    size = (BATCH, STATE + 1) if noise == "diagonal" else (BATCH, CHANNELS[noise])
    levy = LEVY.get(method, "none")

    def brownian():
        return torchsde.BrownianInterval(
            0.0, 1.0, size=size, entropy=5, dtype=torch.float64, levy_area_approximation=levy
        )

    assert_exact(sde, brownian, method=method, dt=0.06, logqp=True, extra=True, adjoint_options=keep)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("keep", [{}, {"checkpoints": 2}, {"memory": "graphs"}], ids=str)
def test_an_extra_solver_state_with_a_gradient(keep, create_graph):
    sde = Sde("stratonovich", "general")
    y0 = initial()

    def gradients(sdeint, **kwargs):
        f = torch.linspace(0, 1, BATCH * STATE, dtype=torch.float64).view(BATCH, STATE).requires_grad_()
        g = torch.linspace(1, 0, BATCH * STATE * 2, dtype=torch.float64).view(BATCH, STATE, 2).requires_grad_()
        z = (y0 + 0.1).detach().requires_grad_()
        settings = {"method": "reversible_heun", "dt": 0.07, "extra": True, "extra_solver_state": (f, g, z)}
        ys, extra = sdeint(sde, y0, [0.0, 0.5, 1.0], bm=interval("general"), **settings, **kwargs)
        inputs = (y0, f, g, z, *sde.parameters())
        grads = torch.autograd.grad(
            loss((ys, *extra)), inputs, allow_unused=True, materialize_grads=True, create_graph=create_graph
        )
        return [ys, *extra, *grads]

    ours = gradients(sdeint_adjoint, adjoint_method="aca", adjoint_options=keep)
    assert distance(ours, gradients(torchsde.sdeint)) <= 1e-12


def test_an_extra_solver_state_that_the_method_does_not_use():
    sde, y0 = Sde("ito", "general"), initial()
    unused = torch.ones(2, dtype=torch.float64, requires_grad=True)
    ys, extra = sdeint_adjoint(
        sde, y0, [0.0, 1.0], method="euler", dt=0.3, adjoint_method="aca", extra=True, extra_solver_state=(unused,)
    )
    assert extra == ()
    assert torch.equal(torch.autograd.grad(ys.sum(), unused)[0], torch.zeros(2))


def test_a_single_output_time():
    for sde_type, method in (("ito", "euler"), ("stratonovich", "reversible_heun")):
        assert_exact(Sde(sde_type, "general"), lambda: interval("general"), ts=(0.0,), method=method, extra=True)


BROWNIANS = {
    "interval": lambda: interval("diagonal"),
    "interval, known dt": lambda: interval("diagonal", dt=0.05),
    "interval, small cache": lambda: interval("diagonal", cache_size=2),
    "interval, dyadic": lambda: interval("diagonal", halfway_tree=True, tol=1e-4),
    "interval, wider": lambda: torchsde.BrownianInterval(
        -1.0, 3.0, size=(BATCH, STATE), entropy=5, dtype=torch.float64
    ),
    "path": lambda: _seeded(torchsde.BrownianPath, 0.0),
    "tree": lambda: _seeded(torchsde.BrownianTree, 0.0, entropy=3),
    "one's own": lambda: Sines(),
}


def _seeded(kind, t0, **kwargs):
    import numpy as np

    np.random.seed(0)  # where torchsde takes its entropy from
    return kind(t0, torch.zeros(BATCH, STATE, dtype=torch.float64), **kwargs)


class Sines:
    """A path known in closed form, with nothing but what the host asks of a Brownian object."""

    shape = (BATCH, STATE)
    dtype, device = torch.float64, torch.device("cpu")
    levy_area_approximation = "none"

    def __call__(self, ta, tb):
        rates = torch.linspace(1, 9, BATCH * STATE, dtype=torch.float64).view(self.shape)
        return torch.sin(rates * tb) - torch.sin(rates * ta)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("keep", [{}, {"checkpoints": 3}], ids=str)
@pytest.mark.parametrize("name", BROWNIANS)
def test_brownian_objects(name, keep, steps):
    assert_exact(Sde("ito", "diagonal"), BROWNIANS[name], method="milstein", adjoint_options=keep, **STEPS[steps])


def test_many_adaptive_steps_with_rejected_tries():
    sde = Sde("stratonovich", "general")
    with torch.no_grad():
        sde.drift[0].weight *= 20
    settings = {"adaptive": True, "rtol": 1e-3, "atol": 1e-3, "dt": 0.5, "method": "heun"}
    for keep in ({}, {"checkpoints": 4}):
        assert_exact(sde, lambda: interval("general"), adjoint_options=keep, bound=1e-10, **settings)


class Other(torch.nn.Module):
    """Drift and diffusion under other names, or from one network."""

    sde_type, noise_type = "stratonovich", "diagonal"

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.net = torch.nn.Linear(STATE, 2 * STATE).double()


class Renamed(Other):
    def drift(self, t, y):
        return self.net(y)[:, :STATE].tanh()

    def diffusion(self, t, y):
        return self.net(y)[:, STATE:].sigmoid()


class Together(Other):
    def f_and_g(self, t, y):
        return self.net(y).tanh().chunk(2, dim=1)


class Products(Other):
    def f(self, t, y):
        return self.net(y)[:, :STATE].tanh()

    def g_prod(self, t, y, v):
        return self.net(y)[:, STATE:].sigmoid() * v


def test_names():
    names = {"drift": "drift", "diffusion": "diffusion"}
    assert_exact(Renamed(), lambda: interval("diagonal"), names=names, dt=0.05)


@pytest.mark.parametrize("method", ["midpoint", "reversible_heun"])
def test_drift_and_diffusion_of_one_network(method):
    assert_exact(Together(), lambda: interval("diagonal"), method=method, dt=0.05)


def test_products_of_the_diffusion():
    assert_exact(Products(), lambda: interval("diagonal"), method="heun", dt=0.05)


def test_times_and_a_step_that_are_tensors():
    ts = torch.tensor([0.0, 0.31, 1.0])
    assert_exact(Sde("ito", "scalar"), lambda: interval("scalar", "space-time"), ts=ts, dt=torch.tensor(0.05).double())


def test_a_state_in_single_precision():
    sde = Sde("ito", "diagonal", dtype=torch.float32)
    y0 = initial(torch.float32)
    brownian = {"dtype": torch.float32}
    for steps in STEPS.values():
        assert_exact(sde, lambda: interval("diagonal", **brownian), y0=y0, method="milstein", bound=1e-5, **steps)


def test_the_default_brownian_object_and_method():
    import numpy as np

    sde = Sde("ito", "diagonal")

    def brownian():
        np.random.seed(3)

    assert_exact(sde, brownian, dt=0.1)


def test_some_of_the_parameters_and_the_same_one_twice():
    sde, y0 = Sde("ito", "diagonal"), initial()
    for p in sde.diffusion.parameters():
        p.requires_grad_(False)
    weight = sde.drift[0].weight

    def gradient(sdeint, **kwargs):
        ys = sdeint(sde, y0.detach(), [0.0, 1.0], bm=interval("diagonal"), method="euler", dt=0.1, **kwargs)
        weight.grad = None
        ys.sum().backward(inputs=[weight])
        return weight.grad

    params = [*sde.parameters(), weight]
    ours = gradient(sdeint_adjoint, adjoint_method="aca", adjoint_params=params)
    assert distance([ours], [gradient(torchsde.sdeint)]) <= 1e-12


def test_a_second_backward_pass_over_a_retained_graph():
    sde, y0 = Sde("ito", "diagonal"), initial()
    for keep in ({}, {"checkpoints": 2}):
        ys = sdeint_adjoint(
            sde,
            y0,
            [0.0, 1.0],
            bm=interval("diagonal"),
            method="euler",
            dt=0.1,
            adjoint_method="aca",
            adjoint_options=keep,
        )
        first = torch.autograd.grad(ys.square().sum(), y0, retain_graph=True)[0]
        assert torch.equal(torch.autograd.grad(ys.square().sum(), y0)[0], first)
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            torch.autograd.grad(ys.sum(), y0)


def test_without_gradients_it_is_the_host_s_solve():
    sde = Sde("ito", "diagonal")
    settings = {"bm": interval("diagonal"), "method": "euler", "dt": 0.1}
    with torch.no_grad():
        ys = sdeint_adjoint(sde, initial(), [0.0, 1.0], adjoint_method="aca", **settings)
        assert torch.equal(ys, torchsde.sdeint(sde, initial(), [0.0, 1.0], **settings))
    assert ys.grad_fn is None


@pytest.mark.parametrize("method", ["euler", None])
def test_every_other_adjoint_is_the_host_s(method):
    sde, y0 = Sde("ito", "diagonal"), initial()

    def gradient(sdeint):
        # By position as far as arguments are told apart by it.
        ys = sdeint(sde, y0, [0.0, 1.0], interval("diagonal"), "euler", method, 0.2, False, False, 1e-5, 1e-5, 1e-4)
        return torch.autograd.grad(ys.sum(), y0)[0]

    assert torch.equal(gradient(sdeint_adjoint), gradient(torchsde.sdeint_adjoint))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("ts", [(0.0, 1.0), (0.1, 0.3, 0.31, 0.312, 1.0)], ids=str)
@pytest.mark.parametrize("dt", [0.07, 0.1, 0.4, 3.0])
def test_the_times_of_fixed_steps_are_the_hosts_to_the_bit(dt, ts, dtype):
    assert _is_as_host(dtype, torch.device("cpu"))
    found = []
    for sdeint, ours in ((torchsde.sdeint, {}), (sdeint_adjoint, {"adjoint_method": "aca"})):
        sde, taken = Sde("ito", "diagonal", dtype=dtype), []
        drift = sde.f
        sde.f = lambda t, y, drift=drift, taken=taken: (taken.append(float(t)), drift(t, y))[1]
        y0 = initial(dtype).detach()
        times = torch.tensor(ts, dtype=dtype)
        ys = sdeint(sde, y0, times, bm=interval("diagonal", dtype=dtype), dt=dt, method="euler", **ours)
        found.append((ys, taken))
    (expected, host_times), (ys, times) = found
    assert torch.equal(ys, expected)
    assert times == host_times
