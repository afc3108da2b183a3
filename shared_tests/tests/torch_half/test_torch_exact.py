"""ACA equals back-propagation through torchdiffeq's own solver, step for step, and leaves its solution alone."""

import pytest
import torch
import torchdiffeq

from steptape.compat._torchdiffeq import SOLVERS
from steptape.shared_tests.oracles.distance import distance
from steptape.shared_tests.problems.problems import PROBLEMS
from steptape.torch import odeint_adjoint
from steptape_helpers.torch_solves import ADAMS, ADAPTIVE, FIXED_GRID, Module, differentiate

AVAILABLE_FIXED_GRID = [name for name in FIXED_GRID if name in SOLVERS]


def assert_exact(problem, adjoint_options=None, **kwargs):
    host = differentiate(torchdiffeq.odeint, problem, **kwargs)
    ours = differentiate(odeint_adjoint, problem, adjoint_method="aca", adjoint_options=adjoint_options, **kwargs)
    assert torch.equal(ours.solution, host.solution)
    assert distance(ours.gradients, host.gradients) <= problem.exact


@pytest.mark.by_default(every=2)
@pytest.mark.parametrize("method", ADAPTIVE)
@pytest.mark.parametrize("name", PROBLEMS)
def test_adaptive_solvers(name, method):
    problem = PROBLEMS[name]
    # The host's gradient in t divides differences of states by h: good to eps/h, so no tiny steps for low orders.
    tolerance = 1e-6 if method in ("dopri5", "dopri8") else 1e-3
    options = {"first_step": problem.first_step}
    assert_exact(problem, method=method, rtol=tolerance, atol=tolerance, options=options)


# Each method on each problem with one of the options; any two options and methods meet in the grid.
@pytest.mark.by_default(every=3, rest="elsewhere")
@pytest.mark.by_default(every=9)
@pytest.mark.parametrize("options", [{}, {"interp": "cubic"}, {"perturb": True}], ids=["linear", "cubic", "perturb"])
@pytest.mark.parametrize("method", AVAILABLE_FIXED_GRID)
@pytest.mark.parametrize("name", PROBLEMS)
def test_fixed_grid_solvers(name, method, options):
    problem = PROBLEMS[name]
    span = problem.times[-1] - problem.times[0]
    # With fewer Euler leaves the stiff problem for infinity.
    steps = 617.3 if name == "van_der_pol_stiff" else 123.3
    assert_exact(problem, method=method, options={"step_size": span / steps, **options})


# Each method with each of the options on each problem, in one of the two memories.
@pytest.mark.by_default(every=2, rest="elsewhere")
@pytest.mark.by_default(every=4)
@pytest.mark.filterwarnings("ignore:Functional iteration did not converge")
@pytest.mark.parametrize("options", [{}, {"interp": "cubic"}, {"perturb": True}, {"max_order": 4}], ids=repr)
@pytest.mark.parametrize("memory", [{}, {"checkpoints": 4}], ids=repr)
@pytest.mark.parametrize("method", ADAMS)
@pytest.mark.parametrize("name", ["exponential", "rotation", "mlp", "pendulum"])
def test_multistep_solvers(name, method, memory, options):
    problem = PROBLEMS[name]
    span = problem.times[-1] - problem.times[0]
    # Explicit Adams of the host's default order 12 is unstable at this step, and so are its derivatives.
    order = {"max_order": 5} if method == "explicit_adams" else {}
    options = {"step_size": span / 120.3, **order, **options}
    assert_exact(problem, method=method, adjoint_options=memory, rtol=1e-4, atol=1e-5, options=options)


@pytest.mark.by_default(every=2)
@pytest.mark.parametrize(
    "memory",
    [{"checkpoints": 1}, {"checkpoints": 7}, {"graph": "stage"}, {"checkpoints": 5, "graph": "stage"}],
    ids=repr,
)
@pytest.mark.parametrize("method", ["dopri5", "bosh3", "adaptive_heun", "rk4"])
@pytest.mark.parametrize("name", ["rotation", "mlp"])
def test_less_memory_gives_the_same_gradient(name, method, memory):
    problem = PROBLEMS[name]
    options = {"first_step": 0.05} if method in ADAPTIVE else {"step_size": 0.02}
    assert_exact(problem, method=method, rtol=1e-3, atol=1e-3, options=options, adjoint_options=memory)


@pytest.mark.parametrize("method", AVAILABLE_FIXED_GRID)
def test_the_output_times_as_the_grid(method):
    assert_exact(PROBLEMS["rotation"], method=method)


