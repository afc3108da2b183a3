"""Every solver of the installed torchdiffeq, by whatever name: replayed exactly, or refused.

The other modules name the solvers they test. Here they are asked of the host, so one that a later version brings is
tested as well.
"""

import pytest
import torch
import torchdiffeq

from steptape import UnsupportedError
from steptape.compat import _torchdiffeq as host
from steptape.shared_tests.oracles.distance import distance
from steptape.shared_tests.problems.problems import PROBLEMS
from steptape.torch import odeint_adjoint
from steptape.torch._hosts.scheme import scheme_of
from steptape_helpers.torch_solves import differentiate

ALL = [name for name in host.SOLVERS if name != "aca"]
REPLAYED = [name for name in ALL if scheme_of(host.SOLVERS[name]) is not None]
FIXED_GRID = [name for name in REPLAYED if not scheme_of(host.SOLVERS[name]).hands_on]
WHOLE = [name for name in REPLAYED if scheme_of(host.SOLVERS[name]).tableau is None]
IMPLICIT = [name for name in WHOLE if not issubclass(host.SOLVERS[name], host.Adams)]
ACA = {"adjoint_method": "aca"}

pytestmark = pytest.mark.filterwarnings("ignore:Functional iteration did not converge")


def settings(method, size, **options):
    if method not in FIXED_GRID:
        return {"method": method, "rtol": 1e-3, "atol": 1e-3, "options": {"first_step": size}}
    if issubclass(host.SOLVERS[method], host.Adams):
        options["max_order"] = 5  # of order 12 the explicit one is unstable
    return {"method": method, "rtol": 1e-3, "atol": 1e-4, "options": {"step_size": size, **options}}


def assert_exact(problem, kwargs, adjoint_options=None):
    theirs = differentiate(torchdiffeq.odeint, problem, **kwargs)
    ours = differentiate(odeint_adjoint, problem, adjoint_options=adjoint_options, **ACA, **kwargs)
    assert torch.equal(ours.solution, theirs.solution)
    assert distance(ours.gradients, theirs.gradients) <= problem.exact


def test_only_scipy_s_solvers_are_refused():
    assert sorted(set(ALL) - set(REPLAYED)) == ["scipy_solver"]


@pytest.mark.parametrize("memory", [{}, {"checkpoints": 3}], ids=repr)
@pytest.mark.parametrize("method", REPLAYED)
@pytest.mark.parametrize("name", ["rotation", "mlp"])
def test_equal_to_back_propagation(name, method, memory):
    problem = PROBLEMS[name]
    assert_exact(problem, settings(method, (problem.times[-1] - problem.times[0]) / 41.3), memory)


@pytest.mark.parametrize("options", [{"interp": "cubic"}, {"perturb": True}], ids=repr)
@pytest.mark.parametrize("method", FIXED_GRID)
def test_options_of_a_fixed_grid(method, options):
    problem = PROBLEMS["mlp"]
    assert_exact(problem, settings(method, (problem.times[-1] - problem.times[0]) / 23.3, **options))


@pytest.mark.parametrize("method", FIXED_GRID)
def test_the_output_times_as_the_grid(method):
    assert_exact(PROBLEMS["rotation"], {"method": method})


@pytest.mark.parametrize("method", [name for name in WHOLE if name != "explicit_adams"])
def test_iterations_cut_short_are_differentiated_as_they_are(method):
    """The gradient is that of the iterations the host did, however far from the solution they ended."""
    problem = PROBLEMS["pendulum"]
    kwargs = settings(method, (problem.times[-1] - problem.times[0]) / 31.3, max_iters=2)
    with pytest.warns(UserWarning, match="did not converge"):
        differentiate(torchdiffeq.odeint, problem, **{**kwargs, "rtol": 1e-12, "atol": 1e-12})
    assert_exact(problem, {**kwargs, "rtol": 1e-12, "atol": 1e-12})


