"""Time of gradients through a diffrax solve at equal memory: a cell a set-up, a row a way.

``temporary`` is XLA's own account of what a compiled gradient allocates besides its inputs and outputs. ``over_host``:
the host's time over the row's, at the same number of checkpoints, the median over the rounds.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from benchmarks import jax_programs as programs
from benchmarks import timing
from benchmarks.envelope import Rows
from benchmarks.measurements import Cells, Scope
from benchmarks.ways import ADAPTIVE, RECURSIVE
from steptape.jax import AdaptiveCheckpointAdjoint

CHECKPOINTS = (8, 16, 44)
_BATCH, _DIM, _WIDTH = 32, 16, 64


@dataclasses.dataclass(frozen=True)
class Setup:
    """One solve: a perceptron's flow, float64, Tsit5, about 1000 accepted steps."""

    name: str
    text: str
    t1: float
    forcing: float
    how: dict[str, Any]


_ADAPTIVE = {**programs.adaptive(1e-9), "max_steps": 4096}
SETUPS = (
    Setup("constant", "1000 steps of equal size, max_steps=1000", 1.0, 0.0, {"max_steps": 1000}),
    Setup("adaptive", "PIDController at 1e-9, a fast forcing, max_steps=4096", 3.0, 200.0, _ADAPTIVE),
)


def cells(scope: Scope) -> Cells:
    """A cell a set-up; quick: one of them in 3 rounds."""
    setups, rounds = (SETUPS[:1], 3) if scope.quick else (SETUPS, 11)
    return {setup.name: functools.partial(_cell, setup, rounds) for setup in setups}


def _methods() -> Iterator[tuple[str, int | None, diffrax.AbstractAdjoint]]:
    """The host's and ours for every number of checkpoints, and by default, which is None."""
    for k in (*CHECKPOINTS, None):
        arguments = "" if k is None else f"checkpoints={k}"
        staged = ", ".join(filter(None, (arguments, 'graph="stage"')))
        yield f"{RECURSIVE}({arguments})", k, diffrax.RecursiveCheckpointAdjoint(checkpoints=k)
        yield f"{ADAPTIVE}({arguments})", k, AdaptiveCheckpointAdjoint(checkpoints=k)
        yield f"{ADAPTIVE}({staged})", k, AdaptiveCheckpointAdjoint(checkpoints=k, graph="stage")


def _cell(setup: Setup, rounds: int) -> Rows:
    """Compile every method, and time them in rounds of all of them."""
    found = {name: (k, _program(setup, name, adjoint)) for name, k, adjoint in _methods()}
    programs.race([program for _, program in found.values()], rounds)
    host = {k: program for name, (k, program) in found.items() if name.startswith(RECURSIVE)}
    stats = {kind: int(host[None].result[1][f"num_{kind}_steps"]) for kind in ("accepted", "rejected")}
    return [
        {
            **{"setup": setup.name, "text": setup.text, **stats},
            **{"way": name, "checkpoints": k, "ours": name.startswith(ADAPTIVE)},
            **{"seconds": program.seconds, "over_host": timing.ratio(host[k].times, program.times)},
            **{"temporary": program.temporary, "compiling": program.compiling},
            "difference": programs.difference(program.result[0], host[k].result[0]),
        }
        for name, (k, program) in found.items()
    ]


def _program(setup: Setup, name: str, adjoint: diffrax.AbstractAdjoint) -> programs.Program:
    keys = jax.random.split(jax.random.key(0))
    field = eqx.nn.MLP(_DIM, _DIM, _WIDTH, 2, jax.nn.tanh, key=keys[0], dtype=jnp.float64)
    weights, static = eqx.partition(field, eqx.is_array)

    def slope(t, y, weights):
        return jax.vmap(eqx.combine(weights, static))(y) * (1 + jnp.sin(setup.forcing * t))

    def loss(weights, y0):
        solution = programs.solved(slope, setup.t1, y0, weights, dt0=1e-3, adjoint=adjoint, **setup.how)
        return jnp.sum(solution.ys**2), solution.stats

    inputs = weights, jax.random.normal(keys[1], (_BATCH, _DIM))
    return programs.Program.compiled(name, jax.grad(loss, argnums=(0, 1), has_aux=True), inputs)
