"""How people use sdeint_adjoint: dropout, autocast, lent parameters, second derivatives, long solves, closed forms."""

import functools
import gc
import math
import weakref

import pytest
import torch

torchsde = pytest.importorskip("torchsde")

from steptape.shared_tests.oracles.distance import distance, euclidean  # noqa: E402
from steptape.torch import sdeint_adjoint  # noqa: E402
from steptape_helpers.sde_problems import (  # noqa: E402
    BATCH,
    LEVY,
    NOISES,
    STATE,
    Case,
    Sde,
    cases,
    initial,
    interval,
    loss,
)

ADAPTIVE = {"adaptive": True, "rtol": 1e-2, "atol": 1e-2, "dt": 0.4, "dt_min": 1e-4}
STEPS = {"fixed": {"dt": 0.1}, "adaptive": ADAPTIVE}
KEEP = [{}, {"checkpoints": 2}]


@pytest.fixture(autouse=True)
def _own_random_numbers():
    with torch.random.fork_rng():
        yield


def gradients(sdeint, sde, y0, bm, **kwargs):
    """The solution and its gradients in y0 and the parameters."""
    torch.manual_seed(1)
    ys = sdeint(sde, y0, [0.0, 0.42, 1.0], bm=bm, **kwargs)
    return [ys, *torch.autograd.grad(loss([ys]), (y0, *sde.parameters()), allow_unused=True, materialize_grads=True)]


def assert_equal(sde, bm, adjoint_options=None, bound=1e-12, **kwargs):
    y0 = initial()
    host = gradients(torchsde.sdeint, sde, y0, bm(), **kwargs)
    settings = {"adjoint_method": "aca", "adjoint_options": adjoint_options, **kwargs}
    ours = gradients(sdeint_adjoint, sde, y0, bm(), **settings)
    assert torch.equal(ours[0], host[0])
    assert distance(ours[1:], host[1:]) <= bound


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("keep", KEEP, ids=str)
@pytest.mark.parametrize("method", ["midpoint", "milstein", "reversible_heun"])
def test_dropout(method, keep, steps):
    sde = Sde("stratonovich", "diagonal", dropout=0.3)
    assert_equal(sde, lambda: interval("diagonal"), keep, method=method, **STEPS[steps])


