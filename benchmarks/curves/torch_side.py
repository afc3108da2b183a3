"""The cells in PyTorch: torchdiffeq, steptape and two peers."""

import functools
import gc
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torchdiffeq
from torch import Tensor

from benchmarks import peers
from benchmarks.curves import plan
from benchmarks.curves.cases import STEP, Case
from benchmarks.envelope import Row, Rows
from benchmarks.fields import Field, Problem
from benchmarks.measurements import Cells, Scope
from benchmarks.ways import BACKPROP, HOST, HOST_ADJOINT

ADJOINT, ACA, QUADRATURE = "adjoint", "steptape ACA", "steptape quadrature"
_LIMIT = 100_000  # evaluations, of which the longest solve that is any use takes a tenth
_PRECISION = {
    BACKPROP: peers.METHODS[HOST].solve,
    ADJOINT: peers.METHODS[HOST_ADJOINT].solve,
    "adjoint, seminorm": peers.METHODS[f"{HOST_ADJOINT}, seminorm"].solve,
    "zuko": peers.METHODS["zuko"].solve,
    "torchode, autograd": peers.METHODS["torchode, autograd"].solve,
    ACA: peers.ours(),
    f"{ACA}, 16 checkpoints": peers.ours(checkpoints=16),
    QUADRATURE: peers.ours("quadrature"),
}
_SCALING = {
    BACKPROP: torchdiffeq.odeint,
    ADJOINT: torchdiffeq.odeint_adjoint,
    ACA: peers.ours(),
    f"{ACA}, 32 checkpoints": peers.ours(checkpoints=32),
    QUADRATURE: peers.ours("quadrature"),
}
# Two ways to steps of one size.
_FIXED: dict[str, Any] = {"method": "rk4", "options": {"step_size": STEP}}
_LIMITED: dict[str, Any] = {"method": "dopri5", "rtol": 1e-3, "atol": 1e-3}
_LIMITED["options"] = {"first_step": STEP, "max_step": STEP}


def cells(scope: Scope) -> Cells:
    # What is there already need not be searched for garbage before each measurement.
    gc.freeze()
    # A field counts accepted and rejected steps, of which a grid has none.
    warnings.filterwarnings("ignore", message="Solver 'rk4' does not support callbacks")
    tolerances = (1e-3, 1e-7) if scope.quick else tuple(10.0**-i for i in range(3, 10))
    return plan.cells(plan.Framework(tolerances, tuple(_PRECISION), tuple(_SCALING), precision, scaling), scope)


def precision(case: Case, tolerance: float, ways: Sequence[str], rounds: int) -> Rows:
    problem = _problem(case, tolerance, _LIMIT)
    return plan.measured({way: functools.partial(_row, case, problem, _PRECISION[way]) for way in ways}, rounds)


def scaling(case: Case, axis: str, steps: int, ways: Sequence[str], rounds: int) -> Rows:
    """Every way, with so many steps of equal size."""
    runs = {}
    for way in ways:
        # Quadrature needs a dense output, which fixed steps have not.
        fixed, problem = axis == "steps" and way != QUADRATURE, _problem(case, 1e-3, 1000 * steps)
        if fixed:
            # What torchdiffeq calls after each of them.
            setattr(problem.field, "callback_step", problem.field.callback_accept_step)  # noqa: B010
        settings = _FIXED if fixed else _LIMITED
        runs[way] = functools.partial(_row, case, problem, _SCALING[way], **settings)
    return plan.measured(runs, rounds)


def _problem(case: Case, tolerance: float, limit: int) -> Problem:
    """With a field that gives up after too many evaluations."""
    values = [torch.nn.Parameter(torch.tensor(value)) for value in case.params]

    def slope(t: Tensor, y: Tensor) -> Tensor:
        if field.counts["evaluations"] > limit:
            raise RuntimeError(f"gave up after {limit} evaluations")
        return case.field(t, y, values)

    field = Field(slope, *values)
    y0 = torch.tensor(case.y0, requires_grad=True)
    return Problem(field, y0, torch.tensor(case.times, dtype=torch.float64), tolerance)


def _row(case: Case, problem: Problem, solve: Callable[..., Tensor], **settings: Any) -> Row:
    row, gradient = problem.measured(solve, lambda ys: case.loss(ys[1:]), **settings)
    del row["forward"], row["backward"]
    return {**row, "error": case.error(gradient.numpy().astype(np.float64))}
