"""torch.func: a solve inside its transforms, and a module that functional_call lends other parameters."""

import pytest
import torch
import torchdiffeq
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from steptape._errors import UnsupportedError
from steptape.shared_tests.oracles.distance import distance
from steptape.torch import install, odeint_adjoint, record_solves
from steptape_helpers.torch_solves import ADAMS, ADAPTIVE, FIXED_GRID

TIMES = torch.linspace(0, 1, 4, dtype=torch.float64)
Y0 = torch.tensor([[0.3, -1.2], [0.8, 0.1], [-0.4, 0.6]], dtype=torch.float64)


class Field(torch.nn.Module):
    """A small network of time and state."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.Tanh(), torch.nn.Linear(6, 2)).double()
        for p in self.parameters():
            torch.nn.init.normal_(p, std=0.5, generator=torch.Generator().manual_seed(p.numel()))

    def forward(self, t, y):
        return self.net(y) * (1 + t)


FIELD = Field()


@pytest.fixture(autouse=True)
def _own_random_numbers():
    with torch.random.fork_rng():
        yield


def options_of(method):
    return {"first_step": 0.15} if method in ADAPTIVE else {"step_size": 0.15}


def parameters():
    return {name: p.detach() for name, p in FIELD.named_parameters()}


def loss(odeint, method, params, y0, t, **kwargs):
    """A function of tensors alone, as torch.func likes it."""
    if odeint is odeint_adjoint:
        kwargs |= {"adjoint_method": "aca", "adjoint_params": tuple(params.values())}
    kwargs.setdefault("options", options_of(method))

    def func(t, y):
        return functional_call(FIELD, params, (t, y))

    return odeint(func, y0, t, rtol=1e-4, atol=1e-4, method=method, **kwargs)[1:].square().sum()


def expected(method, **kwargs):
    """By back-propagation through the host."""
    params = {name: p.requires_grad_() for name, p in parameters().items()}
    y0, t = Y0.clone().requires_grad_(), TIMES.clone().requires_grad_()
    value = loss(torchdiffeq.odeint, method, params, y0, t, **kwargs)
    return torch.autograd.grad(value, (*params.values(), y0, t))


@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED_GRID, *ADAMS])
def test_grad(method):
    def ours(params, y0, t):
        return loss(odeint_adjoint, method, params, y0, t)

    in_params, in_y0, in_t = grad(ours, argnums=(0, 1, 2))(parameters(), Y0, TIMES)
    assert distance((*in_params.values(), in_y0, in_t), expected(method)) <= 1e-12


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_perturbed_times(method):
    options = options_of(method) | ({"perturb": True} if method == "rk4" else {"jump_t": torch.tensor([0.4])})

    def ours(params, y0):
        return loss(odeint_adjoint, method, params, y0, TIMES, options=options)

    in_params, in_y0 = grad(ours, argnums=(0, 1))(parameters(), Y0)
    assert distance((*in_params.values(), in_y0), expected(method, options=options)[:-1]) <= 1e-12


@pytest.mark.parametrize("method", ["dopri5", "midpoint", "explicit_adams"])
def test_second_derivatives_in_every_order(method):
    def of(odeint):
        return lambda y: loss(odeint, method, parameters(), y, TIMES)

    ours = of(odeint_adjoint)
    reference = torch.autograd.functional.hessian(of(torchdiffeq.odeint), Y0)
    for found in (hessian(ours)(Y0), jacrev(jacrev(ours))(Y0), jacfwd(jacfwd(ours))(Y0)):
        assert distance([found], [reference]) <= 1e-12


def test_forward_mode_and_the_solution_to_the_bit():
    field = Field()

    def ours(y):
        return odeint_adjoint(field, y, TIMES, method="dopri5", options={"first_step": 0.1}, adjoint_method="aca")

    solution = torchdiffeq.odeint(field, Y0, TIMES, method="dopri5", options={"first_step": 0.1})
    v = torch.ones_like(Y0)
    ys, moved = jvp(ours, (Y0,), (v,))
    assert torch.equal(ys, solution)
    ys, pull = vjp(ours, Y0)
    assert torch.equal(ys, solution)
    w = torch.arange(solution.numel(), dtype=torch.float64).view_as(solution)
    assert torch.allclose((moved * w).sum(), (pull(w)[0] * v).sum(), rtol=1e-12)


def test_tuples_and_time_running_backward():
    def of(odeint, **kwargs):
        def value(a, b):
            ys = odeint(
                lambda t, y: (y[1] * t, -y[0].sin() + y[1] * t),
                (a, b),
                TIMES.flip(0),
                method="dopri5",
                options={"first_step": 0.1},
                **kwargs,
            )
            return ys[0][-1].square().sum() + ys[1][-1].sum()

        return value

    a, b = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)
    ours = of(odeint_adjoint, adjoint_method="aca", adjoint_params=())
    leaves = [x.clone().requires_grad_() for x in (a, b)]
    reference = torch.autograd.grad(of(torchdiffeq.odeint)(*leaves), leaves)
    assert distance(grad(ours, argnums=(0, 1))(a, b), reference) <= 1e-12


def test_dropout_inside_a_transform():
    def of(odeint, **kwargs):
        def value(y):
            torch.manual_seed(1)
            options = {"step_size": 0.1}
            ys = odeint(
                lambda t, y: torch.nn.functional.dropout(y.sin()), y, TIMES, method="rk4", options=options, **kwargs
            )
            return ys.square().sum()

        return value

    y0 = Y0.clone().requires_grad_()
    (reference,) = torch.autograd.grad(of(torchdiffeq.odeint)(y0), y0)
    ours = of(odeint_adjoint, adjoint_method="aca", adjoint_params=())
    assert distance([grad(ours)(Y0)], [reference]) <= 1e-12


def test_an_installed_solver_and_a_recording_inside_a_transform():
    def value(y):
        options = {"method": "dopri5", "first_step": 0.1, "adjoint_params": ()}
        return torchdiffeq.odeint(lambda t, y: -y * t, y, TIMES, method="aca", options=options)[-1].sum()

    with install(), record_solves() as solves:
        found = grad(value)(Y0)
    assert torch.allclose(found, torch.full_like(Y0, 0.5).neg().exp(), rtol=1e-6)
    assert not solves


def test_vmap_is_refused():
    def ours(y):
        return loss(odeint_adjoint, "rk4", parameters(), y, TIMES)

    for mapped in (vmap(ours), vmap(grad(ours))):
        with pytest.raises(
            UnsupportedError, match=r"vmap.*one state, not of a batch.*Make the batch a dimension of y0"
        ):
            mapped(torch.stack([Y0, Y0]))


def test_perturbed_adams_is_refused():
    options = {"step_size": 0.1, "perturb": True}
    with pytest.raises(UnsupportedError, match=r"torch.func.*'explicit_adams'.*'perturb': True.*Leave out 'perturb'"):
        grad(lambda y: loss(odeint_adjoint, "explicit_adams", parameters(), y, TIMES, options=options))(Y0)


class Model(torch.nn.Module):
    """A solve with a module for its field."""

    def __init__(self):
        super().__init__()
        self.field = Field()

    def forward(self, y0, odeint, **kwargs):
        return odeint(self.field, y0, TIMES, method="dopri5", options={"first_step": 0.1}, **kwargs)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1.1])
@pytest.mark.parametrize("create_graph", [False, True])
def test_functional_call(frozen, scale, create_graph):
    """The module has its own parameters again when the backward pass runs, of the same values even."""
    model = Model().requires_grad_(not frozen)
    params = {name: (p.detach() * scale).requires_grad_() for name, p in model.named_parameters()}
    own = list(model.parameters())

    def gradients(odeint, **kwargs):
        ys = functional_call(model, params, (Y0, odeint), kwargs)
        return torch.autograd.grad(ys.square().sum(), params.values(), create_graph=create_graph)

    found, reference = gradients(odeint_adjoint, adjoint_method="aca"), gradients(torchdiffeq.odeint)
    assert distance([g.detach() for g in found], [g.detach() for g in reference]) <= 1e-12
    assert all(a is b for a, b in zip(model.parameters(), own, strict=True))


def test_learning_to_learn():
    """Through an inner gradient step, as in MAML: the outer gradient in the first parameters."""
    model = Model()

    def outer(odeint, **kwargs):
        params = dict(model.named_parameters())
        inner = functional_call(model, params, (Y0, odeint), kwargs).square().sum()
        grads = torch.autograd.grad(inner, params.values(), create_graph=True)
        stepped = {name: p - 0.01 * g for (name, p), g in zip(params.items(), grads, strict=True)}
        value = functional_call(model, stepped, (Y0 + 1, odeint), kwargs).square().sum()
        return torch.autograd.grad(value, model.parameters())

    assert distance(outer(odeint_adjoint, adjoint_method="aca"), outer(torchdiffeq.odeint)) <= 1e-12


@pytest.mark.parametrize("options", [{}, {"checkpoints": 2}, {"graph": "stage"}, {"memory": "graphs"}], ids=str)
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_a_func_that_takes_derivatives_in_forward_mode(method, options):
    def gradient(odeint, **adjoint):
        weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        y0 = torch.ones(3, dtype=torch.float64, requires_grad=True)

        def func(t, y):
            with forward_ad.dual_level():
                dual = forward_ad.make_dual(y, torch.ones_like(y))
                return forward_ad.unpack_dual((weight * dual).sin()).tangent

        t = torch.linspace(0, 1, 3, dtype=torch.float64)
        step = {"first_step": 0.1} if method == "dopri5" else {"step_size": 0.1}
        ys = odeint(func, y0, t, method=method, options=step, **adjoint)
        return torch.autograd.grad(ys[-1].sum(), (y0, weight))

    found = gradient(odeint_adjoint, adjoint_method="aca", adjoint_options=options)
    assert distance(found, gradient(torchdiffeq.odeint)) <= 1e-12
