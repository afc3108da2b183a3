"""Second derivatives: of the discrete solution, like the first, and right."""

import pytest
import torch
import torchdiffeq

from steptape.shared_tests.oracles.distance import distance
from steptape.shared_tests.problems.problems import PROBLEMS
from steptape.torch import odeint_adjoint
from steptape_helpers.torch_solves import ADAMS, ADAPTIVE, FIXED_GRID, Module


def second(odeint, problem, **kwargs):
    """The gradient of a function of the first gradient, in (y0, t, params)."""
    func = Module(problem)
    y0 = torch.tensor(problem.y0, dtype=torch.float64, requires_grad=True)
    t = torch.tensor(problem.times, dtype=torch.float64, requires_grad=True)
    wrt = (y0, t, func.params)
    first = torch.autograd.grad(problem.loss(odeint(func, y0, t, **kwargs)[1:]), wrt, create_graph=True)
    penalty = sum(((g + torch.linspace(1, 2, len(g))) ** 2).sum() for g in first)
    return torch.autograd.grad(penalty, wrt)


@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED_GRID, *ADAMS])
@pytest.mark.parametrize("name", ["rotation", "mlp", "lotka_volterra"])
def test_equal_to_the_host_s(name, method):
    options = {"first_step": 0.05} if method in ADAPTIVE else {"step_size": 0.1}
    if method in ADAMS:
        options["max_order"] = 5  # of order 12 the solution itself is not finite
    kwargs = {"method": method, "rtol": 1e-3, "atol": 1e-3, "options": options}
    host = second(torchdiffeq.odeint, PROBLEMS[name], **kwargs)
    ours = second(odeint_adjoint, PROBLEMS[name], adjoint_method="aca", adjoint_options={"checkpoints": 3}, **kwargs)
    assert distance(ours, host) <= 1e-10


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_potential_whose_gradient_in_a_parameter_is_below_the_least_number(dtype):
    """No sign of cotangents that are clipped, though no multiple of it is exact."""
    a, b = (torch.tensor(x, dtype=dtype, requires_grad=True) for x in (0.7, 1.5))
    least = torch.finfo(dtype).tiny / 100

    def func(t, y):
        y = y if y.requires_grad else y.detach().requires_grad_()
        with torch.enable_grad():
            return -torch.autograd.grad((a * y.square() / 2 + least * b * y).sum(), y, create_graph=True)[0]

    def solved(odeint, **kwargs):
        y0, t = torch.tensor([1.3, -0.2], dtype=dtype, requires_grad=True), torch.tensor([0.0, 1.0], dtype=dtype)
        ys = odeint(func, y0, t, method="rk4", **kwargs)
        first = torch.autograd.grad(ys[-1].square().sum(), (y0, a, b), create_graph=True)
        return torch.autograd.grad(sum(x.sum() for x in first), (y0, a))

    host, ours = solved(torchdiffeq.odeint), solved(odeint_adjoint, adjoint_method="aca")
    assert distance([x.double() for x in ours], [x.double() for x in host]) <= 50 * torch.finfo(dtype).eps


def test_a_hessian_of_a_closed_form():
    """dz/dt = αz, L = z(T)²: the second derivatives in z0, α and T."""

    def loss(inputs):
        z0, alpha, end = inputs
        t = torch.stack([torch.zeros_like(end), end])
        settings = {"rtol": 1e-12, "atol": 1e-12, "adjoint_method": "aca", "adjoint_params": (alpha,)}
        return odeint_adjoint(lambda t, z: alpha * z, z0, t, **settings)[-1] ** 2

    z, a, T = inputs = torch.tensor([1.3, 0.8, 2.0], dtype=torch.float64)
    square = z**2 * torch.exp(2 * a * T)
    expected = square * torch.stack(
        [
            torch.stack([2 / z**2, 4 * T / z, 4 * a / z]),
            torch.stack([4 * T / z, 4 * T**2, 2 + 4 * a * T]),
            torch.stack([4 * a / z, 2 + 4 * a * T, 4 * a**2]),
        ]
    )
    found = torch.autograd.functional.hessian(loss, inputs)
    error = (found / expected - 1).abs()
    # Twice in T is the curvature of the host's quartic between its steps, which is less accurate than the solver.
    assert error[2, 2] <= 1e-6
    error[2, 2] = 0
    assert error.max() <= 1e-9


