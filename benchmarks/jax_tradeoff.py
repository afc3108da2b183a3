"""Time against memory of the ways to one gradient in diffrax: a cell a problem, a row a way.

``held``: XLA's temporary memory over both passes, bytes. ``ratio``, ``error``, ``line`` and ``point`` are those of
``benchmarks.torch_tradeoff``, over ``RecursiveCheckpointAdjoint()`` and against that with as many checkpoints as steps.
"""

import functools

import diffrax
import jax

from benchmarks import jax_programs as programs
from benchmarks import timing
from benchmarks.envelope import Rows
from benchmarks.jax_speed import Case
from benchmarks.measurements import Cells, Scope
from benchmarks.ways import ADAPTIVE, DEFAULT, RECURSIVE, REPLAY

# The smallest power of two that the tries fit in, for all ways.
PROBLEMS = {
    "small": Case("middle", "Dopri5", 1e-6, pulses=False, max_steps=128),
    "large": Case("large", "Dopri5", 1e-5, pulses=False, max_steps=128),
    "100 outputs": Case("middle", "Dopri5", 1e-6, pulses=False, outputs=100, max_steps=128),
}
CHECKPOINTS = (2, 4, 8)
SINGLE = {
    DEFAULT: programs.both()[DEFAULT],
    "DirectAdjoint()": diffrax.DirectAdjoint(),
    "BacksolveAdjoint()": diffrax.BacksolveAdjoint(),
    REPLAY: programs.both()[REPLAY],
}


def cells(scope: Scope) -> Cells:
    """A cell a problem; quick: few rounds."""
    return {name: functools.partial(_cell, case, 3 if scope.quick else 21) for name, case in PROBLEMS.items()}


def _cell(case: Case, rounds: int) -> Rows:
    ways = {way: (way, "", adjoint) for way, adjoint in SINGLE.items()}
    for name in (RECURSIVE, ADAPTIVE):
        for k in CHECKPOINTS:
            ways[f"{name}(checkpoints={k})"] = f"{name}(checkpoints=k)", str(k), programs.both(k)[f"{name}()"]
    found = {way: case.program(way, adjoint) for way, (_, _, adjoint) in ways.items()}
    exact = case.program("exact", diffrax.RecursiveCheckpointAdjoint(checkpoints=case.max_steps))
    exact.run()
    programs.race(list(found.values()), rounds)
    rows = [
        {
            **{"way": way, "line": ways[way][0], "point": ways[way][1], "problem": case.text},
            "accepted": int(program.result[0][1]["num_accepted_steps"]),
            **{"seconds": program.seconds, "ratio": timing.ratio(program.times, found[DEFAULT].times)},
            **{"held": program.temporary, "error": programs.difference(program.result[1], exact.result[1])},
        }
        for way, program in found.items()
    ]
    jax.clear_caches()
    return rows
