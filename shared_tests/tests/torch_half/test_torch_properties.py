"""What gradients by ACA satisfy on random linear and polynomial systems, with random solvers, times and step sizes."""

from typing import Any, NamedTuple

import pytest
import torch
import torchdiffeq
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from steptape.compat._torchdiffeq import SOLVERS
from steptape.shared_tests.oracles.distance import distance
from steptape.torch import odeint_adjoint
from steptape.torch._hosts.scheme import scheme_of
from steptape_helpers.torch_solves import ADAMS, ADAPTIVE

SUPPORTED = [name for name, solver in SOLVERS.items() if scheme_of(solver) is not None]
pytestmark = pytest.mark.filterwarnings("ignore:Functional iteration did not converge")


def repeatable(examples):
    return settings(max_examples=examples, derandomize=True, deadline=None)


class Linear(torch.nn.Module):
    """dy/dt = Ay + b + ct, with ‖A‖ at most 1 in the maximum norm."""

    def __init__(self, size, generator, direction):
        super().__init__()
        self.A = torch.nn.Parameter(uniform(size, size, generator=generator) / size)
        self.b = torch.nn.Parameter(uniform(size, generator=generator) / 2)
        self.c = torch.nn.Parameter(uniform(size, generator=generator) / 2)

    def forward(self, t, y):
        return self.A @ y + self.b + self.c * t


class Polynomial(Linear):
    """The same with terms of degree 2 and 3, which keep y small when time goes in the given ``direction``."""

    def __init__(self, size, generator, direction):
        super().__init__(size, generator, direction)
        self.B = torch.nn.Parameter(uniform(size, size, size, generator=generator) / (2 * size**2))
        self.d = torch.nn.Parameter(-direction * (1 + uniform(size, generator=generator) / 2))

    def forward(self, t, y):
        return super().forward(t, y) + self.B @ y @ y + self.d * y**3


class Mirrored(torch.nn.Module):
    """A field in the time -t."""

    def __init__(self, field):
        super().__init__()
        self.field = field

    def forward(self, t, y):
        return -self.field(-t, y)


def uniform(*shape, generator):
    return 2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1


def one_vector(gradients):
    """All gradients as one: a single input's can be a small difference of large ones."""
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


class Problem(NamedTuple):
    """A call of odeint, and the cotangent of its solution."""

    field: torch.nn.Module
    y0: Tensor
    t: Tensor
    call: dict[str, Any]
    cotangent: Tensor

    def solve(self, odeint: Any = odeint_adjoint, **adjoint_options: Any) -> tuple[Tensor, Tensor]:
        """The solution, and the gradients in y0, t and the parameters."""
        aca = {"adjoint_method": "aca", "adjoint_options": adjoint_options} if odeint is odeint_adjoint else {}
        y0, t = self.y0.clone().requires_grad_(), self.t.clone().requires_grad_()
        ys = odeint(self.field, y0, t, **self.call, **aca)
        return ys, one_vector(torch.autograd.grad(ys, (y0, t, *self.field.parameters()), self.cotangent))


@st.composite
def any_solver(draw, span):
    """The host's gradient in t divides differences of states by h: good to eps/h, so no step here is tiny."""
    method = draw(st.sampled_from(SUPPORTED))
    if method in ADAPTIVE:
        tol = 1e-4 if method in ("dopri5", "dopri8") else 1e-2
        return {"method": method, "rtol": tol, "atol": tol, "options": {"first_step": draw(st.floats(0.05, 0.2))}}
    options = {
        "step_size": span / (draw(st.integers(10, 40)) - 0.3),
        "interp": draw(st.sampled_from(["linear", "cubic"])),
        "perturb": draw(st.booleans()),
        **({"max_order": draw(st.integers(4, 6))} if method in ADAMS else {}),
    }
    return {"method": method, "options": options}


@st.composite
def accurate_solver(draw, span):
    method = draw(st.sampled_from(["dopri5", "dopri8", "rk4"]))
    if method in ADAPTIVE:
        return {"method": method, "rtol": 1e-9, "atol": 1e-9, "options": {"max_step": 0.05}}
    return {"method": method, "options": {"step_size": span / 60.3, "interp": "cubic"}}


@st.composite
def problems(draw, kinds=(Linear, Polynomial), solvers=any_solver):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    size, direction = draw(st.integers(1, 4)), draw(st.sampled_from([1, -1]))
    field = draw(st.sampled_from(kinds))(size, generator, direction)
    start = draw(st.floats(-1, 1))
    gaps = draw(st.lists(st.floats(0.1, 0.4), min_size=1, max_size=5))
    t = start + direction * torch.tensor([0.0, *gaps], dtype=torch.float64).cumsum(0)
    call = draw(solvers(sum(gaps)))
    cotangent = torch.randn(len(t), size, generator=generator, dtype=torch.float64)
    return Problem(field, uniform(size, generator=generator), t, call, cotangent)


@repeatable(80)
@given(problems())
def test_equal_to_back_propagation(problem):
    solution, expected = problem.solve(torchdiffeq.odeint)
    ours, found = problem.solve()
    assert torch.equal(ours, solution)
    assert distance([found], [expected]) <= 1e-12


@repeatable(40)
@given(problems(kinds=[Linear], solvers=accurate_solver))
def test_close_to_the_closed_form(problem):
    """dy/dt = Ay + b + ct is dz/dt = Mz for z = (y, t, 1), and so z(t) = exp(M(t - t0)) z(t0)."""
    y0, t = problem.y0.clone().requires_grad_(), problem.t.clone().requires_grad_()
    A, b, c = problem.field.parameters()
    M = torch.cat([A, c[:, None], b[:, None]], 1)
    M = torch.cat([M, torch.zeros(2, len(M) + 2).double()])
    M[-2, -1] = 1
    z0 = torch.cat([y0, t[:1], torch.ones_like(t[:1])])
    ys = (torch.matrix_exp(M * (t - t[0])[:, None, None]) @ z0)[:, : len(y0)]
    expected = torch.autograd.grad(ys, (y0, t, A, b, c), problem.cotangent)
    _, found = problem.solve()
    assert distance([found], [one_vector(expected)]) <= 1e-6


@repeatable(50)
@given(problems(), st.integers(1, 12), st.sampled_from(["step", "stage"]))
def test_less_memory_gives_the_same_gradient(problem, checkpoints, graph):
    graph = {} if scheme_of(SOLVERS[problem.call["method"]]).tableau is None else {"graph": graph}
    _, expected = problem.solve()
    _, found = problem.solve(checkpoints=checkpoints, **graph)
    assert distance([found], [expected]) <= 1e-12


@repeatable(50)
@given(problems(), st.floats(-4, 4))
def test_linear_in_the_cotangent(problem, factor):
    other = problem._replace(cotangent=problem.cotangent.flip(0).cos())
    both = problem._replace(cotangent=problem.cotangent + factor * other.cotangent)
    (_, first), (_, second), (_, found) = problem.solve(), other.solve(), both.solve()
    assert (found - (first + factor * second)).abs().max() <= 1e-12 * (first.abs().max() + second.abs().max())


@repeatable(50)
@given(problems())
def test_the_same_in_mirrored_time(problem):
    solution, expected = problem.solve()
    mirrored = problem._replace(field=Mirrored(problem.field), t=-problem.t)
    ours, found = mirrored.solve()
    assert torch.equal(ours, solution)
    times = slice(len(problem.y0), len(problem.y0) + len(problem.t))
    found[times] *= -1
    assert distance([found], [expected]) <= 1e-12
