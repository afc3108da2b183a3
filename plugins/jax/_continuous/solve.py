"""A solve with a continuous adjoint: forward with a record of its steps, backward from its outputs."""

import functools
import operator
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from steptape._errors import UnsupportedError
from steptape.compat._diffrax import loop as host_loop
from steptape.compat._diffrax import with_fields
from steptape.compat._equinox import while_loop
from steptape.jax._autodiff.field import differentiated_once, rate, still, undifferentiated
from steptape.jax._autodiff.refusals import reverse_mode_only
from steptape.jax._autodiff.wanted import is_wanted, only_if
from steptape.jax._continuous.backward import HostSteps, Outputs, Pullback, StageSteps, solve_backward
from steptape.jax._continuous.dense import Blocks, Record, recorded_while_loop
from steptape.jax._continuous.event import pull_root
from steptape.jax._replay.runge_kutta import is_explicit
from steptape.jax._tape.plan import Slots
from steptape.jax._tape.rows import get

CALL = "`diffeqsolve(..., adjoint=QuadratureAdjoint(...))`"
_SECOND = (
    f"Second derivatives of {CALL}, also by one `grad` through an optimum that was found with its gradient: the "
    "backward pass is an adaptive solve of its own. Use `adjoint=diffrax.DirectAdjoint()`."
)
_FORWARD = (
    f"Forward mode (`jvp`, `jacfwd`, `linearize`) through {CALL}: the adjoint goes back on the solution, there is none "
    "to go forward with. Use `adjoint=diffrax.ForwardMode()`, or `adjoint=diffrax.DirectAdjoint()` for both modes; "
    'optimistix\'s least-squares solvers take `options={"jac": "bwd"}`.'
)


def solve_continuously(moving: tuple, call: "Call") -> tuple[Any, Any]:
    """diffrax's final state and statistics; ``moving``: y0, args, terms, (t0, t1, ts), the functions of the event."""
    moving = reverse_mode_only(differentiated_once(moving, why=_SECOND), _FORWARD)
    final, stats = _solve(moving, call)
    inexact, fixed = eqx.partition(final, eqx.is_inexact_array)
    return eqx.combine(inexact, still(fixed)), stats


