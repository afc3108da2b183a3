"""What the tests of the PyTorch half share: a problem as a module, its gradients, and their distance."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from steptape.shared_tests.oracles.distance import distance
from steptape.shared_tests.problems.problems import Problem

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
ADAMS = ("explicit_adams", "implicit_adams", "fixed_adams")
FIXED_GRID = ("euler", "midpoint", "heun2", "heun3", "rk4")


class TakesNoBatch(torch.autograd.Function):
    """The identity, whose backward pass reads a number of its cotangent, which a batch of them does not have."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return cotangent if cotangent.sum().item() else cotangent * 1.0


def gradients_of(loss: Tensor, wrt: Any, second: bool) -> Any:
    """Of a loss, or of its gradient's own sum of squares; None for what is not used."""
    found = torch.autograd.grad(loss, wrt, allow_unused=True, create_graph=second)
    if not second:
        return found
    return torch.autograd.grad(sum(x.square().sum() for x in found if x is not None), wrt, allow_unused=True)


def assert_same(found: Any, expected: Any, tolerance: float = 1e-12) -> None:
    """Gradients are equal, and None where back-propagation's are."""
    assert [x is None for x in found] == [x is None for x in expected]
    used = [(x, y) for x, y in zip(found, expected, strict=True) if x is not None]
    assert distance(*zip(*used, strict=True)) <= tolerance


class Module(torch.nn.Module):
    """A shared problem's field with its parameters, counting its evaluations."""

    def __init__(self, problem: Problem):
        super().__init__()
        self.field = problem.field
        self.params = torch.nn.Parameter(torch.tensor(problem.params, dtype=torch.float64))
        self.evaluations = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.evaluations += 1
        return self.field(t, y, self.params)


class Solved(NamedTuple):
    """A solution, and the gradients of its loss in (y0, t, *parameters)."""

    solution: Tensor
    gradients: tuple[Tensor, ...]


def differentiate(odeint: Any, problem: Problem, **kwargs: Any) -> Solved:
    """Solve a shared problem with ``odeint`` and back-propagate its loss."""
    func = Module(problem)
    y0 = torch.tensor(problem.y0, dtype=torch.float64, requires_grad=True)
    t = torch.tensor(problem.times, dtype=torch.float64, requires_grad=True)
    ys = odeint(func, y0, t, **kwargs)
    return Solved(ys, torch.autograd.grad(problem.loss(ys[1:]), (y0, t, func.params)))