@pytest.mark.parametrize("reverse", [False, True], ids=["increasing", "decreasing"])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_step_t_and_jump_t_carry_gradients(method, reverse):
    problem = PROBLEMS["rotation"]

    def gradients(odeint, **kwargs):
        func = Module(problem)
        t = torch.tensor(problem.times, dtype=torch.float64)
        t = (t.flip(0) if reverse else t).requires_grad_()
        step_t, jump_t = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in ([2.5, 0.9], [1.3, 3.1]))
        options = {"first_step": 0.05, "step_t": step_t, "jump_t": jump_t}
        y0 = torch.tensor(problem.y0, dtype=torch.float64, requires_grad=True)
        ys = odeint(func, y0, t, method=method, rtol=1e-3, atol=1e-3, options=options, **kwargs)
        y, *times, params = torch.autograd.grad(ys.square().sum(), (y0, t, step_t, jump_t, func.params))
        # One vector of times: a single point's share can be a small difference of large ones.
        return y, torch.cat(times), params

    assert distance(gradients(odeint_adjoint, adjoint_method="aca"), gradients(torchdiffeq.odeint)) <= 1e-12


def test_a_jump_in_the_field_at_jump_t():
    def gradients(odeint, **kwargs):
        y0 = torch.tensor([1.0, -0.5], dtype=torch.float64, requires_grad=True)
        rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        t = torch.tensor([0.0, 0.4, 1.1, 2.0], dtype=torch.float64, requires_grad=True)

        def func(t, y):
            return torch.where(t < 1.0, -rate * y, rate * y.flip(0) + t)

        options = {"first_step": 0.1, "jump_t": torch.tensor([1.0], dtype=torch.float64)}
        ys = odeint(func, y0, t, rtol=1e-5, atol=1e-5, options=options, **kwargs)
        return torch.autograd.grad(ys.square().sum(), (y0, t, rate))

    def ours(func, *args, **kwargs):
        rate = func.__closure__[0].cell_contents
        return odeint_adjoint(func, *args, adjoint_method="aca", adjoint_params=(rate,), **kwargs)

    assert distance(gradients(ours), gradients(torchdiffeq.odeint)) <= 1e-12


def test_a_grid_constructor_that_reads_the_state():
    problem = PROBLEMS["rotation"]

    def grid(func, y0, t):
        middle = t[0] + (t[-1] - t[0]) * torch.sigmoid(y0.sum())
        return torch.cat([t[:1], middle[None], t[-1:]])

    assert_exact(problem, method="rk4", options={"grid_constructor": grid})


@pytest.mark.parametrize("method", ["rk4", "implicit_adams"])
@pytest.mark.parametrize("computed", [False, True], ids=["leaf", "computed before"])
@pytest.mark.parametrize("keep", [{}, {"memory": "graphs"}, {"checkpoints": 1}], ids=str)
@pytest.mark.filterwarnings("ignore:Functional iteration did not converge")
def test_a_grid_that_is_learned(method, computed, keep):
    if method == "implicit_adams" and "memory" in keep:
        pytest.skip("refused in words")

    def gradients(odeint, **aca):
        y0, w, at = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in ([1.0, 0.5], 0.7, [0.3, 0.6]))
        inside = at * 1.1 if computed else at
        grid = {"grid_constructor": lambda func, y, t: torch.cat([t[:1], inside * w * t[-1], t[-1:]])}
        t = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
        ys = odeint(lambda t, y: -w * y * torch.cos(3 * t), y0, t, method=method, options=grid, **aca)
        first = torch.autograd.grad(ys.square().sum(), (y0, w, at), create_graph=True)
        return *first, *torch.autograd.grad(sum(x.square().sum() for x in first), (y0, w, at))

    found = gradients(odeint_adjoint, adjoint_method="aca", adjoint_options=keep)
    assert distance(found, gradients(torchdiffeq.odeint)) <= 1e-12


def test_closed_form_gradients_at_a_tight_tolerance():
    """dz/dt = αz, L = z(T)²: the gradients in z0, α and T of the ACA paper, and in t0."""
    z0, alpha, span = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in ([1.3], 0.8, 2.0))
    t0 = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    t = torch.stack([t0, t0.detach() + span])
    ys = odeint_adjoint(
        lambda t, z: alpha * z, z0, t, rtol=1e-12, atol=1e-12, adjoint_method="aca", adjoint_params=(alpha,)
    )
    found = torch.autograd.grad(ys[-1].square().sum(), (z0, alpha, span, t0))
    z, a, T = z0.item(), alpha.item(), span.item()
    square = z * z * torch.tensor(2 * a * T, dtype=torch.float64).exp()
    expected = (2 * square / z, 2 * T * square, 2 * a * square, -2 * a * square)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got.squeeze(), want, rtol=1e-10, atol=0)
