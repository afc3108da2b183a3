"""The cells in PyTorch: torchdiffeq, steptape and two peers."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torchdiffeq
from torch import Tensor

import steptape.torch
from benchmarks import peers
from benchmarks.curves import plan
from benchmarks.curves.cases import STEP, Case
from benchmarks.curves.measured import measured
from benchmarks.envelope import Row, Rows
from benchmarks.fields import Problem
from benchmarks.measurements import Cells, Scope
from benchmarks.meters import in_use

BACKPROP, ADJOINT, SEMINORM, ACA, QUADRATURE = (
    "back-propagation",
    "adjoint",
    "adjoint, seminorm",
    "steptape ACA",
    "steptape quadrature",
)
_LIMIT = 100_000  # evaluations, of which the longest solve that is any use takes a tenth
Solve = Callable[[Problem], Tensor]


class Field(torch.nn.Module):
    """A case's field with its parameters, which counts its evaluations and gives up after too many of them."""

    def __init__(self, case: Case, limit: int, on_step: str = "callback_accept_step"):
        super().__init__()
        self._field, self._limit = case.field, limit
        self.values = [torch.nn.Parameter(torch.tensor(value)) for value in case.params]
        for i, value in enumerate(self.values):
            self.register_parameter(f"p{i}", value)
        self.counts = {"evaluations": 0, "accepted": 0}
        setattr(self, on_step, self._count_step)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope at ``y``, (batch, dim)."""
        self.counts["evaluations"] += 1
        if self.counts["evaluations"] > self._limit:
            raise RuntimeError(f"gave up after {self._limit} evaluations")
        return self._field(t, y, self.values)

    def _count_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        self.counts["accepted"] += 1


def cells(scope: Scope) -> Cells:
    """Those of the plan."""
    return plan.cells(Torch(scope.quick), scope)


class Torch:
    """torchdiffeq's ways, ours and the peers'; by Dormand and Prince's method unless a cell says otherwise."""

    def __init__(self, quick: bool):
        # What is there already need not be searched for garbage before each measurement.
        gc.freeze()
        self.tolerances: Sequence[float] = (1e-3, 1e-7) if quick else tuple(10.0**-i for i in range(3, 10))
        self.precision_ways: Sequence[str] = tuple(_PRECISION)
        self.scaling_ways: Sequence[str] = tuple(_SCALING)

    def precision(self, case: Case, tolerance: float, ways: Sequence[str], rounds: int) -> Rows:
        """Every way at one tolerance."""
        problem = _problem(case, tolerance, _LIMIT)
        return measured({way: functools.partial(_gradient, case, problem, _PRECISION[way]) for way in ways}, rounds)

    def scaling(self, case: Case, axis: str, steps: int, ways: Sequence[str], rounds: int) -> Rows:
        """Every way, with so many steps of equal size."""
        runs = {}
        for way in ways:
            # Quadrature needs a dense output, which fixed steps have not.
            on_step, settings = _FIXED if axis == "steps" and way != QUADRATURE else _LIMITED
            solve = functools.partial(_SCALING[way], settings=settings)
            runs[way] = functools.partial(_gradient, case, _problem(case, 1e-3, 1000 * steps, on_step), solve)
        return measured(runs, rounds)


# Two ways to steps of one size, and what torchdiffeq calls after each.
_FIXED: tuple[str, dict[str, Any]] = "callback_step", {"method": "rk4", "options": {"step_size": STEP}}
_LIMITED: tuple[str, dict[str, Any]] = (
    "callback_accept_step",
    {"method": "dopri5", "rtol": 1e-3, "atol": 1e-3, "options": {"first_step": STEP, "max_step": STEP}},
)


def _problem(case: Case, tolerance: float, limit: int, on_step: str = "callback_accept_step") -> Problem:
    field: Any = Field(case, limit, on_step)
    y0 = torch.tensor(case.y0, requires_grad=True)
    return Problem(field, y0, torch.tensor(case.times, dtype=torch.float64), tolerance)


def _solved(problem: Problem, solver: Callable[..., Tensor], settings: dict[str, Any] | None = None) -> Tensor:
    tolerance = problem.tolerance
    settings = settings or {"method": "dopri5", "rtol": tolerance, "atol": tolerance}
    return solver(problem.field, problem.y0, problem.t, **settings)


def _ours(method: str, **options: Any) -> Callable[..., Tensor]:
    solver = functools.partial(steptape.torch.odeint_adjoint, adjoint_method=method, adjoint_options=options or None)
    return functools.partial(_solved, solver=solver)


def _peer(name: str) -> Solve:
    return next(method.solve for method in peers.METHODS if method.name == name)


_PRECISION: dict[str, Solve] = {
    BACKPROP: _peer(peers.HOST),
    ADJOINT: _peer(peers.HOST_ADJOINT),
    SEMINORM: _peer(f"{peers.HOST_ADJOINT}, seminorm"),
    "zuko": _peer("zuko"),
    "torchode, autograd": _peer("torchode, autograd"),
    ACA: _peer(peers.OURS),
    f"{ACA}, 16 checkpoints": _ours("aca", checkpoints=16),
    QUADRATURE: _ours("quadrature"),
}
_SCALING: dict[str, Callable[..., Tensor]] = {
    BACKPROP: functools.partial(_solved, solver=torchdiffeq.odeint),
    ADJOINT: functools.partial(_solved, solver=torchdiffeq.odeint_adjoint),
    ACA: _ours("aca"),
    f"{ACA}, 32 checkpoints": _ours("aca", checkpoints=32),
    QUADRATURE: _ours("quadrature"),
}


def _gradient(case: Case, problem: Problem, solve: Solve) -> Row:
    """One forward and one backward pass, measured."""
    counts = problem.field.counts
    counts.update(evaluations=0, accepted=0)
    gc.collect()
    base, start = in_use(), time.process_time()
    loss = case.loss(solve(problem)[1:])
    forward = time.process_time() - start
    gc.collect()
    held, evaluations, accepted = in_use(), counts["evaluations"], counts["accepted"]
    start = time.process_time()
    found = torch.autograd.grad(loss, problem.inputs())
    backward = time.process_time() - start
    gradient = torch.cat([part.flatten() for part in found]).numpy()
    return {
        "seconds": forward + backward,
        "error": case.error(gradient.astype(np.float64)),
        "held": None if held is None or base is None or held < base else held - base,
        "evaluations": (evaluations, counts["evaluations"] - evaluations),
        "accepted": accepted,
    }
