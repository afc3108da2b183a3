"""A solve in a compiled model, and where the model is to be one graph, which it cannot be."""

import inspect

import pytest
import torch
import torchdiffeq

from steptape.shared_tests.oracles.distance import distance
from steptape.torch import install, odeint_adjoint, record_solves

T = torch.tensor([0.0, 1.0], dtype=torch.float64)
RK4 = {"method": "rk4", "options": {"step_size": 0.25}}


class Model(torch.nn.Module):
    def __init__(self, solve):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh()).double()
        self.func = Field(self.net)
        self.solve = solve

    def forward(self, y):
        return self.solve(self.func, 2 * y, T, **RK4)[-1].square()


class Field(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, t, y):
        return self.net(y)


def named(*args, **kwargs):
    return odeint_adjoint(*args, **kwargs, adjoint_method="aca")


def unnamed(*args, **kwargs):
    return torchdiffeq.odeint_adjoint(*args, **kwargs)


def plain(*args, **kwargs):
    return torchdiffeq.odeint(*args, **kwargs)


@pytest.fixture(autouse=True)
def _compiled_anew():
    torch.compiler.reset()
    with install(default="aca", override=True):
        yield
    torch.compiler.reset()


def gradient(model, called):
    called(torch.ones(3, 2, dtype=torch.float64)).sum().backward()
    return [x.grad for x in model.net.parameters()]


@pytest.mark.parametrize("solve", [named, unnamed, plain])
def test_a_compiled_model(solve):
    expected, model = Model(named), Model(solve)
    with record_solves() as solves:
        found = gradient(model, torch.compile(model, backend="eager"))
    assert distance(found, gradient(expected, expected)) <= 1e-12
    assert len(solves) == 1


@pytest.mark.skipif(
    "reason" not in inspect.signature(torch.compiler.disable).parameters, reason="this torch says nothing of ours"
)
@pytest.mark.parametrize("solve", [named, unnamed, plain])
def test_a_model_in_one_graph_is_refused_with_the_ways_out(solve):
    model = Model(solve)
    with pytest.raises(RuntimeError, match=r"steps by the values of the state.*Leave out fullgraph.*func.compile"):
        gradient(model, torch.compile(model, backend="eager", fullgraph=True))


def test_the_parts_of_a_model_alone():
    model, expected = Model(named), Model(named)
    model.func.compile(backend="eager")
    assert distance(gradient(model, model), gradient(expected, expected)) <= 1e-12
