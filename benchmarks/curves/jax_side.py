"""The cells in JAX: diffrax's adjoints and steptape's, each compiled before it is timed."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.curves import plan
from benchmarks.curves.cases import STEP, Case
from benchmarks.envelope import Row, Rows
from benchmarks.jax_programs import Program, adaptive, solved, words
from benchmarks.measurements import Cells, Scope
from steptape.jax import AdaptiveCheckpointAdjoint, QuadratureAdjoint, SeminormAdjoint

BACKPROP, ADJOINT, ACA, QUADRATURE = "RecursiveCheckpoint", "Backsolve", "steptape ACA", "steptape quadrature"
_MOST_STEPS = 2**14
# What the backward solve may take costs nothing before it is taken.
_PRECISION: dict[str, diffrax.AbstractAdjoint] = {
    BACKPROP: diffrax.RecursiveCheckpointAdjoint(),
    ADJOINT: diffrax.BacksolveAdjoint(max_steps=_MOST_STEPS),
    "Direct": diffrax.DirectAdjoint(),
    ACA: AdaptiveCheckpointAdjoint(),
    f"{ACA}, 16 checkpoints": AdaptiveCheckpointAdjoint(checkpoints=16),
    "steptape seminorm": SeminormAdjoint(max_steps=_MOST_STEPS),
    QUADRATURE: QuadratureAdjoint(max_steps=_MOST_STEPS),
}
_SCALING: dict[str, diffrax.AbstractAdjoint] = {
    BACKPROP: diffrax.RecursiveCheckpointAdjoint(),
    ADJOINT: diffrax.BacksolveAdjoint(),
    ACA: AdaptiveCheckpointAdjoint(),
    f"{ACA}, 32 checkpoints": AdaptiveCheckpointAdjoint(checkpoints=32),
    QUADRATURE: QuadratureAdjoint(),
}
_QUICK = (BACKPROP, ACA, QUADRATURE)
_MORE = 3  # times as many rounds, of runs that take a thousandth of the time that compiling them took


def cells(scope: Scope) -> Cells:
    tolerances = (1e-3, 1e-7) if scope.quick else (1e-3, 1e-5, 1e-7, 1e-9)
    ways = (_QUICK, _QUICK) if scope.quick else (tuple(_PRECISION), tuple(_SCALING))
    return plan.cells(plan.Framework(tolerances, *ways, precision, scaling), scope)


def precision(case: Case, tolerance: float, ways: Sequence[str], rounds: int) -> Rows:
    """Every way at one tolerance, all with the smallest power of two that its tries fit in as ``max_steps``."""
    how = {**adaptive(tolerance), "dt0": None}
    most = {**how, "max_steps": _MOST_STEPS}
    tried = jax.jit(lambda y0, params: _solution(case, y0, params, most).stats["num_steps"])
    tries = int(tried(*_inputs(case)))
    max_steps = 1 << (tries - 1).bit_length()
    rows = _all(case, {way: _PRECISION[way] for way in ways}, rounds, {**how, "max_steps": max_steps})
    return [{**row, "max_steps": max_steps, "tries": tries} for row in rows]


def scaling(case: Case, axis: str, steps: int, ways: Sequence[str], rounds: int) -> Rows:
    """Every way, with so many steps of equal size and ``max_steps`` of the same number."""
    how = {"stepsize_controller": diffrax.ConstantStepSize(), "dt0": STEP, "max_steps": steps}
    return _all(case, {way: _SCALING[way] for way in ways}, rounds, how)


def _inputs(case: Case) -> tuple[Any, ...]:
    return jnp.asarray(case.y0), [jnp.asarray(value) for value in case.params]


def _solution(case: Case, y0: Any, params: Any, how: dict[str, Any]) -> diffrax.Solution:
    saveat = diffrax.SaveAt(ts=jnp.asarray(case.times[1:]))
    how = {"t0": case.times[0], "solver": diffrax.Dopri5(), "saveat": saveat, **how}
    return solved(case.field, case.times[-1], y0, params, **how)


def _all(case: Case, adjoints: dict[str, diffrax.AbstractAdjoint], rounds: int, how: dict[str, Any]) -> Rows:
    rows = plan.measured({way: _run(case, {**how, "adjoint": each}) for way, each in adjoints.items()}, _MORE * rounds)
    jax.clear_caches()
    return rows


def _run(case: Case, how: dict[str, Any]) -> Callable[[], Row]:
    """Compiled when it is first called."""

    def loss(y0: Any, params: Any) -> tuple[Any, Any]:
        solution = _solution(case, y0, params, how)
        return case.loss(solution.ys), solution.stats

    @functools.cache
    def compiled() -> Program:
        return Program.compiled("", jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), _inputs(case))

    return lambda: _row(case, compiled())


def _row(case: Case, program: Program) -> Row:
    try:
        seconds = program.run()
    except jax.errors.JaxRuntimeError as error:
        raise RuntimeError(words(error)) from None
    (_, stats), gradient = program.result
    flat = np.concatenate([np.ravel(part) for part in jax.tree.leaves(gradient)])
    # Six evaluations a try; the backward ones cannot be counted in a program that is timed.
    return {
        "seconds": seconds,
        "error": case.error(flat),
        "held": program.temporary,
        "evaluations": (6 * int(stats["num_steps"]), None),
        "accepted": int(stats["num_accepted_steps"]),
    }
