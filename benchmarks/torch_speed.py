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
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.envelope import Row, Rows
from benchmarks.fields import SPEED, Problem, Setup, loss_of, relative_error
from benchmarks.measurements import Cells, Scope
from benchmarks.peers import METHODS, Method, checkpointed
from benchmarks.runner import note
from benchmarks.ways import HOST


def cells(scope: Scope) -> Cells:
    """A cell a set-up."""
    rounds = timing.Rounds(3, 5.0) if scope.quick else timing.Rounds(11, 30.0)
    return {setup.name: functools.partial(_cell, setup, rounds) for setup in SPEED}


@dataclasses.dataclass
class _Racer:
    """A way on a problem, with what its warm-up found, and the seconds of both passes in each run."""

    solve: Callable[..., Tensor]
    problem: Problem
    found: Row
    laps: list[tuple[float, float]] = dataclasses.field(default_factory=list)

    def run(self) -> float:
        """Both passes, whose seconds it returns and notes."""
        gc.collect()
        now = functools.partial(timing.now, self.problem.y0.device)
        start = now()
        loss = loss_of(self.problem.solved(self.solve))
        middle = now()
        torch.autograd.grad(loss, self.problem.inputs())
        self.laps.append((middle - start, now() - middle))
        return sum(self.laps[-1])


def _cell(setup: Setup, rounds: timing.Rounds) -> Rows:
    return raced(METHODS, setup, reference_gradient(setup), rounds)


def raced(methods: Mapping[str, Method], setup: Setup, reference: Tensor, rounds: timing.Rounds) -> Rows:
    """A row a way, of which the host's back-propagation is one."""
    rows: dict[str, Row] = {}
    racers: dict[str, _Racer] = {}
    for way, method in methods.items():
        rows[way] = {"way": way, "problem": setup.text}
        try:
            racers[way] = _warmed_up(method, setup, reference)
        except Exception as error:
            why_not = method.why_not(setup) or f"failed: {type(error).__name__}: {error}"
            rows[way]["without"] = why_not
            note(f"  {way}: {why_not}")
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
    solution = problem.solved(checkpointed, rtol=1e-12, atol=1e-12, method="dopri8")
    return torch.cat([x.flatten() for x in torch.autograd.grad(loss_of(solution), problem.inputs())])


def _warmed_up(method: Method, setup: Setup, reference: Tensor) -> _Racer:
    if why_not := method.why_not(setup):
        raise RuntimeError(why_not)
    problem = setup.problem()
    setup.problem(batch=1 if setup.batch == 1 else 2).solved(method.solve)
    counts = problem.field.counts
    now = functools.partial(timing.now, problem.y0.device)
    start = now()
    solution = problem.solved(method.solve)
    forward, accepted = counts["evaluations"], counts["accepted"]
    gradient = torch.autograd.grad(loss_of(solution), problem.inputs())
    found = {"first": now() - start, "evaluations": (forward, counts["evaluations"] - forward)}
    found |= {"error": relative_error(gradient, [reference]), "accepted": accepted}
    return _Racer(method.solve, problem, found)