class Clip(torch.autograd.Function):
    """A cotangent is clipped where it passes."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g.clamp(-0.05, 0.05)


def clipped(x):
    if x.requires_grad:
        x.register_hook(lambda g: g.clamp(-0.05, 0.05))
    return x


@pytest.mark.parametrize("clip", [Clip.apply, clipped])
@pytest.mark.parametrize("method", ["euler", "srk", "log_ode", "reversible_heun"])
def test_each_evaluation_s_cotangent_is_clipped_by_itself(method, clip):
    """Methods that evaluate the SDE at one place several times included."""

    class Clipping(Sde):
        def f(self, t, y):
            return clip(super().f(t, y))

    sde_type = "ito" if method in ("euler", "srk") else "stratonovich"
    path = functools.partial(interval, "diagonal", LEVY.get(method, "none"))
    assert_equal(Clipping(sde_type, "diagonal"), path, method=method, dt=0.1)


class SetAtFirst(torch.nn.Module):
    """Its drift sets a weight in place, by the first state that it meets (ActNorm)."""

    noise_type, sde_type = "diagonal", "stratonovich"

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(STATE, dtype=torch.float64))
        self.register_buffer("met", torch.zeros(()))

    def f(self, t, y):
        if not self.met:
            with torch.no_grad():
                self.scale.copy_(1 / y.std(0))
                self.met.fill_(1)
        return torch.tanh(self.scale * y)

    def g(self, t, y):
        return 0.3 * torch.sin(self.scale * y)


@pytest.mark.parametrize("keep", [*KEEP, {"memory": "graphs"}], ids=str)
@pytest.mark.parametrize("second", [False, True])
def test_weights_that_the_first_evaluation_sets_in_place(keep, second):
    def solved(sdeint, **kwargs):
        sde, y0 = SetAtFirst(), initial()
        ys = sdeint(sde, y0, [0.0, 0.42, 1.0], bm=interval("diagonal"), dt=0.1, method="midpoint", **kwargs)
        first = torch.autograd.grad(loss([ys]), (y0, sde.scale), create_graph=True)
        again = torch.autograd.grad(sum(x.square().sum() for x in first) if second else loss([ys]), (y0, sde.scale))
        return ys, sde.scale, *first, *again

    expected = solved(torchsde.sdeint)
    ours = solved(sdeint_adjoint, adjoint_method="aca", adjoint_options=keep)
    assert torch.equal(ours[0], expected[0])
    assert distance(ours[1:], expected[1:]) <= 1e-12


class Drawing:
    """A Brownian object that draws from the default generator, as dropout does."""

    shape = (BATCH, STATE)
    dtype, device = torch.float64, torch.device("cpu")
    levy_area_approximation = "none"

    def __call__(self, ta, tb):
        return torch.randn(self.shape, dtype=self.dtype) * (tb - ta).sqrt()


@pytest.mark.filterwarnings("ignore:Numerical solution is not guaranteed", "ignore:Hitting minimum allowed step size")
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("keep", KEEP, ids=str)
def test_increments_from_the_default_generator(keep, dropout, adaptive):
    sde = Sde("ito", "diagonal", dropout=dropout)
    # Its halves do not add up to the whole, so that most tries are rejected.
    assert_equal(sde, Drawing, keep, method="euler", dt=0.3, adaptive=adaptive, rtol=1e-2, atol=1e-2, dt_min=0.05)


def test_the_backward_pass_leaves_the_generators_alone():
    sde = Sde("ito", "diagonal", dropout=0.3)
    ys = sdeint_adjoint(
        sde, initial(), [0.0, 1.0], bm=interval("diagonal"), dt=0.1, method="euler", adjoint_method="aca"
    )
    before = torch.get_rng_state()
    ys.sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("keep", KEEP, ids=str)
@pytest.mark.parametrize("noise", ["diagonal", "general"])
def test_autocast(noise, keep):
    sde = Sde("stratonovich", noise, dtype=torch.float32)
    y0 = initial(torch.float32)

    def under_autocast(sdeint, **kwargs):
        with torch.autocast("cpu", torch.bfloat16):
            ys = sdeint(sde, y0, [0.0, 1.0], bm=interval(noise, dtype=torch.float32), method="heun", dt=0.1, **kwargs)
        return [
            ys,
            *torch.autograd.grad(
                ys.float().square().sum(), (y0, *sde.parameters()), allow_unused=True, materialize_grads=True
            ),
        ]

    host = under_autocast(torchsde.sdeint)
    ours = under_autocast(sdeint_adjoint, adjoint_method="aca", adjoint_options=keep)
    assert torch.equal(ours[0], host[0])
    # Gradients of bfloat16 layers are rounded to it in either way, and added up in another order.
    assert distance(ours, host) <= 2e-2


@pytest.mark.parametrize("create_graph", [False, True])
def test_parameters_lent_by_functional_call(create_graph):
    sde, y0 = Sde("ito", "diagonal"), initial()
    lent = {name: (p.detach() * 1.1).requires_grad_() for name, p in sde.named_parameters()}

    class Caller(torch.nn.Module):
        def __init__(self, sdeint, **kwargs):
            super().__init__()
            self.sde, self.sdeint, self.kwargs = sde, sdeint, kwargs

        def forward(self):
            return self.sdeint(
                self.sde, y0, [0.0, 1.0], bm=interval("diagonal"), method="milstein", dt=0.1, **self.kwargs
            )

    def found(caller):
        ys = torch.func.functional_call(caller, {f"sde.{name}": p for name, p in lent.items()}, ())
        inputs = (y0, *lent.values())
        return torch.autograd.grad(
            ys.square().sum(), inputs, create_graph=create_graph, allow_unused=True, materialize_grads=True
        )

    assert distance(found(Caller(sdeint_adjoint, adjoint_method="aca")), found(Caller(torchsde.sdeint))) <= 1e-12


def test_saved_tensors_moved_by_a_hook():
    sde, y0 = Sde("ito", "diagonal"), initial()

    def solution():
        settings = {"bm": interval("diagonal"), "method": "euler", "dt": 0.1, "adjoint_method": "aca"}
        return sdeint_adjoint(sde, y0, [0.0, 1.0], **settings)

    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x):
        moved = solution()
    inputs = (y0, *sde.parameters())
    unused = {"allow_unused": True, "materialize_grads": True}
    found, expected = (torch.autograd.grad(ys.square().sum(), inputs, **unused) for ys in (moved, solution()))
    assert distance(found, expected) == 0


def second(sdeint, case, dropout=0.0, **kwargs):
    """The gradient of a function of the first gradient."""
    torch.manual_seed(1)
    sde, y0 = Sde(case.sde_type, case.noise_type, dropout=dropout), initial()
    inputs = (y0, *sde.parameters())
    bm = interval(case.noise_type, LEVY.get(case.method, "none"))
    settings = {"bm": bm, "method": case.method, "options": case.options, "extra": True}
    ys, extra = sdeint(sde, y0, [0.0, 0.42, 1.0], **settings, **kwargs)
    unused = {"allow_unused": True, "materialize_grads": True}
    first = torch.autograd.grad(loss([ys, *extra]), inputs, create_graph=True, **unused)
    return torch.autograd.grad(loss(first), inputs, **unused)


@pytest.mark.filterwarnings("ignore:Numerical solution is not guaranteed to converge")
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("case", [c for c in cases() if c.noise_type in ("diagonal", "general")], ids=str)
def test_second_derivatives(case, steps):
    ours = second(sdeint_adjoint, case, adjoint_method="aca", adjoint_options={"checkpoints": 2}, **STEPS[steps])
    assert distance(ours, second(torchsde.sdeint, case, **STEPS[steps])) <= 1e-10


@pytest.mark.parametrize("method", ["midpoint", "reversible_heun"])
def test_second_derivatives_with_dropout(method):
    case = Case("stratonovich", "diagonal", method, {})
    settings = {"dropout": 0.3, "dt": 0.1}
    ours = second(sdeint_adjoint, case, adjoint_method="aca", **settings)
    assert distance(ours, second(torchsde.sdeint, case, **settings)) <= 1e-10


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(("sde_type", "method"), [("ito", "euler"), ("stratonovich", "reversible_heun")])
def test_an_initial_state_computed_from_the_parameters(sde_type, method, create_graph):
    """As in a latent SDE whose encoder is part of it: what a parameter gains through y0 counts once."""
    sde = Sde(sde_type, "diagonal")
    unused = {"allow_unused": True, "materialize_grads": True}

    def found(sdeint, **kwargs):
        y0 = sde.prior(torch.linspace(0, 1, BATCH * (STATE + 1), dtype=torch.float64).view(BATCH, STATE + 1))
        y0 = y0 + sde.drift[0].weight.sum()
        extra = (y0.sin(), sde.diffusion[0].bias.sum() * y0, y0 + 1) if method == "reversible_heun" else None
        settings = {"bm": interval("diagonal"), "method": method, "dt": 0.2, "extra_solver_state": extra}
        ys = sdeint(sde, y0, [0.0, 1.0], **settings, **kwargs)
        first = torch.autograd.grad(loss([ys]), list(sde.parameters()), create_graph=create_graph, **unused)
        return first + (torch.autograd.grad(loss(first), list(sde.parameters()), **unused) if create_graph else ())

    assert distance(found(sdeint_adjoint, adjoint_method="aca"), found(torchsde.sdeint)) <= 1e-10


def test_second_derivatives_against_differences():
    sde = Sde("ito", "diagonal")
    sde.requires_grad_(False)
    bm = interval("diagonal")

    def solution(y0):
        return sdeint_adjoint(sde, y0, [0.0, 1.0], bm=bm, method="milstein", dt=0.25, adjoint_method="aca")[-1]

    assert torch.autograd.gradgradcheck(solution, initial())


def saved_bytes(node):
    """The bytes of what a solve's autograd node saved, each memory once."""
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in node.saved_tensors}.values())


