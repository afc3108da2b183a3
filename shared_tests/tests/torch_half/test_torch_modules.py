"""A func that is no module has modules all the same: their buffers and lent tensors are those of the solve."""

import functools

import pytest
import torch
import torchdiffeq

from steptape.shared_tests.oracles.distance import distance
from steptape.torch import odeint_adjoint
from steptape.torch._autograd.modules import modules_of

T = torch.tensor([0.0, 1.0], dtype=torch.float64)
CALL = {"method": "rk4", "options": {"step_size": 0.25}}


class Model:
    def __init__(self, *layers):
        self.layers = [layer.double() for layer in layers]

    def field(self, t, y):
        for layer in self.layers:
            y = layer(y)
        return y.tanh()


def with_model(model, t, y):
    return model.field(t, y)


def funcs(model):
    """Ways to write a func of it."""
    net = torch.nn.Sequential(*model.layers)
    return {
        "bound method": model.field,
        "closure": lambda t, y: net(y).tanh(),
        "partial": functools.partial(with_model, model),
        "default": lambda t, y, net=net: net(y).tanh(),
    }


@pytest.mark.parametrize("kind", funcs(Model()))
@pytest.mark.parametrize("layer", ["batch norm", "spectral norm"])
def test_buffers_are_those_of_the_solve_and_change_once(kind, layer):
    def solved(solve, **call):
        torch.manual_seed(0)
        # Before a batch norm a bias has no gradient but rounding.
        linear = torch.nn.Linear(3, 3, bias=layer != "batch norm")
        if layer == "spectral norm":
            model = Model(torch.nn.utils.spectral_norm(linear), torch.nn.Linear(3, 3))
        else:
            model = Model(linear, torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 3))
        params = [p for part in model.layers for p in part.parameters()]
        y0 = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)
        more = {**call, "adjoint_params": params} if call else {}
        ys = solve(funcs(model)[kind], y0, T, **CALL, **more)
        gradients = torch.autograd.grad(ys[-1].square().sum(), params)
        return gradients, [b.clone() for part in model.layers for b in part.buffers()]

    gradients, buffers = solved(odeint_adjoint, adjoint_method="aca")
    expected, expected_buffers = solved(torchdiffeq.odeint)
    assert distance(gradients, expected) <= 1e-12
    assert all(torch.equal(*pair) for pair in zip(buffers, expected_buffers, strict=True))


@pytest.mark.parametrize("name", ["aca", "quadrature"])
@pytest.mark.parametrize("kind", ["bound method", "closure"])
def test_tensors_lent_to_its_modules(kind, name):
    class Solver(torch.nn.Module):
        def __init__(self, solve, **call):
            super().__init__()
            torch.manual_seed(0)
            self.net, self.solve, self.call = torch.nn.Linear(2, 2).double(), solve, call

        def field(self, t, y):
            return self.net(y)

        def forward(self, y):
            func = self.field if kind == "bound method" else lambda t, y: self.net(y)
            more = {"adjoint_params": tuple(self.net.parameters())} if self.call else {}
            settings = {"method": "dopri5", "rtol": 1e-9, "atol": 1e-9, "options": {"first_step": 0.1}}
            return self.solve(func, y, T, **settings, **self.call, **more)[-1]

    def gradients(model):
        model.requires_grad_(False)
        lent = {name: (x - 1e-3).requires_grad_() for name, x in model.named_parameters()}
        y = torch.func.functional_call(model, lent, (torch.ones(1, 2, dtype=torch.float64),))
        return torch.autograd.grad(y.square().sum(), tuple(lent.values()))

    found = gradients(Solver(odeint_adjoint, adjoint_method=name))
    assert distance(found, gradients(Solver(torchdiffeq.odeint))) <= (1e-12 if name == "aca" else 1e-7)


def test_which_modules_a_func_has():
    model = Model(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    assert all(modules_of(func) for func in funcs(model).values())
    assert modules_of(model.field) == model.layers
    assert modules_of(lambda t, y: y) == []


def test_parameters_frozen_between_the_passes():
    """As the two nets of a GAN are in turn."""

    def gradient(solve, **call):
        torch.manual_seed(0)
        net, y0 = torch.nn.Linear(2, 2).double(), torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
        y = solve(_Field(net), y0, T, **CALL, **call)
        net.requires_grad_(False)
        y[-1].square().sum().backward()
        assert not any(p.requires_grad or p.grad is not None for p in net.parameters())
        return [y0.grad]

    assert distance(gradient(odeint_adjoint, adjoint_method="aca"), gradient(torchdiffeq.odeint)) <= 1e-12


class _Field(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, t, y):
        return self.net(y)
