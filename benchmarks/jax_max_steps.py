"""What a diffrax gradient costs for steps that are not taken: a cell alone and one a batch, a row a limit and way.

The same ten or so steps under every ``max_steps``, with as many checkpoints as the host. ``temporary`` is XLA's own
account of what a compiled gradient allocates besides its inputs and outputs.
"""

from __future__ import annotations

import functools

import diffrax
import jax
import jax.numpy as jnp

from benchmarks import jax_programs as programs
from benchmarks import timing
from benchmarks.envelope import Rows
from benchmarks.measurements import Cells, Scope
from benchmarks.ways import DEFAULT, REPLAY
from steptape.jax import AdaptiveCheckpointAdjoint

LIMITS = tuple(10**n for n in range(2, 8))
CHECKPOINTS, DIM = 16, 8
BATCHES = {"alone": None, "64 members": 64}
ADJOINTS = {
    DEFAULT: diffrax.RecursiveCheckpointAdjoint(checkpoints=CHECKPOINTS),
    REPLAY: AdaptiveCheckpointAdjoint(checkpoints=CHECKPOINTS),
}


def program(name: str, limit: int, members: int | None) -> programs.Program:
    """The gradient in the initial state."""
    matrix = jax.random.normal(jax.random.key(0), (DIM, DIM), jnp.float64) / DIM

    def field(t, y, matrix):
        return jnp.tanh(matrix @ y)

    def loss(y0):
        how = {**programs.adaptive(1e-6), "dt0": 0.1, "max_steps": limit, "adjoint": ADJOINTS[name]}
        solution = programs.solved(field, 1.0, y0, matrix, **how)
        return jnp.sum(solution.ys**2), solution.stats["num_accepted_steps"]

    gradient = jax.grad(loss, has_aux=True)
    if members is None:
        return programs.Program.compiled(name, gradient, (jnp.ones(DIM),))
    return programs.Program.compiled(name, jax.vmap(gradient), (jnp.ones((members, DIM)),))


def cells(scope: Scope) -> Cells:
    """A cell alone and one for a batch; quick: three limits, few rounds."""
    limits, rounds = (LIMITS[::2], 11) if scope.quick else (LIMITS, 101)
    return {name: functools.partial(_cell, name, limits, rounds) for name in BATCHES}


def _cell(name: str, limits: tuple[int, ...], rounds: int) -> Rows:
    found = {(limit, way): program(way, limit, BATCHES[name]) for limit in limits for way in ADJOINTS}
    rows = []
    for limit in limits:
        both = [found[limit, way] for way in ADJOINTS]
        programs.race(both, rounds)
        rows += [
            {
                "batch": name,
                "max_steps": limit,
                "accepted": int(jnp.max(one.result[1])),
                "way": one.name,
                "seconds": one.seconds,
                "over_host": timing.ratio(both[0].times, one.times),
                "temporary": one.temporary,
            }
            for one in both
        ]
    return rows
