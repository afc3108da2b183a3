"""Time and error of every way to a gradient through an ODE solve in PyTorch: a cell a set-up, a row a way.

``seconds`` of processor time are medians, of ``forward`` and ``backward`` as well. ``ratio``: the median over the
rounds of its time over that of the host's back-propagation in the same round, ``spread`` the least and the most.
``error``: of its gradient, against a tight reference, relative, in the Euclidean norm over all inputs.
``evaluations``: of the field, forward and backward.
"""

import functools
import gc
import statistics
from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.envelope import Row, Rows
from benchmarks.fields import SPEED, Problem, Setup, relative_error
from benchmarks.measurements import Cells, Scope
from benchmarks.peers import METHODS, Method, checkpointed
from benchmarks.ways import HOST


def cells(scope: Scope) -> Cells:
    rounds = timing.Rounds(3, 5.0) if scope.quick else timing.Rounds(31, 10.0, least=5)
    return {setup.name: functools.partial(_cell, setup, rounds) for setup in SPEED}


def _cell(setup: Setup, rounds: timing.Rounds) -> Rows:
    reference = reference_gradient(setup)
    # Each run begins and goes on with a search for garbage, which need not go through all that was imported.
    gc.collect()
    gc.freeze()
    return raced(METHODS, setup, reference, rounds)


def raced(methods: Mapping[str, Method], setup: Setup, reference: Tensor, rounds: timing.Rounds) -> Rows:
    """A row a way, of which the host's back-propagation is one."""
    why_not = {way: method.why_not(setup) for way, method in methods.items()}
    laps: dict[str, list[Row]] = {way: [] for way, why in why_not.items() if not why}
    runs = {way: functools.partial(_run, methods[way], setup.problem(), reference, laps[way]) for way in laps}
    rows, times = timing.rows(runs, rounds)
    for way in times:
        ratios, raced_laps = timing.ratios(times[way], times[HOST]), laps[way][-len(times[way]) :]
        rows[way] |= {part: statistics.median(lap[part] for lap in raced_laps) for part in ("forward", "backward")}
        rows[way] |= {"ratio": statistics.median(ratios), "spread": (ratios[0], ratios[-1]), "rounds": len(times[way])}
    return [{"way": way, "problem": setup.text, **rows.get(way, {"without": why})} for way, why in why_not.items()]


def _run(method: Method, problem: Problem, reference: Tensor, laps: list[Row]) -> Row:
    row, gradient = problem.measured(method.solve)
    laps.append(row)
    del row["held"]
    return {**row, "error": relative_error([gradient], [reference])}


def reference_gradient(setup: Setup) -> Tensor:
    """The gradient by back-propagation through a float64 solve at 1e-12 by a method of order 8, flat."""
    problem = setup.problem(dtype=torch.float64)
    return problem.measured(checkpointed, rtol=1e-12, atol=1e-12, method="dopri8")[1]
