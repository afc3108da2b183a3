"""Fixed grids by states: several steps are taken again at a time, and are what they would be one by one."""

import gc
import weakref

import pytest
import torch
import torchdiffeq
from torch.autograd import grad

from steptape import GradientError
from steptape.shared_tests.oracles.distance import distance
from steptape.torch import install, odeint_adjoint, record_solves
from steptape_helpers.torch_solves import FIXED_GRID

# Before, between, on and after the ends of steps that are taken together, and several in one step.
T = torch.tensor([0.0, 0.2, 0.45, 0.47, 0.6, 0.93, 1.0], dtype=torch.float64)


class Field(torch.nn.Module):
    """A driven layer."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(3, 3, generator=generator, dtype=torch.float64).to(dtype))

    def forward(self, t, y):
        return (y @ self.weight + torch.sin(3 * t)).tanh()


class Counted(torch.autograd.Function):
    """The identity; ``alive``: the graphs with it that there are; ``counts``: of how many, at each evaluation."""

    alive, counts = weakref.WeakSet(), list[int]()

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.token = torch.nn.Identity()
        Counted.alive.add(ctx.token)
        Counted.counts.append(len(Counted.alive))

    @staticmethod
    def backward(ctx, g):
        return g


def gradients(odeint, func, y0, t=T, method="euler", step_size=0.07, **call):
    y = y0.clone().requires_grad_()
    ys = odeint(func, y, t, method=method, options={"step_size": step_size}, **call)
    Counted.counts.clear()
    return ys, grad((ys + 0.3).abs().square().sum(), (y, *func.parameters()))


def both(dtype=torch.float64, adjoint_options=None, **call):
    y0 = torch.linspace(-1, 1, 12, dtype=torch.float64).view(-1, 3).to(dtype)
    expected = gradients(torchdiffeq.odeint, Field(dtype), y0, **call)
    ours = {"adjoint_method": "aca", "adjoint_options": adjoint_options or {}}
    return expected, gradients(odeint_adjoint, Field(dtype), y0, **ours, **call)


@pytest.mark.parametrize("method", FIXED_GRID)
@pytest.mark.parametrize(
    "call",
    [
        {},
        {"t": T.flip(0)},
        {"t": T[[0, -1]]},
        {"step_size": 0.9},
        {"adjoint_options": {"checkpoints": 1}},
        {"adjoint_options": {"checkpoints": 4}},
        {"dtype": torch.complex128},
        {"t": T.float()},
    ],
    ids=["increasing", "decreasing", "one output", "two steps", "one state", "few states", "complex", "float32 times"],
)
def test_the_gradient_is_that_of_back_propagation(method, call):
    (ys, expected), (ours, found) = both(method=method, **call)
    assert torch.equal(ours, ys)
    assert distance(found, expected) <= 1e-13


def test_single_precision_is_that_of_the_solve():
    (_, expected), (_, found) = both(dtype=torch.float32)
    assert distance(found, expected) <= 2e-6


@pytest.mark.parametrize(("method", "each", "together"), [("euler", 1, 6), ("midpoint", 2, 6), ("rk4", 4, 4)])
@pytest.mark.parametrize("count", [12, 3 * 5500], ids=["small", "large"])
def test_as_many_graphs_are_alive_as_in_a_step_of_dopri5_of_a_large_state_those_of_one_step(
    method, each, together, count
):
    class Watched(Field):
        def forward(self, t, y):
            return Counted.apply(super().forward(t, y))

    y0 = torch.linspace(-1, 1, count, dtype=torch.float64).view(-1, 3)
    gc.collect()
    with record_solves() as solves:
        gradients(odeint_adjoint, Watched(), y0, method=method, adjoint_method="aca")
    assert max(Counted.counts) == (together if count == 12 else each)
    assert solves[0].evaluations_backward == each * solves[0].accepted_steps


class Potential(Field):
    """Goes down a potential, whose gradient it takes in the very state it is given."""

    def forward(self, t, y):
        with torch.enable_grad():
            if not y.requires_grad:
                y = y.requires_grad_(True)
            return -grad(super().forward(t, y).abs().sum(), y, create_graph=True)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
@pytest.mark.parametrize("checkpoints", [1, 4])
@pytest.mark.parametrize("method", FIXED_GRID)
def test_a_func_that_has_its_state_require_a_gradient(method, checkpoints, dtype):
    """Of states that the solve has kept as of those that are computed again between them."""
    y0, keep = torch.linspace(-1, 1, 12, dtype=torch.float64).view(-1, 3).to(dtype), {"checkpoints": checkpoints}
    ys, expected = gradients(torchdiffeq.odeint, Potential(dtype), y0, method=method)
    ours = gradients(odeint_adjoint, Potential(dtype), y0, method=method, adjoint_method="aca", adjoint_options=keep)
    with install(default="aca", override=True, adjoint_options=keep):
        plain = gradients(torchdiffeq.odeint, Potential(dtype), y0, method=method)
    for solution, found in (ours, plain):
        assert torch.equal(solution, ys)
        assert distance(found, expected) <= (2e-6 if dtype == torch.float32 else 1e-12)


class Used:
    """From the time ``later`` on it uses a tensor that it did not use before."""

    def __init__(self, later):
        self.later = later
        self.w = torch.full((3,), 0.5, dtype=torch.float64, requires_grad=True)
        self.hidden = [torch.full((3,), 0.5, dtype=torch.float64, requires_grad=True)]

    def __call__(self, t, y):
        return torch.sin(y * (self.w if float(t) < self.later else self.hidden[0] * 1))


@pytest.mark.parametrize("later", [0.1, 0.4, 0.75])
def test_what_only_some_of_them_depend_on_has_its_gradient(later):
    func, y0 = Used(later), torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)

    def found(odeint, **adjoint):
        y = y0.clone().requires_grad_()
        ys = odeint(func, y, T, method="euler", options={"step_size": 0.07}, **adjoint)
        return grad(ys.square().sum(), (y, func.w, func.hidden[0]))

    expected = found(torchdiffeq.odeint)
    assert distance(found(odeint_adjoint, adjoint_method="aca"), expected) <= 1e-13


def test_a_func_that_is_another_one_by_then_is_refused():
    func, y0 = Field(), torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3).requires_grad_()
    ys = odeint_adjoint(func, y0, T, method="euler", options={"step_size": 0.07}, adjoint_method="aca")
    with torch.no_grad():
        func.weight.mul_(1.01)
    with pytest.raises(GradientError, match="modified by an inplace"):
        ys.sum().backward()
