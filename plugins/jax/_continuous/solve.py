"""A solve with a continuous adjoint: forward with a record of its steps, backward from its outputs."""

import functools
import operator
from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from steptape._errors import UnsupportedError
from steptape.compat._diffrax import with_fields
from steptape.jax._autodiff.activity import is_nonzero, zero_unless
from steptape.jax._autodiff.field import rate
from steptape.jax._autodiff.refusals import differentiated_once, reverse_mode_only, undifferentiated, without_tangent
from steptape.jax._continuous.backward import Outputs, solve_backward
from steptape.jax._continuous.dense import DenseBlocks, DenseOutput
from steptape.jax._continuous.event import before_root, pull_root
from steptape.jax._continuous.forward import ForwardSolve
from steptape.jax._continuous.quadrature import Pullback
from steptape.jax._tape.rows import get
from steptape.jax._types import BoolScalar, Cotangent, Gradient, IntScalar, Mask, Rows, Scalar, Solved, Vector, Y

CALL = "`diffeqsolve(..., adjoint=QuadratureAdjoint(...))`"
_SECOND = (
    f"Second derivatives of {CALL}, also by one `grad` through an optimum that was found with its gradient: the "
    "backward pass is an adaptive solve of its own. Use `adjoint=steptape.jax.AdaptiveCheckpointAdjoint()`."
)
_FORWARD = (
    f"Forward mode (`jvp`, `jacfwd`, `linearize`) through {CALL}: the adjoint goes back on the solution, there is none "
    "to go forward with. Use `adjoint=steptape.jax.AdaptiveCheckpointAdjoint()`, which knows every mode; optimistix's "
    'least-squares solvers take `options={"jac": "bwd"}`.'
)

# The part of its first step that a solve begins with on its side of a jump; its square is below rounding.
_NEAR = 2.0**-24


def solve_continuously(moving: tuple, forward: ForwardSolve) -> Solved:
    """Solve, with a continuous adjoint; ``moving``: y0, args, terms, (t0, t1, ts), the functions of the event."""
    moving = reverse_mode_only(differentiated_once(moving, why=_SECOND), _FORWARD)
    final, stats = _solve(moving, forward)
    inexact, fixed = eqx.partition(final, eqx.is_inexact_array)
    return eqx.combine(inexact, without_tangent(fixed)), stats


@eqx.filter_custom_vjp
def _solve(moving: tuple, forward: ForwardSolve) -> Solved:
    return forward.run(*moving)


@_solve.def_fwd
def _solve_fwd(perturbed: Mask, moving: tuple, forward: ForwardSolve) -> tuple[Solved, tuple | None]:
    if forward.refusal is not None:
        return forward.run(*moving), None
    final, stats, record = forward.run_recorded(*moving)
    came_through = diffrax.is_okay(final.result)
    return (final, stats), (record, final.save_state, final.tprev, came_through, final.event_mask)


@_solve.def_bwd
def _solve_bwd(
    residuals: PyTree, cotangents: PyTree, perturbed: Mask, moving: tuple, forward: ForwardSolve
) -> Gradient:
    if forward.refusal is not None:
        raise UnsupportedError(forward.refusal)
    record, saved, end, came_through, occurred = residuals
    y0, args, terms, times, conditions = moving
    # In a branch it has come back as an integer of a width, with which no time may be multiplied.
    terms = with_fields(terms, direction=jnp.where(terms.direction > 0, 1, -1))
    sub, event = forward.solve["saveat"].subs, forward.solve["event"]
    start = int(sub.t0)  # What is saved at t0 is y0 itself.
    rows = _filled(saved, cotangents[0].save_state, y0)
    wanted = is_nonzero(rows[2:])
    ts, ys, g_ts, g_ys = jax.tree.map(lambda x: x[start:], rows)
    rates = jax.vmap(lambda t, y: rate(terms, t, y, args))(jnp.where(jnp.isfinite(ts), ts, end), ys)
    theta, fixed = eqx.partition((terms, args), (perturbed[2], perturbed[1]))
    blocks = forward.blocks(record, terms, args)

    # The last row is for the time at which the solve ended, which in case of an event is neither t1 nor in ts.
    last = saved.save_index - 1 - start
    is_last = (jnp.arange(len(ts)) == last) & sub.t1
    until, dense = jnp.array(jnp.inf, end.dtype), blocks.last()
    by_root = event is not None and event.root_finder is not None and sub.t1
    if by_root:
        until = before_root(occurred, conditions, dense.begin(ts[last]), ts[last], dense, args)
        slope = _beside(lambda t: rate(terms, t, dense(t), args), ts[last], jnp.minimum(until, ts[last]))
        rates = jax.tree.map(lambda x, y: x.at[last].set(y), rates, slope)
    g_ts = g_ts + _product(g_ys, rates, axis=0).astype(g_ts.dtype)
    g_end = jnp.sum(jnp.where(is_last, g_ts, 0))
    ended = functools.reduce(operator.or_, jax.tree.leaves(occurred), jnp.array(False))
    g_args, g_conditions = None, eqx.filter(conditions, False)
    if by_root:
        parts = eqx.partition((args, conditions), (perturbed[1], perturbed[4]))
        g_y, (g_args, g_conditions) = pull_root(occurred, g_end, ts[last], get(ys, last), get(rates, last), *parts)
        g_ys = jax.tree.map(lambda g, more: g.at[last].add(more), g_ys, g_y)

    whole, span = wanted & came_through & (ended | (end >= times[1])), (times[0], end)
    since = times[0] + _NEAR * record.first_step()
    pull = Pullback(dense, theta, fixed, (since, until))
    a, (g_terms, more), dense = _backward(forward, pull, blocks, terms.direction, span, Outputs(ts, g_ys), whole)
    g_args = more if g_args is None else jax.tree.map(jnp.add, more, g_args)
    g_y0 = jax.tree.map(lambda a, g: a + g[0], a, rows[3]) if start else a

    def slope_after(t):
        y = jax.tree.map(lambda x, y: jnp.where(record.count > 0, x, y), dense(t), y0)
        return rate(terms, t, y, args)

    g_t0 = (rows[2][0] if start else 0) - _product(a, _beside(slope_after, times[0], since)).astype(end.dtype)
    g_in = None if times[2] is None else jnp.where(is_last, 0, g_ts)[: len(times[2])]
    g_times = (g_t0, jnp.where(ended, 0, g_end), g_in)
    grads = (*eqx.filter((g_y0, g_args, g_terms, g_times), perturbed[:4]), g_conditions)
    return undifferentiated(zero_unless(wanted, grads), why=_SECOND)


