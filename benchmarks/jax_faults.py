"""The fault of diffrax: see ``benchmarks.faults``."""

from __future__ import annotations

import functools
from typing import Any

import diffrax
import jax

from benchmarks.envelope import Rows
from benchmarks.faults import row, script
from benchmarks.measurements import Cells, Scope
from steptape.jax import AdaptiveCheckpointAdjoint

_RATE = 0.7
# Steps and outputs: each output is at the end of a step.
SOLVES = ((198, 100), (130, 11), (1000, 11))


def cells(scope: Scope) -> Cells:
    """The one fault."""
    return {"constant steps": _cell}


def right(steps: int, outputs: int) -> float:
    """The derivative in p of the sum of (1 - p h)^(2 k) over the outputs, each after k steps of size h."""
    h, each = 2.0 / steps, steps // (outputs - 1)
    return sum(-2 * k * h * (1 - _RATE * h) ** (2 * k - 1) for k in range(0, steps + 1, each))


def _cell() -> Rows:
    file = "equinox-checkpointed-loop.py"
    squares = script(file)["squares"]

    def gradient(adjoint: diffrax.AbstractAdjoint, **solve: Any) -> float:
        return float(jax.jit(jax.grad(functools.partial(squares, way=adjoint, **solve)))(_RATE))

    return [
        row(
            file,
            "diffrax `RecursiveCheckpointAdjoint()`",
            f"dy/dt = -p y, {steps} steps of Euler's method, {outputs} outputs",
            right(steps, outputs),
            "closed form of the steps",
            functools.partial(gradient, diffrax.RecursiveCheckpointAdjoint(), steps=steps, outputs=outputs),
            functools.partial(gradient, AdaptiveCheckpointAdjoint(), steps=steps, outputs=outputs),
        )
        for steps, outputs in SOLVES
    ]