class Decay(torch.nn.Module):
    """A nonlinear field of a tuple of a matrix and a number."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.weight = torch.nn.Parameter(
            torch.tensor([[-0.4, 0.9, 0.1], [-0.8, -0.2, 0.3], [0.1, 0.2, -0.5]]).to(dtype)
        )

    def forward(self, t, state):
        matrix, number = state
        return torch.tanh(matrix @ self.weight) * torch.cos(t), matrix.sum() - number


def of_a_tuple(odeint, dtype, reverse, **kwargs):
    func = Decay(dtype)
    matrix = torch.linspace(-1, 1, 6).to(dtype).view(2, 3).requires_grad_()
    number = torch.tensor(0.3).to(dtype).requires_grad_()
    t = torch.tensor([0.1, 0.45, 0.8, 1.7], dtype=torch.float64)
    t = (t.flip(0) if reverse else t).requires_grad_()
    ys = odeint(func, (matrix, number), t, **kwargs)
    loss = ys[0][1:].abs().square().sum() + ys[1].abs().square().sum()
    return ys, torch.autograd.grad(loss, (t, matrix, number, func.weight))


@pytest.mark.parametrize("reverse", [False, True], ids=["increasing", "decreasing"])
# The host's gradient in t divides differences of states by h: good to eps/h.
@pytest.mark.parametrize(
    ("dtype", "close", "close_in_time"),
    [(torch.float64, 1e-12, 1e-12), (torch.float32, 2e-5, 1e-3), (torch.complex128, 1e-12, 1e-12)],
    ids=["float64", "float32", "complex128"],
)
@pytest.mark.parametrize("method", REPLAYED)
def test_tuples_of_any_dtype_in_either_direction(method, dtype, close, close_in_time, reverse):
    kwargs = settings(method, 0.11)
    ys, (in_t, *theirs) = of_a_tuple(torchdiffeq.odeint, dtype, reverse, **kwargs)
    zs, (ours_in_t, *ours) = of_a_tuple(odeint_adjoint, dtype, reverse, **ACA, **kwargs)
    assert all(torch.equal(y, z) for y, z in zip(ys, zs, strict=True))
    assert distance(ours, theirs) <= close
    assert distance([ours_in_t], [in_t]) <= close_in_time


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("method", REPLAYED)
def test_events(method, reverse):
    kwargs = settings(method, 0.1)

    def solve(odeint, **adjoint):
        func = Decay()
        matrix = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3).requires_grad_()
        number = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        t0 = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
        event_t, ys = torchdiffeq.odeint_event(
            func,
            (matrix, number),
            t0,
            event_fn=lambda t, state: (t - 0.2).abs() + state[1] - 0.9,
            reverse_time=reverse,
            odeint_interface=odeint,
            **kwargs,
            **adjoint,
        )
        loss = event_t * 0.3 + ys[0].square().sum() + ys[1][-1]
        return event_t, ys[0], torch.autograd.grad(loss, (matrix, number, t0, func.weight))

    event_t, ys, theirs = solve(torchdiffeq.odeint)
    at, zs, ours = solve(odeint_adjoint, **ACA)
    assert event_t == at
    assert torch.equal(ys, zs)
    assert distance(ours, theirs) <= 1e-12


@pytest.mark.parametrize("method", REPLAYED)
def test_second_derivatives(method):
    kwargs = settings(method, 0.2)

    def second(odeint, **adjoint):
        func = Decay()
        matrix = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3).requires_grad_()
        number = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        t = torch.tensor([0.1, 0.45, 0.8], dtype=torch.float64)
        ys = odeint(func, (matrix, number), t, **kwargs, **adjoint)
        wrt = (matrix, number, func.weight)
        first = torch.autograd.grad(ys[0].square().sum() + ys[1].square().sum(), wrt, create_graph=True)
        return torch.autograd.grad(sum(g.pow(3).sum() for g in first), wrt)

    assert distance(second(odeint_adjoint, **ACA), second(torchdiffeq.odeint)) <= 1e-10


@pytest.mark.parametrize("method", WHOLE)
def test_a_step_of_the_host_s_has_no_stages_of_ours(method):
    with pytest.raises(UnsupportedError, match="'graph'"):
        differentiate(odeint_adjoint, PROBLEMS["mlp"], method=method, adjoint_options={"graph": "stage"}, **ACA)


def test_a_solver_of_one_s_own_that_takes_the_host_s_steps(monkeypatch):
    class Mine(host.SOLVERS["bosh3"]):
        tableau = host.SOLVERS["fehlberg2"].tableau
        mid = host.SOLVERS["fehlberg2"].mid

    monkeypatch.setitem(host.SOLVERS, "mine", Mine)
    assert_exact(PROBLEMS["mlp"], {"method": "mine", "rtol": 1e-3, "atol": 1e-3, "options": {"first_step": 0.1}})


@pytest.mark.parametrize("base", [*IMPLICIT, "implicit_adams"])
def test_a_fixed_grid_solver_of_one_s_own_is_refused(base, monkeypatch):
    class Mine(host.SOLVERS[base]):
        pass

    monkeypatch.setitem(host.SOLVERS, "mine", Mine)
    with pytest.raises(UnsupportedError, match="cannot be replayed"):
        differentiate(odeint_adjoint, PROBLEMS["mlp"], method="mine", **ACA)
