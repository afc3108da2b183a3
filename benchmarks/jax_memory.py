"""Time of gradients through a diffrax solve at equal memory: a cell a set-up, a row a way.

``temporary`` is XLA's own account of what a compiled gradient allocates besides its inputs and outputs. ``over_host``:
the host's time over the row's, at the same number of checkpoints, the median over the rounds.
"""

from __future__ import annotations

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


SETUPS = (
    Setup("constant", "1000 steps of equal size, max_steps=1000", 1.0, 0.0, {"max_steps": 1000}),
    Setup(
        "adaptive",
        "PIDController at 1e-9, a fast forcing, max_steps=4096",
        3.0,
        200.0,
        {"stepsize_controller": diffrax.PIDController(rtol=1e-9, atol=1e-9), "max_steps": 4096},
    ),
)


@dataclasses.dataclass(frozen=True)
class Method:
    """One adjoint. ``checkpoints``: the host's row to compare it with; None: the host's default."""

    name: str
    adjoint: diffrax.AbstractAdjoint
    checkpoints: int | None

    @property
    def ours(self) -> bool:
        """Whether it is steptape's."""
        return self.name.startswith(ADAPTIVE)


def methods() -> Iterator[Method]:
    """The host's and ours for every number of checkpoints, and by default."""
    for k in (*CHECKPOINTS, None):
        arguments = "" if k is None else f"checkpoints={k}"
        staged = ", ".join(filter(None, (arguments, 'graph="stage"')))
        yield Method(f"{RECURSIVE}({arguments})", diffrax.RecursiveCheckpointAdjoint(checkpoints=k), k)
        yield Method(f"{ADAPTIVE}({arguments})", AdaptiveCheckpointAdjoint(checkpoints=k), k)
        yield Method(f"{ADAPTIVE}({staged})", AdaptiveCheckpointAdjoint(checkpoints=k, graph="stage"), k)


def _inputs() -> tuple[Any, Any]:
    keys = jax.random.split(jax.random.key(0))
    field = eqx.nn.MLP(_DIM, _DIM, _WIDTH, 2, jax.nn.tanh, key=keys[0], dtype=jnp.float64)
    return eqx.filter(field, eqx.is_array), jax.random.normal(keys[1], (_BATCH, _DIM))


def _program(setup: Setup, method: Method) -> programs.Program:
    static = eqx.nn.MLP(_DIM, _DIM, _WIDTH, 2, jax.nn.tanh, key=jax.random.key(0))
    static = eqx.filter(static, eqx.is_array, inverse=True)

    def slope(t, y, weights):
        return jax.vmap(eqx.combine(weights, static))(y) * (1 + jnp.sin(setup.forcing * t))

    def loss(weights, y0):
        term = diffrax.ODETerm(slope)
        solution = diffrax.diffeqsolve(
            term, diffrax.Tsit5(), 0.0, setup.t1, 1e-3, y0, weights, adjoint=method.adjoint, **setup.how
        )
        return jnp.sum(solution.ys**2), solution.stats

    return programs.Program.compiled(method.name, jax.grad(loss, argnums=(0, 1), has_aux=True), _inputs())


def cells(scope: Scope) -> Cells:
    """A cell a set-up; quick: one of them in 3 rounds."""
    setups, rounds = (SETUPS[:1], 3) if scope.quick else (SETUPS, 11)
    return {setup.name: functools.partial(_cell, setup, rounds) for setup in setups}


def _cell(setup: Setup, rounds: int) -> Rows:
    """Compile every method, and time them in rounds of all of them."""
    rows = [(method, _program(setup, method)) for method in methods()]
    programs.race([row for _, row in rows], rounds)
    host = {method.checkpoints: row for method, row in rows if not method.ours}
    stats = rows[0][1].result[1]
    solve = {"setup": setup.name, "text": setup.text, "accepted": int(stats["num_accepted_steps"])}
    solve |= {"rejected": int(stats["num_rejected_steps"])}
    return [
        {
            **solve,
            "way": method.name,
            "checkpoints": method.checkpoints,
            "ours": method.ours,
            "seconds": row.seconds,
            "over_host": timing.ratio(host[method.checkpoints].times, row.times),
            "temporary": row.temporary,
            "compiling": row.compiling,
            "difference": programs.difference(row.result[0], host[method.checkpoints].result[0]),
        }
        for method, row in rows
    ]
