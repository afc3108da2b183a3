"""A cell of a task: a short training run by every method at one tolerance, in the framework at hand, a row a method.

Evaluations are totals over the training run. ``seconds``: of processor time, the median of a gradient on the first
batch. ``error``: of that gradient, relative, against a tight reference. ``loss``: of the last batch; ``score``: on the
test set.
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import timing
from benchmarks.envelope import Row, Rows
from benchmarks.measurements import Cells, Scope
from benchmarks.runner import note
from benchmarks.tasks.data import TASKS, Task, flat, shaped
from benchmarks.ways import TASK_WAYS

QUICK = ("cde", "cnf-moons")
Tolerance = tuple[float, float]


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


def cells(scope: Scope, model_of: Callable[[Task, str], Any]) -> Cells:
    """A cell a task and pair of tolerances; quick: two tasks at one pair, with few steps."""
    tasks = {name: TASKS[name](scope.paper) for name in (QUICK if scope.quick else TASKS)}
    # Of one task at a time, for all its tolerances: in JAX they are compiled programs.
    models = functools.lru_cache(maxsize=1)(lambda name: {way: model_of(tasks[name], way) for way in TASK_WAYS})
    return {
        f"{name} {pair[0]:g}": functools.partial(_cell, task, models, pair, scope)
        for name, task in tasks.items()
        for pair in task.tolerances[: 1 if scope.quick else None]
    }


def _cell(task: Task, models_of: Callable[[str], dict[str, Any]], pair: Tolerance, scope: Scope) -> Rows:
    """Train by every method, then time them in rounds of all of them."""
    steps, rounds = (3, 2) if scope.quick else (10, 21)
    models = models_of(task.name)
    file = scope.folder / f"tasks{'-paper' * scope.paper}-{task.name}.npy"
    reference = _reference(models["aca"], file)
    weights, batch = task.weights(), next(task.batches(1))
    rows: dict[str, Row] = {}
    for way, model in models.items():
        row = {"task": task.name, "rtol": pair[0], "atol": pair[1], "way": way, "steps": steps}
        row |= {"parameters": task.parameters(), "channels": task.channels(), "measure": task.score}
        try:
            rows[way] = row | _trained(task, model, reference, pair, steps)
        except Exception as error:
            rows[way] = row | {"without": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
            note(f"  {way}: {rows[way]['without']}")
    able = {way: model for way, model in models.items() if "without" not in rows[way]}
    # The first round warms up, or compiles.
    runs = {way: functools.partial(timing.timed, model.gradient, weights, batch, pair) for way, model in able.items()}
    for way, times in timing.race(runs, timing.Rounds(rounds)).items():
        rows[way]["seconds"] = timing.median(times)
    return list(rows.values())


def _reference(model: Any, file: Path) -> np.ndarray:
    """The gradient of the first batch to compare with, by the framework that comes to it first: both share it."""
    if not file.exists():
        np.save(file, model.reference(model.task.weights(), next(model.task.batches(1))))
    return np.load(file)


def _trained(task: Task, model: Any, reference: np.ndarray, tolerance: Tolerance, steps: int) -> Row:
    weights = task.weights()
    adam = Adam(flat(weights), task.rate)
    found = []
    for batch in task.batches(steps):
        gradient = model.count(weights, batch, tolerance)
        found.append(gradient)
        weights = shaped(adam.step(gradient.vector), weights)
    pullbacks = [g.pullbacks for g in found]
    return {
        "forward": sum(g.forward for g in found),
        "backward": sum(g.backward for g in found),
        "pullbacks": None if None in pullbacks else sum(pullbacks),
        "error": float(np.linalg.norm(found[0].vector - reference) / np.linalg.norm(reference)),
        "loss": found[-1].loss,
        "score": statistics.mean(model.score(weights, batch, tolerance) for batch in task.test_batches()),
    }


class Adam:
    """Kingma and Ba's optimiser on a vector."""

    def __init__(self, vector: np.ndarray, rate: float):
        self._vector, self._rate = vector, rate
        self._mean = self._square = np.zeros_like(vector)
        self._count = 0

    def step(self, gradient: np.ndarray) -> np.ndarray:
        self._count += 1
        self._mean = 0.9 * self._mean + 0.1 * gradient
        self._square = 0.999 * self._square + 0.001 * gradient**2
        mean, square = self._mean / (1 - 0.9**self._count), self._square / (1 - 0.999**self._count)
        self._vector = self._vector - self._rate * mean / (np.sqrt(square) + 1e-8)
        return self._vector
