"""The fault of diffrax: see ``benchmarks.faults``."""

import functools

import diffrax
import jax

from benchmarks.envelope import Rows
from benchmarks.faults import Fault
from benchmarks.measurements import Cells, Scope
from benchmarks.ways import DEFAULT
from steptape.jax import AdaptiveCheckpointAdjoint

_RATE = 0.7
# Steps and outputs: each output is at the end of a step.
SOLVES = ((198, 100), (130, 11), (1000, 11))


def cells(scope: Scope) -> Cells:
    return {"constant steps": _cell}


def right(steps: int, outputs: int) -> float:
    """The derivative in p of the sum of (1 - p h)^(2 k) over the outputs, each after k steps of size h."""
    h, each = 2.0 / steps, steps // (outputs - 1)
    return sum(-2 * k * h * (1 - _RATE * h) ** (2 * k - 1) for k in range(0, steps + 1, each))


def _cell() -> Rows:
    adjoints = diffrax.RecursiveCheckpointAdjoint(), AdaptiveCheckpointAdjoint()
    fault = Fault("equinox-checkpointed-loop.py", f"diffrax `{DEFAULT}`", "closed form of the steps", *adjoints)
    squares = fault.script()["squares"]

    def gradient(adjoint: diffrax.AbstractAdjoint, steps: int, outputs: int) -> float:
        return float(jax.jit(jax.grad(functools.partial(squares, way=adjoint, steps=steps, outputs=outputs)))(_RATE))

    return [
        fault.row(
            f"dy/dt = -p y, {steps} steps of Euler's method, {outputs} outputs",
            right(steps, outputs),
            functools.partial(gradient, steps=steps, outputs=outputs),
        )
        for steps, outputs in SOLVES
    ]