def test_a_training_step_with_a_gradient_penalty():
    """A penalty on the gradient in the initial state, as for Lipschitz critics, differentiated in the parameters."""

    def step(odeint, **kwargs):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()
        func = Wrapped(net)
        y0 = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
        ys = odeint(func, y0, torch.tensor([0.0, 1.0]).double(), rtol=1e-5, options={"first_step": 0.1}, **kwargs)
        (slope,) = torch.autograd.grad(ys[-1].sum(), y0, create_graph=True)
        (ys[-1].mean() + (slope.norm(dim=1) - 1).square().mean()).backward()
        return [p.grad for p in net.parameters()]

    assert distance(step(odeint_adjoint, adjoint_method="aca"), step(torchdiffeq.odeint)) <= 1e-10


class Wrapped(torch.nn.Module):
    """A network as a field."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, t, y):
        return self.net(y) * torch.cos(t)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("method", ["dopri5", "rk4", "explicit_adams"])
def test_an_initial_state_and_times_that_depend_on_a_parameter(method, create_graph):
    """What a parameter gains through y0, or through the times, counts once."""

    def gradients(odeint, **kwargs):
        w = torch.tensor([0.7, -0.4], dtype=torch.float64, requires_grad=True)
        options = {"first_step": 0.1} if method == "dopri5" else {"step_size": 0.1}
        t = torch.stack([w[0] - w[0].detach(), 1 + w[1] ** 2])
        ys = odeint(lambda t, y: w * y.cos(), torch.outer(w, w), t, method=method, options=options, **kwargs)
        (first,) = torch.autograd.grad(ys[-1].square().sum(), w, create_graph=create_graph)
        return (first, *torch.autograd.grad(first.square().sum(), w)) if create_graph else (first,)

    def ours(func, y0, t, **kwargs):
        (w,) = (cell.cell_contents for cell in func.__closure__)
        return odeint_adjoint(func, y0, t, adjoint_method="aca", adjoint_params=(w,), **kwargs)

    assert distance(gradients(ours), gradients(torchdiffeq.odeint)) <= 1e-12


def test_a_parameter_given_twice_counts_once():
    w, y0 = (torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in (0.5, 1.0))
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    call = {"adjoint_method": "aca", "rtol": 1e-9, "atol": 1e-9}
    ys = odeint_adjoint(lambda t, y: w * y, y0, t, adjoint_params=(w, w), **call)
    (found,) = torch.autograd.grad(ys[-1].sum(), w)
    assert torch.allclose(found, w.detach().exp(), rtol=1e-6)


def test_solves_inside_of_a_func():
    """Each step of the outer solve pulls through the inner ones before it once, not once for each step after it."""
    counts = {}

    def second(odeint, steps, **call):
        w, calls = torch.tensor(0.7, dtype=torch.float64, requires_grad=True), []
        t, span = torch.linspace(0, 1, steps + 1, dtype=torch.float64), torch.tensor([0.0, 0.1], dtype=torch.float64)

        def inner(t, y):
            calls.append(t)
            return -w * y

        def outer(t, y):
            return -w * odeint(inner, y, span, method="euler", **call)[-1]

        ys = odeint(outer, torch.ones(2, dtype=torch.float64), t, method="euler", **call)
        (first,) = torch.autograd.grad(ys[-1].square().sum(), w, create_graph=True)
        counts[steps] = len(calls)
        return [first.detach(), torch.autograd.grad(first, w)[0]]

    for steps in (3, 6):
        assert distance(second(torchdiffeq.odeint, steps), second(odeint_adjoint, steps, adjoint_method="aca")) < 1e-12
    assert counts[6] <= 3 * counts[3]
