"""Time and error of every way to a gradient through an ODE solve in PyTorch: a cell a set-up, a row a way.

``seconds`` of processor time are medians, of ``forward`` and ``backward`` as well. ``ratio``: the median over the
rounds of its time over that of the host's back-propagation in the same round, ``spread`` the least and the most.
``error``: of its gradient, against a tight reference, relative, in the Euclidean norm over all inputs.
``evaluations``: of the field, forward and backward.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import statistics
import time
from collections.abc import Sequence

import torch
import torchdiffeq
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks import timing
from benchmarks.envelope import Row, Rows
from benchmarks.fields import SPEED, Problem, Setup, loss_of
from benchmarks.measurements import Cells, Scope
from benchmarks.peers import HOST, METHODS, Method
from benchmarks.runner import note


def cells(scope: Scope) -> Cells:
    """A cell a set-up."""
    rounds = timing.Rounds(3, 5.0) if scope.quick else timing.Rounds(11, 30.0)
    return {setup.name: functools.partial(_cell, setup, rounds) for setup in SPEED}


@dataclasses.dataclass
class _Racer:
    """A way on a problem, with what its warm-up found, and the seconds of both passes in each run."""

    method: Method
    problem: Problem
    found: Row
    laps: list[tuple[float, float]] = dataclasses.field(default_factory=list)

    def run(self) -> float:
        """Both passes, whose seconds it returns and notes."""
        gc.collect()
        start = time.process_time()
        loss = loss_of(self.method.solve(self.problem))
        middle = time.process_time()
        torch.autograd.grad(loss, self.problem.inputs())
        self.laps.append((middle - start, time.process_time() - middle))
        return sum(self.laps[-1])


def _cell(setup: Setup, rounds: timing.Rounds) -> Rows:
    reference = reference_gradient(setup)
    rows: dict[str, Row] = {}
    racers: dict[str, _Racer] = {}
    for method in METHODS:
        rows[method.name] = {"way": method.name, "problem": setup.text}
        try:
            racers[method.name] = _warmed_up(method, setup, reference)
        except Exception as error:
            why_not = method.why_not(setup) or f"failed: {type(error).__name__}: {error}"
            rows[method.name]["without"] = why_not
            note(f"  {method.name}: {why_not}")
    first = {way: racer.found.pop("first") for way, racer in racers.items()}
    times = timing.race({way: racer.run for way, racer in racers.items()}, rounds, first)
    for way, racer in racers.items():
        ratios = timing.ratios(times[way], times[HOST])
        forward, backward = map(statistics.median, zip(*racer.laps, strict=True))
        figures = {"seconds": timing.median(times[way]), "forward": forward, "backward": backward}
        figures |= {"ratio": statistics.median(ratios), "spread": (ratios[0], ratios[-1]), "rounds": len(racer.laps)}
        rows[way] |= figures | racer.found
    return list(rows.values())


def reference_gradient(setup: Setup) -> Tensor:
    """The gradient by back-propagation through a float64 solve at 1e-12 by a method of order 8, flat."""
    problem = setup.problem(dtype=torch.float64)
    solution = torchdiffeq.odeint(
        lambda t, y: checkpoint(problem.field, t, y, use_reentrant=False),
        problem.y0,
        problem.t,
        rtol=1e-12,
        atol=1e-12,
        method="dopri8",
    )
    return _flat(torch.autograd.grad(loss_of(solution), problem.inputs()))


def _warmed_up(method: Method, setup: Setup, reference: Tensor) -> _Racer:
    if why_not := method.why_not(setup):
        raise RuntimeError(why_not)
    problem = setup.problem()
    method.solve(setup.problem(batch=1 if setup.batch == 1 else 2))
    counts = problem.field.counts
    counts.update(dict.fromkeys(counts, 0))
    start = time.process_time()
    solution = method.solve(problem)
    forward, accepted = counts["evaluations"], counts["accepted"]
    gradient = _flat(torch.autograd.grad(loss_of(solution), problem.inputs()))
    seconds = time.process_time() - start
    wrong = float((gradient - reference).norm() / reference.norm())
    found = {"first": seconds, "error": wrong, "evaluations": (forward, counts["evaluations"] - forward)}
    return _Racer(method, problem, {**found, "accepted": accepted})


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.detach().double().flatten() for x in tensors])
