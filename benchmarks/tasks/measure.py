"""One cell of the table: a short training run by every method at one tolerance, in the framework at hand."""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.tasks.data import Task, flat, shaped

# The quadrature adjoint solves for a cotangent whose largest entry is 1, the hosts for that of a mean over n examples:
# with n times the absolute tolerance it is held to the same.
MATCHED = "quadrature, atol x n"
METHODS = ("default", "seminorm", "quadrature", MATCHED, "aca")


@dataclasses.dataclass(frozen=True)
class Gradient:
    """A loss, its gradient, and the field's evaluations forward and backward.

    ``pullbacks``: how many of the backward ones were pulled back to the parameters, where that is known.
    """

    loss: float
    vector: np.ndarray
    forward: int = 0
    backward: int = 0
    pullbacks: int | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """One method in one cell. Evaluations are totals over the training run.

    ``seconds``: of processor time, the median of a gradient on the first batch. ``error``: of that gradient, relative,
    against a tight reference. ``loss``: of the last batch; ``score``: on the test set.
    """

    backend: str
    task: str
    rtol: float
    atol: float
    method: str
    parameters: int
    channels: int
    steps: int
    measure: str = ""
    forward: int = 0
    backward: int = 0
    pullbacks: int | None = None
    seconds: float = 0
    error: float = 0
    loss: float = 0
    score: float = 0
    failed: str = ""

    def run(self) -> tuple[str, str, int]:
        """What it belongs to: the framework, the task and its length."""
        return self.backend, self.task, self.steps


def cell(
    backend: str,
    task: Task,
    models: dict[str, Any],
    reference: np.ndarray,
    tolerance: tuple[float, float],
    steps: int,
    rounds: int,
    note: Callable[[str], None],
) -> list[Row]:
    """Train by every method, then time them in rounds of all of them."""
    rows: dict[str, Row] = {}
    for method, model in models.items():
        blank = Row(backend, task.name, *tolerance, method, task.parameters(), task.channels(), steps, task.score)
        try:
            rows[method] = _trained(blank, task, model, reference, tolerance)
        except Exception as error:
            rows[method] = dataclasses.replace(blank, failed=f"{type(error).__name__}: {error}".splitlines()[0][:200])
        row = rows[method]
        note(f"{backend} {task.name} {tolerance[0]:g}: {method} {row.failed or f'{row.forward} + {row.backward}'}")
    able = {method: model for method, model in models.items() if not rows[method].failed}
    seconds = _times(task, able, tolerance, rounds)
    return [dataclasses.replace(row, seconds=seconds.get(method, 0)) for method, row in rows.items()]


def _trained(blank: Row, task: Task, model: Any, reference: np.ndarray, tolerance: tuple[float, float]) -> Row:
    weights = task.weights()
    adam = Adam(flat(weights), task.rate)
    found = []
    for batch in task.batches(blank.steps):
        gradient = model.count(weights, batch, tolerance)
        found.append(gradient)
        weights = shaped(adam.step(gradient.vector), weights)
    pullbacks = [g.pullbacks for g in found]
    return dataclasses.replace(
        blank,
        forward=sum(g.forward for g in found),
        backward=sum(g.backward for g in found),
        pullbacks=None if None in pullbacks else sum(pullbacks),
        error=float(np.linalg.norm(found[0].vector - reference) / np.linalg.norm(reference)),
        loss=found[-1].loss,
        score=statistics.mean(model.score(weights, batch, tolerance) for batch in task.test_batches()),
    )


def _times(task: Task, models: dict[str, Any], tolerance: tuple[float, float], rounds: int) -> dict[str, float]:
    weights, batch = task.weights(), next(task.batches(1))
    times: dict[str, list[float]] = {method: [] for method in models}
    for n in range(rounds + 1):
        for method, model in models.items():
            gc.collect()
            start = time.process_time()
            model.gradient(weights, batch, tolerance)
            if n > 0:  # the first round warms up, or compiles
                times[method].append(time.process_time() - start)
    return {method: statistics.median(found) for method, found in times.items()}


class Adam:
    """Kingma and Ba's optimiser on a vector."""

    def __init__(self, vector: np.ndarray, rate: float):
        self._vector, self._rate = vector, rate
        self._mean = self._square = np.zeros_like(vector)
        self._count = 0

    def step(self, gradient: np.ndarray) -> np.ndarray:
        """The vector, moved."""
        self._count += 1
        self._mean = 0.9 * self._mean + 0.1 * gradient
        self._square = 0.999 * self._square + 0.001 * gradient**2
        mean, square = self._mean / (1 - 0.9**self._count), self._square / (1 - 0.999**self._count)
        self._vector = self._vector - self._rate * mean / (np.sqrt(square) + 1e-8)
        return self._vector