def solved(noise, method, steps, **kwargs):
    sde = Sde(kwargs.pop("sde_type", "ito"), noise).requires_grad_(True)
    y0 = initial()
    ys = sdeint_adjoint(
        sde,
        y0,
        [0.0, 1.0],
        bm=interval(noise, LEVY.get(method, "none")),
        method=method,
        dt=1 / steps,
        adjoint_method="aca",
        **kwargs,
    )
    own = sum(p.nbytes for p in sde.parameters()) + y0.nbytes
    return ys.grad_fn, y0.nbytes, own


@pytest.mark.parametrize("noise", ["diagonal", "general"])
def test_one_state_and_one_increment_per_step_are_held(noise):
    for steps in (64, 128):
        node, state, own = solved(noise, "euler", steps)
        increment = state if noise == "diagonal" else state * 2 // STATE
        assert saved_bytes(node) - own <= (steps + 1) * (state + increment) + 8 * 4


@pytest.mark.parametrize("steps", [64, 256])
@pytest.mark.parametrize("checkpoints", [1, 4, 16])
def test_no_more_states_than_checkpoints_are_held(checkpoints, steps):
    node, state, own = solved("diagonal", "euler", steps, adjoint_options={"checkpoints": checkpoints})
    samples = steps * 8 * 8
    # Besides them the end, which the backward pass is checked with, and the two times.
    assert saved_bytes(node) - own <= (checkpoints + 1) * state + samples + 2 * 8


