"""What a diffrax gradient costs for steps that are not taken: a cell a batch and limit, a row a way.

The same ten or so steps under every ``max_steps``, with as many checkpoints as the host. ``temporary`` is XLA's own
account of what a compiled gradient allocates besides its inputs and outputs.
"""

import functools
import itertools

import jax
import jax.numpy as jnp

from benchmarks import jax_programs as programs
from benchmarks import timing
from benchmarks.envelope import Rows
from benchmarks.measurements import Cells, Scope

LIMITS = tuple(10**n for n in range(2, 8))
CHECKPOINTS, DIM = 16, 8
BATCHES = {"alone": None, "64 members": 64}


def cells(scope: Scope) -> Cells:
    """A cell a batch and limit; quick: three limits, few rounds."""
    limits, rounds = (LIMITS[::2], 11) if scope.quick else (LIMITS, 51)
    return {
        f"{name}, {limit}": functools.partial(_cell, name, limit, rounds)
        for name, limit in itertools.product(BATCHES, limits)
    }


def _cell(name: str, limit: int, rounds: int) -> Rows:
    both = [_program(way, limit, BATCHES[name]) for way in programs.both()]
    programs.race(both, rounds)
    return [
        {
            **{"batch": name, "max_steps": limit, "accepted": int(jnp.max(one.result[1])), "way": one.name},
            **{"seconds": one.seconds, "over_host": timing.ratio(both[0].times, one.times)},
            "temporary": one.temporary,
        }
        for one in both
    ]


def _program(name: str, limit: int, members: int | None) -> programs.Program:
    """The gradient in the initial state."""
    matrix = jax.random.normal(jax.random.key(0), (DIM, DIM), jnp.float64) / DIM

    def field(t, y, matrix):
        return jnp.tanh(matrix @ y)

    def loss(y0):
        how = {**programs.adaptive(1e-6), "dt0": 0.1, "max_steps": limit, "adjoint": programs.both(CHECKPOINTS)[name]}
        solution = programs.solved(field, 10.0, y0, matrix, **how)
        return jnp.sum(solution.ys**2), solution.stats["num_accepted_steps"]

    gradient, y0 = jax.grad(loss, has_aux=True), jnp.ones(DIM)
    if members is not None:
        gradient, y0 = jax.vmap(gradient), jnp.ones((members, DIM))
    return programs.Program.compiled(name, gradient, (y0,))