def _beside(slope: Callable, t: Scalar, near: Scalar) -> Y:
    """The slope at ``t`` on the side of ``near``: from there and as far again."""
    slopes = jax.vmap(slope)(t + (near - t) * jnp.array([1, 2], t.dtype))
    return jax.tree.map(lambda x: 2 * x[0] - x[1], slopes)


def _filled(saved: PyTree, g_saved: PyTree, y0: Y) -> tuple[Vector, Rows, Vector, Rows]:
    """Times and states of the outputs, a row each, and their cotangents; ``y0`` and zeros in rows left empty."""
    filled = jnp.isfinite(saved.ts)

    def where_filled(x, y):
        return jnp.where(filled.reshape(-1, *[1] * (x.ndim - 1)), x, y)

    def cotangent(x, g):
        return jnp.zeros_like(x) if g is None else where_filled(g, 0)

    g_ts, g_ys = jax.tree.map(cotangent, (saved.ts, saved.ys), (g_saved.ts, g_saved.ys))
    return saved.ts, jax.tree.map(where_filled, saved.ys, y0), g_ts, g_ys


def _product(a: Cotangent, b: Y, axis: int | None = None) -> Scalar | Vector:
    """The inner product of two states, or of each of their rows."""
    sums = jax.tree.map(lambda x, y: jnp.sum(x * y, axis=None if axis is None else tuple(range(1, x.ndim))), a, b)
    return functools.reduce(operator.add, jax.tree.leaves(sums))


def _backward(
    forward: ForwardSolve,
    pull: Pullback,
    blocks: DenseBlocks,
    direction: IntScalar,
    span: tuple[Scalar, Scalar],
    outputs: Outputs,
    whole: BoolScalar,
) -> tuple[Cotangent, Gradient, DenseOutput]:
    """a(t0), the gradients of (terms, args) and the first dense output, given the outputs after t0.

    Of a ``whole`` solve.
    """
    ts, cotangents = outputs.ts, outputs.cotangents
    if not len(ts):
        ts, cotangents = span[1][None], jax.tree.map(lambda g: jnp.zeros((1, *g.shape[1:]), g.dtype), cotangents)
    # The solve is linear: at this scale its absolute tolerance means the same whatever the loss.
    scale = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(g), initial=0) for g in jax.tree.leaves(cotangents)])
    scale = jnp.where(scale == 0, 1, scale)
    outputs = Outputs(ts, jax.tree.map(lambda g: g / scale.astype(g.dtype), cotangents))
    dt0 = forward.overrides.get("dt0", blocks.record.last_step())
    # As many as forward, where it may be that none is longer, those that are rejected, and those that end with a block
    # or at an output.
    steps = 2 * forward.solve["max_steps"] + blocks.record.tape.states.slots.steps + len(ts)
    max_steps = forward.overrides.get("max_steps", steps)
    tried = whole & jnp.isfinite(scale)
    a, integral, ok, dense = solve_backward(
        forward.steps(pull), blocks, forward.controller(direction), span, outputs, jnp.abs(dt0), max_steps, tried
    )
    found = jax.tree.map(lambda g: jnp.where(ok, g * scale.astype(g.dtype), jnp.nan), (a, integral))
    if forward.solve["throw"]:
        words = f"The backward solve of {CALL} did not reach t0: raise `max_steps` or loosen the tolerances."
        found = eqx.error_if(found, tried & ~ok, words)
    return *found, dense
