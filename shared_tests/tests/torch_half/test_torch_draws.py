"""Random numbers that func draws elsewhere than from torch: a replay draws the same, and the program the host's.

Queues, counters and sets of plain numbers, which evaluations advance, are with graphs as in the host's solve.
"""

import collections
import random

import numpy as np
import pytest
import torch
import torchdiffeq
import torchsde

from steptape.shared_tests.oracles.distance import distance
from steptape.torch import odeint_adjoint, sdeint_adjoint

T = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
KEEPS = [{}, {"checkpoints": 2}, {"graph": "stage"}, {"memory": "graphs"}]


class Torch:
    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def random(self):
        return float(torch.rand((), generator=self.generator))


class Queue:
    def __init__(self):
        self.numbers = collections.deque([0.9, 1.0, 1.2, 0.7])

    def random(self):
        self.numbers.rotate(1)
        return self.numbers[0]


class Tally:
    def __init__(self):
        self.calls = collections.Counter()

    def random(self):
        self.calls["random"] += 1
        return 0.5 + self.calls["random"] % 5 / 5


class Marks:
    def __init__(self):
        self.seen = set()

    def random(self):
        self.seen.add(len(self.seen) % 7)
        return 0.5 + len(self.seen) / 7


DRAWS = {
    "Python": lambda: random,
    "NumPy": lambda: np.random,
    "one of Python's": lambda: random.Random(0),
    "one of NumPy's": lambda: np.random.default_rng(0),
    "an old one of NumPy's": lambda: np.random.RandomState(0),
    "another algorithm of NumPy's": lambda: np.random.Generator(np.random.MT19937(0)),
    "one of torch's": Torch,
}


QUEUES = {"a queue": Queue, "a counter": Tally, "a set": Marks}


class Noisy(torch.nn.Module):
    """A field with multiplicative noise; ``last``: of zeros, no value tells of the noise."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, source, last):
        super().__init__()
        random.seed(0)
        np.random.seed(0)
        self.source = {**DRAWS, **QUEUES}[source]()
        self.w = torch.nn.Parameter(torch.linspace(0.5, 1, 3, dtype=torch.float64))
        self.last = torch.nn.Parameter(torch.full((3,), last, dtype=torch.float64))

    def forward(self, t, y):
        return self.last * torch.sin(self.w * self.source.random() * y)

    f = forward

    def g(self, t, y):
        return 0.1 * self.source.random() * y


def gradients(solve, source, last, second=False):
    """The solution, the gradients, and what is drawn after them."""
    func, y0 = Noisy(source, last), torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3).requires_grad_()
    ys, inputs = solve(func, y0), (y0, *func.parameters())
    found = torch.autograd.grad(ys.square().sum(), inputs, create_graph=second)
    if second:
        found = (*found, *torch.autograd.grad(sum(x.square().sum() for x in found), inputs))
    return ys, found, func.source.random()


def assert_the_hosts(found, expected):
    assert torch.equal(found[0], expected[0])
    assert distance(found[1], expected[1]) <= 1e-12
    assert found[2] == expected[2]


@pytest.mark.parametrize("last", [1.0, 0.0], ids=["seen in values", "behind zeros"])
@pytest.mark.parametrize("keep", KEEPS, ids=str)
@pytest.mark.parametrize("source", DRAWS)
def test_ode(source, keep, last):
    def solved(odeint, **aca):
        call = {"method": "rk4", "options": {"step_size": 0.125}, **aca}
        return gradients(lambda func, y0: odeint(func, y0, T, **call), source, last)

    assert_the_hosts(solved(odeint_adjoint, adjoint_method="aca", adjoint_options=keep), solved(torchdiffeq.odeint))


@pytest.mark.parametrize("source", QUEUES)
def test_queues(source):
    test_ode(source, {"memory": "graphs"}, 1.0)
    test_sde(source, "euler", {"memory": "graphs"})


@pytest.mark.parametrize("method", ["explicit_adams", "dopri5"])
def test_ode_of_steps_that_depend_on_others(method):
    def solved(odeint, **aca):
        call = {"method": method, "options": {"first_step" if method == "dopri5" else "step_size": 0.125}, **aca}
        loose = {"rtol": 1e3, "atol": 1e3}  # No step is rejected, of which the noise would make many.
        return gradients(lambda func, y0: odeint(func, y0, T, **loose, **call), "NumPy", 1.0)

    assert_the_hosts(solved(odeint_adjoint, adjoint_method="aca"), solved(torchdiffeq.odeint))


def test_second_derivatives():
    def solved(odeint, **aca):
        call = {"method": "rk4", "options": {"step_size": 0.25}, **aca}
        return gradients(lambda func, y0: odeint(func, y0, T, **call), "Python", 1.0, second=True)

    assert_the_hosts(solved(odeint_adjoint, adjoint_method="aca"), solved(torchdiffeq.odeint))


@pytest.mark.parametrize("keep", [{}, {"memory": "graphs"}], ids=str)
@pytest.mark.parametrize("method", ["euler", "milstein"])
@pytest.mark.parametrize("source", ["Python", "one of NumPy's"])
def test_sde(source, method, keep):
    def solved(sdeint, **aca):
        def solve(sde, y0):
            bm = torchsde.BrownianInterval(0.0, 1.0, size=y0.shape, dtype=y0.dtype, entropy=3)
            return sdeint(sde, y0, T, bm=bm, method=method, dt=0.125, **aca)

        return gradients(solve, source, 1.0)

    assert_the_hosts(solved(sdeint_adjoint, adjoint_method="aca", adjoint_options=keep), solved(torchsde.sdeint))