class Call(eqx.Module):
    """What is not differentiated."""

    solve: dict[str, Any]
    overrides: dict[str, Any]
    nodes: int | None = eqx.field(static=True)
    checkpoints: int | None = eqx.field(static=True)
    refusal: str | None = eqx.field(static=True)

    def forward(
        self,
        y0: Any,
        args: Any,
        terms: Any,
        times: tuple,
        conditions: Any,
        *,
        rows: int | None = None,
        outer_while_loop: Any = None,
    ) -> tuple[Any, Any]:
        """diffrax's loop, or another one, with so many ``rows`` of dense output."""
        solve = {name: value for name, value in self.solve.items() if name != "throw"}
        state, saveat = with_fields(solve.pop("init_state"), y=y0), solve.pop("saveat")
        t0, t1, ts = times
        if ts is not None:
            saveat = eqx.tree_at(lambda s: s.subs.ts, saveat, ts)
        if rows is not None:
            saveat = eqx.tree_at(lambda s: s.dense, saveat, True)
            state = _with_dense_output(state, solve["solver"], terms, args, rows)
        if conditions is not None:
            solve["event"] = eqx.tree_at(lambda e: e.cond_fn, solve["event"], conditions, is_leaf=lambda x: x is None)
        inner_while_loop = functools.partial(while_loop, kind="lax")
        solve["outer_while_loop"] = outer_while_loop or inner_while_loop
        solve["inner_while_loop"] = inner_while_loop
        return host_loop(terms=terms, args=args, t0=t0, t1=t1, init_state=state, saveat=saveat, **solve)

    def recorded(self, *moving: Any) -> tuple[Any, Any, Record]:
        """The same, and the record of it."""
        records = []

        def outer_while_loop(*functions, **loop):
            final, record = recorded_while_loop(*functions, checkpoints=self.checkpoints, **loop)
            records.append(record)
            return final

        rows = Slots.for_steps(self.solve["max_steps"], self.checkpoints).count
        final, stats = self.forward(*moving, rows=rows, outer_while_loop=outer_while_loop)
        return with_fields(final, dense_ts=None, dense_infos=None, dense_save_index=None), stats, records[0]

    def blocks(self, record: Record, terms: Any, args: Any) -> Blocks:
        """The trajectory in ``record``."""
        solver = self.solve["solver"]

        def take(step, y, solver_state):
            y, _, info, solver_state, _ = solver.step(
                terms, step.begin, step.end, y, args, solver_state, step.made_jump
            )
            return y, solver_state, info

        return Blocks(record, take, solver.interpolation_cls)

    def steps(self, pull: Pullback) -> StageSteps | HostSteps:
        """How the backward solve takes its steps."""
        solver = self.overrides.get("solver", self.solve["solver"])
        if self.nodes is None and is_explicit(solver):
            return StageSteps(pull, solver)
        order = solver.order(diffrax.ODETerm(pull.slope))
        return HostSteps(pull, solver, self.nodes or max(1, (order + 1) // 2))

    def controller(self, direction: Any) -> Any:
        """The controller of the backward solve, in its own direction of time."""
        if "stepsize_controller" in self.overrides:
            return self.overrides["stepsize_controller"].wrap(direction).wrap(-1)
        return self.solve["stepsize_controller"].wrap(-1)


def _with_dense_output(state: Any, solver: Any, terms: Any, args: Any, steps: int) -> Any:
    """The loop's first state, with room for the dense output of so many ``steps``."""
    _, _, info, _, _ = eqx.filter_eval_shape(
        solver.step, terms, state.tprev, state.tnext, state.y, args, state.solver_state, state.made_jump
    )
    infos = jax.tree.map(lambda x: jnp.zeros((steps, *x.shape), x.dtype), info)
    ts = jnp.zeros(steps + 1, state.tprev.dtype)
    return with_fields(state, dense_ts=ts, dense_infos=infos, dense_save_index=0)


@eqx.filter_custom_vjp
def _solve(moving, call):
    return call.forward(*moving)


@_solve.def_fwd
def _solve_fwd(perturbed, moving, call):
    if call.refusal is not None:
        return call.forward(*moving), None
    final, stats, record = call.recorded(*moving)
    came_through = diffrax.is_okay(final.result)
    return (final, stats), (record, final.save_state, final.tprev, came_through, final.event_mask)


@_solve.def_bwd
def _solve_bwd(residuals, cotangents, perturbed, moving, call):
    if call.refusal is not None:
        raise UnsupportedError(call.refusal)
    record, saved, end, came_through, occurred = residuals
    y0, args, terms, times, conditions = moving
    # In a branch it has come back as an integer of a width, with which no time may be multiplied.
    terms = with_fields(terms, direction=jnp.where(terms.direction > 0, 1, -1))
    sub, event = call.solve["saveat"].subs, call.solve["event"]
    start = int(sub.t0)  # What is saved at t0 is y0 itself.
    rows = _filled(saved, cotangents[0].save_state, y0)
    wanted = is_wanted(rows[2:])
    ts, ys, g_ts, g_ys = jax.tree.map(lambda x: x[start:], rows)
    rates = jax.vmap(lambda t, y: rate(terms, t, y, args))(jnp.where(jnp.isfinite(ts), ts, end), ys)
    g_ts = g_ts + _product(g_ys, rates, axis=0).astype(g_ts.dtype)

    # The last row is for the time at which the solve ended, which in case of an event is neither t1 nor in ts.
    last = saved.save_index - 1 - start
    is_last = (jnp.arange(len(ts)) == last) & sub.t1
    g_end = jnp.sum(jnp.where(is_last, g_ts, 0))
    ended = functools.reduce(operator.or_, jax.tree.leaves(occurred), jnp.array(False))
    g_args, g_conditions = None, eqx.filter(conditions, False)
    if event is not None and event.root_finder is not None and sub.t1:
        parts = eqx.partition((args, conditions), (perturbed[1], perturbed[4]))
        g_y, (g_args, g_conditions) = pull_root(occurred, g_end, ts[last], get(ys, last), get(rates, last), *parts)
        g_ys = jax.tree.map(lambda g, more: g.at[last].add(more), g_ys, g_y)

    theta, fixed = eqx.partition((terms, args), (perturbed[2], perturbed[1]))
    blocks = call.blocks(record, terms, args)
    pull = Pullback(blocks.last(), theta, fixed)
    whole = wanted & came_through & (ended | (end >= times[1]))
    a, (g_terms, more) = _backward(call, pull, blocks, terms.direction, (times[0], end), Outputs(ts, g_ys), whole)
    g_args = more if g_args is None else jax.tree.map(jnp.add, more, g_args)
    g_y0 = jax.tree.map(lambda a, g: a + g[0], a, rows[3]) if start else a
    g_t0 = (rows[2][0] if start else 0) - _product(a, rate(terms, times[0], y0, args)).astype(end.dtype)
    g_in = None if times[2] is None else jnp.where(is_last, 0, g_ts)[: len(times[2])]
    g_times = (g_t0, jnp.where(ended, 0, g_end), g_in)
    grads = (*eqx.filter((g_y0, g_args, g_terms, g_times), perturbed[:4]), g_conditions)
    return undifferentiated(only_if(wanted, grads), why=_SECOND)


def _filled(saved: Any, g_saved: Any, y0: Any) -> tuple[Any, Any, Any, Any]:
    """Times and states of the outputs, a row each, and their cotangents; ``y0`` and zeros in rows left empty."""
    filled = jnp.isfinite(saved.ts)

    def where_filled(x, y):
        return jnp.where(filled.reshape(-1, *[1] * (x.ndim - 1)), x, y)

    def cotangent(x, g):
        return jnp.zeros_like(x) if g is None else where_filled(g, 0)

    g_ts, g_ys = jax.tree.map(cotangent, (saved.ts, saved.ys), (g_saved.ts, g_saved.ys))
    return saved.ts, jax.tree.map(where_filled, saved.ys, y0), g_ts, g_ys


def _product(a: Any, b: Any, axis: int | None = None) -> Any:
    """The inner product of two states, or of each of their rows."""
    sums = jax.tree.map(lambda x, y: jnp.sum(x * y, axis=None if axis is None else tuple(range(1, x.ndim))), a, b)
    return functools.reduce(operator.add, jax.tree.leaves(sums))


def _backward(
    call: Call, pull: Pullback, blocks: Blocks, direction: Any, span: tuple, outputs: Outputs, whole: Any
) -> tuple[Any, Any]:
    """a(t0) and the gradients of (terms, args), given the outputs after t0, for a ``whole`` solve."""
    ts, cotangents = outputs.ts, outputs.cotangents
    if not len(ts):
        ts, cotangents = span[1][None], jax.tree.map(lambda g: jnp.zeros((1, *g.shape[1:]), g.dtype), cotangents)
    # The solve is linear: at this scale its absolute tolerance means the same whatever the loss.
    scale = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(g)) for g in jax.tree.leaves(cotangents)])
    scale = jnp.where(scale == 0, 1, scale)
    outputs = Outputs(ts, jax.tree.map(lambda g: g / scale.astype(g.dtype), cotangents))
    dt0 = call.overrides.get("dt0", blocks.record.last_step())
    # As many as forward, where it may be that none is longer, those that are rejected, and those that end with a block
    # or at an output.
    steps = 2 * call.solve["max_steps"] + blocks.record.tape.slots.steps + len(ts)
    max_steps = call.overrides.get("max_steps", steps)
    tried = whole & jnp.isfinite(scale)
    a, integral, ok = solve_backward(
        call.steps(pull), blocks, call.controller(direction), span, outputs, jnp.abs(dt0), max_steps, tried
    )
    found = jax.tree.map(lambda g: jnp.where(ok, g * scale.astype(g.dtype), jnp.nan), (a, integral))
    if call.solve["throw"]:
        words = f"The backward solve of {CALL} did not reach t0: raise `max_steps` or loosen the tolerances."
        found = eqx.error_if(found, tried & ~ok, words)
    return found