def test_a_state_of_reversible_heun_has_its_slopes_with_it():
    node, state, own = solved(
        "diagonal", "reversible_heun", 64, sde_type="stratonovich", adjoint_options={"checkpoints": 4}
    )
    assert saved_bytes(node) - own <= (4 * 4 + 1) * state + 64 * 64 + 2 * 8


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("sde_type", "method", "areas"), [("ito", "srk", 1), ("stratonovich", "heun", 0)])
def test_the_states_wait_for_no_garbage_collector(sde_type, method, areas, backward):
    sde, bm = Sde(sde_type, "diagonal"), interval("diagonal", LEVY.get(method, "none"))
    ys = sdeint_adjoint(sde, initial(), [0.0, 1.0], bm=bm, method=method, dt=1 / 8, adjoint_method="aca")
    # The answers of bm come last, and bm has them too; before them samples and times; then states.
    answers = 8 * (1 + areas)
    states = [weakref.ref(x.untyped_storage()) for x in ys.grad_fn.saved_tensors[-9 - answers : -2 - answers]]
    assert all(state() is not None for state in states)
    gc.disable()
    try:
        if backward:
            ys.sum().backward()
        else:
            del ys
        assert not any(state() is not None for state in states)
    finally:
        gc.enable()


def test_no_graph_is_held():
    """No autograd node but the solve's own lies between the solution and its inputs."""
    for sde_type, method in (("ito", "srk"), ("stratonovich", "reversible_heun")):
        node, *_ = solved("diagonal", method, 16, sde_type=sde_type)
        while node is not None and "Replay" not in type(node).__name__:
            node = node.next_functions[0][0]
        assert all(type(parent).__name__ == "AccumulateGrad" for parent, _ in node.next_functions if parent is not None)


