"""A model of each kind trained to the end by every way to a gradient: a cell a model and seed, a row a way.

All ways start from the same weights, see the same batches and step by the same optimiser, in float64; they take turns
step by step, so that what else the machine does falls on all alike. ``curve``: processor seconds of the training so
far, what was compiled included, and the loss on held-out data. ``evaluations``: of a gradient, both passes, the mean
over those at every fifth point. ``peak``: bytes that the last one takes. ``apart``: the largest relative
difference of the curve's losses from those of back-propagation, which is the first way; ``failed``: why it ended early.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import timing
from benchmarks.envelope import Row, Rows
from benchmarks.measurements import Cells, Scope
from benchmarks.tasks.measure import Adam, Gradient

POINTS = 20


@dataclasses.dataclass
class Model:
    """A model with its data and one way to its gradient, as functions of all weights in a vector.

    ``start``: the initial weights. ``gradient``: of the loss on a batch. ``count``: the evaluations that it takes.
    ``held_out``: the loss on data that is not trained on. ``memory``: the most bytes that a gradient takes.
    ``compiling``: the processor seconds before the first one.
    """

    start: np.ndarray
    batches: Sequence[Any]
    gradient: Callable[[np.ndarray, Any], Gradient]
    count: Callable[[np.ndarray, Any], int]
    held_out: Callable[[np.ndarray], float]
    memory: Callable[[np.ndarray], int]
    compiling: float = 0.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """A training. ``models``: by way, of a seed; ``rate``: of learning; ``text``: model, data and solve in words."""

    text: str
    loss: str
    models: Callable[[int], Mapping[str, Model]]
    steps: int
    rate: float


class _Run:
    """One way's training as far as it is."""

    def __init__(self, model: Model, rate: float):
        self.model, self.weights, self.seconds = model, model.start, [model.compiling]
        self.curve, self.counts, self.failed = list[tuple[float, float]](), list[int](), ""
        self._adam = Adam(self.weights, rate)

    def turn(self, step: int, point: bool, last: bool) -> None:
        """Note a point of the curve, and take a step."""
        batch = self.model.batches[step % len(self.model.batches)]
        try:
            if point:
                loss = self.model.held_out(self.weights)
                if not np.isfinite(loss):
                    raise FloatingPointError(f"the loss is {loss}")
                self.curve.append((sum(self.seconds), loss))
                if len(self.curve) % 5 == 1:
                    self.counts.append(self.model.count(self.weights, batch))
            if not last:
                with timing.lap(self.seconds):
                    self.weights = self._adam.step(self.model.gradient(self.weights, batch).vector)
        except Exception as error:
            self.failed = f"step {step}: {type(error).__name__}: {error}".splitlines()[0][:200]

    def row(self, base: "_Run") -> Row:
        losses, others = (np.array([loss for _, loss in run.curve]) for run in (self, base))
        apart = np.abs(losses - others[: len(losses)]) / np.abs(others).max()
        row: dict[str, Any] = {"seconds": sum(self.seconds), "compiling": self.seconds[0], "curve": self.curve}
        row |= {"loss": self.curve[-1][1], "apart": float(apart.max()), "evaluations": float(np.mean(self.counts))}
        return row | ({"failed": self.failed} if self.failed else {"peak": self.model.memory(self.weights)})


def cells(plans: Mapping[str, Plan], scope: Scope) -> Cells:
    """A cell a model and seed; quick: one seed, few steps."""
    seeds = range(1 if scope.quick else 3)
    return {
        f"{name}, {seed}": functools.partial(_cell, name, plans[name], seed, scope) for name in plans for seed in seeds
    }


def _cell(name: str, plan: Plan, seed: int, scope: Scope) -> Rows:
    steps, every = (4, 2) if scope.quick else (plan.steps, plan.steps // POINTS)
    runs = {way: _Run(model, plan.rate) for way, model in plan.models(seed).items()}
    for step in range(steps + 1):
        for run in runs.values():
            if not run.failed:
                run.turn(step, step % every == 0, step == steps)
    base = next(iter(runs.values()))
    place = {"model": name, "text": plan.text, "measure": plan.loss, "seed": seed, "steps": steps}
    return [{**place, "way": way, **run.row(base)} for way, run in runs.items()]
