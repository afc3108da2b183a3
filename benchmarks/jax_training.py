"""The training in JAX: diffrax's own example of a neural CDE, which tells clockwise spirals from the others."""

import functools
import statistics
import time
from typing import Any

import diffrax
import numpy as np

from benchmarks import meters, training
from benchmarks.jax_programs import adaptive
from benchmarks.measurements import Cells, Scope
from benchmarks.tasks import data
from benchmarks.tasks.jax_models import Model
from benchmarks.tasks.measure import Gradient
from benchmarks.ways import ADAPTIVE, DEFAULT, REPLAY
from steptape.jax import AdaptiveCheckpointAdjoint, QuadratureAdjoint, SeminormAdjoint

# Back-propagation first; it is exact, which the default is not at every number of steps.
ADJOINTS: dict[str, diffrax.AbstractAdjoint] = {
    "DirectAdjoint()": diffrax.DirectAdjoint(),
    DEFAULT: diffrax.RecursiveCheckpointAdjoint(),
    "BacksolveAdjoint()": diffrax.BacksolveAdjoint(),
    "SeminormAdjoint()": SeminormAdjoint(),
    REPLAY: AdaptiveCheckpointAdjoint(),
    f"{ADAPTIVE}(checkpoints=8)": AdaptiveCheckpointAdjoint(checkpoints=8),
    "QuadratureAdjoint()": QuadratureAdjoint(),
}
TOLERANCE = (1e-3, 1e-6)
STEPS = 200


class _Adjoint(Model):
    """The task's model by one of the adjoints, compiled."""

    def __init__(self, task: data.Task, way: str):
        super().__init__(task, way)
        start = time.process_time()
        inputs = task.weights(), next(task.batches(1)), TOLERANCE, False
        self._program = self._program.lower(*inputs).compile()
        self.compiling = time.process_time() - start
        self.temporary = meters.temporary(self._program)

    def how(self, rtol: Any, atol: Any) -> dict[str, Any]:
        """The adjoint, and steps that end at the spline's knots: rounding grows a thousandfold in a step across one."""
        steps = adaptive(rtol, atol)["stepsize_controller"]
        clipped = diffrax.ClipStepSizeController(steps, jump_ts=self.task.times[1:-1])
        return {"adjoint": ADJOINTS[self.method], "stepsize_controller": clipped}


def _model(model: _Adjoint, seed: int) -> training.Model:
    """A compiled model with a seed's weights and batches."""
    weights, task = model.task.weights(seed), model.task

    def gradient(vector: np.ndarray, batch: data.Arrays) -> Gradient:
        return model.gradient(data.shaped(vector, weights), batch, TOLERANCE)

    def count(vector: np.ndarray, batch: data.Arrays) -> int:
        found = model.count(data.shaped(vector, weights), batch, TOLERANCE)
        return found.forward + found.backward

    def held_out(vector: np.ndarray) -> float:
        return statistics.mean(gradient(vector, batch).loss for batch in task.test_batches())

    batches, temporary = list(task.batches(STEPS, seed)), model.temporary
    start = data.flat(weights)
    return training.Model(start, batches, gradient, count, held_out, lambda vector: temporary, model.compiling)


def cells(scope: Scope) -> Cells:
    task = data.cde(False)
    compiled = functools.lru_cache(functools.partial(_Adjoint, task))
    plan = training.Plan(
        "a neural CDE of dimension 16, width 32, on 256 spirals of 10 points, batch 64; Dopri5, steps to each knot, "
        "tolerances 1e-3, 1e-6",
        "cross-entropy of 256 other spirals",
        lambda seed: {way: _model(compiled(way), seed) for way in ADJOINTS},
        STEPS,
        0.003,
    )
    return training.cells({"neural CDE": plan}, scope)
