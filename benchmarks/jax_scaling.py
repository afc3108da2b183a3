"""How the time of a batch of diffrax gradients grows with its longest solve: one cell, a row an end and way.

256 oscillators whose step counts differ tenfold, under ``vmap``: the gradient is compiled once, and the time at which
the solves end varies. ``shortest`` and ``longest``: accepted steps of these solves.
"""

import jax
import jax.numpy as jnp

from benchmarks import jax_programs as programs
from benchmarks.envelope import Rows
from benchmarks.measurements import Cells, Scope

ELEMENTS = 256
ENDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


def cells(scope: Scope) -> Cells:
    """One cell; quick: one round."""
    return {"batch": lambda: _cell(1 if scope.quick else 31)}


def _cell(rounds: int) -> Rows:
    both, rows = [_program(name) for name in programs.both()], []
    for end in ENDS:
        for one in both:
            one.inputs = (*one.inputs[:2], jnp.array(end))
        programs.race(both, rounds)
        steps = both[0].result[1]
        solve = {"end": end, "shortest": int(steps.min()), "longest": int(steps.max())}
        rows += [{**solve, "way": one.name, "seconds": one.seconds} for one in both]
    return rows


def _program(name: str) -> programs.Program:
    """The gradient of the batch in its initial states and frequencies, as a function of the end as well."""

    def field(t, y, frequency):
        return frequency * jnp.stack([y[1] * (1 + 0.2 * y[0] ** 2), -y[0]])

    def loss(y0, frequency, end):
        adjoint = programs.both()[name]
        solution = programs.solved(field, end, y0, frequency, **programs.adaptive(1e-6), adjoint=adjoint)
        return jnp.sum(solution.ys**2), solution.stats["num_accepted_steps"]

    batch = jax.vmap(jax.grad(loss, argnums=(0, 1), has_aux=True), in_axes=(0, 0, None))
    inputs = (jnp.tile(jnp.array([1.0, 0.0]), (ELEMENTS, 1)), jnp.geomspace(0.8, 8.0, ELEMENTS), jnp.array(1.0))
    return programs.Program.compiled(name, batch, inputs)