@pytest.mark.parametrize("noise", NOISES)
def test_evaluations_of_the_backward_pass(noise):
    sde, y0 = Sde("ito", noise), initial()
    ys = sdeint_adjoint(sde, y0, [0.0, 1.0], bm=interval(noise), method="euler", dt=1 / 32, adjoint_method="aca")
    sde.evaluations = 0
    ys.sum().backward()
    assert sde.evaluations == 32


@pytest.mark.parametrize(("dropout", "drifts"), [(0.0, 4), (0.3, 10)])
def test_a_drift_that_the_host_takes_again_is_replayed_once_unless_it_is_random(dropout, drifts):
    sde, y0 = Sde("ito", "diagonal", dropout=dropout), initial()
    settings = {"bm": interval("diagonal", "space-time"), "method": "srk", "dt": 1 / 8}
    ys = sdeint_adjoint(sde, y0, [0.0, 1.0], adjoint_method="aca", **settings)
    sde.evaluations = 0
    ys.sum().backward()
    assert sde.evaluations == 8 * drifts


@pytest.mark.parametrize("keep", KEEP, ids=str)
def test_dropout_where_the_host_takes_a_drift_again(keep):
    sde = Sde("ito", "diagonal", dropout=0.3)
    assert_equal(sde, lambda: interval("diagonal", "space-time"), keep, method="srk", dt=1 / 8)


class Geometric(torch.nn.Module):
    """dY = aY dt + bY dW: Y(t) = y0 exp((a - b²/2)t + bW(t)), in Itô's calculus."""

    sde_type, noise_type = "ito", "diagonal"

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
        self.b = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def f(self, t, y):
        return self.a * y

    def g(self, t, y):
        return self.b * y


def test_the_gradient_of_a_product():
    """Euler's steps make Y(1) = y0 Π(1 + ah + bΔW)."""
    sde, y0, bm = Geometric(), initial(), interval("diagonal")
    settings = {"bm": bm, "method": "euler", "dt": 0.125, "adjoint_method": "aca"}
    ys = sdeint_adjoint(sde, y0, [0.0, 1.0], **settings)
    found = torch.autograd.grad(ys[-1].sum(), (y0, sde.a, sde.b))
    w = torch.stack([bm(n / 8, (n + 1) / 8) for n in range(8)])
    factors = 1 + sde.a.detach() / 8 + sde.b.detach() * w
    y = y0.detach() * factors.prod(0)
    expected = (factors.prod(0), (y * (0.125 / factors).sum(0)).sum(), (y * (w / factors).sum(0)).sum())
    assert distance(found, expected) <= 1e-13


@pytest.mark.parametrize(("method", "order"), [("euler", 0.5), ("milstein", 1.0), ("srk", 1.5)])
def test_gradients_converge_to_those_of_the_closed_form(method, order):
    """Path by path for y0, at the method's strong order, as for the solution; for a and b at least so fast."""
    size, fine = (512, 1), 128
    bm = torchsde.BrownianInterval(
        0.0, 1.0, size=size, entropy=11, dtype=torch.float64, levy_area_approximation="space-time"
    )
    for n in range(fine):  # so that the path does not depend on the step sizes
        bm(n / fine, (n + 1) / fine)
    sde = Geometric()
    y0 = torch.full(size, 1.3, dtype=torch.float64, requires_grad=True)
    exact = y0 * torch.exp((sde.a - sde.b**2 / 2) + sde.b * bm(0.0, 1.0))
    expected = torch.autograd.grad(exact.square().sum(), (y0, sde.a, sde.b))
    errors = []
    for steps in (8, fine):
        ys = sdeint_adjoint(sde, y0, [0.0, 1.0], bm=bm, method=method, dt=1 / steps, adjoint_method="aca")
        found = torch.autograd.grad(ys[-1].square().sum(), (y0, sde.a, sde.b))
        errors.append([euclidean(x, y) for x, y in zip(found, expected, strict=True)])
    rates = [math.log(coarse / fine) / math.log(16) for coarse, fine in zip(*errors, strict=True)]
    assert min(rates) >= order - 0.2
    assert max(errors[1]) <= 0.1
