"""diffrax's loop, run with a tape, and its derivative: the accepted steps replayed from the last to the first.

The backward pass is the vector-Jacobian product of one step of the loop at each state on the tape (ACA,
arXiv 2006.02493). Two kinds of replay:

- by accepted step, with a step that is known to be accepted: no error estimate, no search, no rejected try;
- by try, with the loop's own body: exact also for events whose root is sought, and for any controller where the times
  are differentiated; the price is that of every try.

The loop's outputs are buffers that are written once at each place. Their cotangents are therefore the same at every
step, and need not be carried.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from steptape._errors import UnsupportedError
from steptape.compat._equinox import common_rewrite, nonbatchable, select_if_vmap, unvmap_max
from steptape.jax._autodiff.activity import perturbed_carry
from steptape.jax._autodiff.field import stopped
from steptape.jax._autodiff.refusals import forward_mode_only, reverse_mode_only
from steptape.jax._autodiff.wanted import is_wanted, only_if
from steptape.jax._tape.plan import Slots
from steptape.jax._tape.tape import Tape, Times

_CALL = "`diffeqsolve(..., adjoint=AdaptiveCheckpointAdjoint())`"
_FORWARD = (
    f"Forward mode (`jvp`, `jacfwd`, `linearize`) through {_CALL}: there is a tape to go back on, none to go forward "
    "with. Use `adjoint=diffrax.ForwardMode()`, or `adjoint=diffrax.DirectAdjoint()` for both modes; optimistix's "
    'least-squares solvers take `options={"jac": "bwd"}`.'
)
_FORWARD_OVER_REVERSE = (
    f"Forward mode over the reverse mode of {_CALL}: diffrax's own step is replayed here, whose loops over stages and "
    "over `SaveAt(ts=...)` know reverse mode alone. Use `adjoint=diffrax.DirectAdjoint()`; without `ts`, a Runge-Kutta "
    'solver made with `scan_kind="bounded"` will do as well.'
)
_REVERSE_OVER_REVERSE = (
    f"Reverse mode over the reverse mode of {_CALL}, by a `grad` of its gradient or by one `grad` through an optimum "
    "that was found with it (implicit differentiation): the backward pass is a loop over as many steps as the solve "
    "took, which JAX cannot run in reverse. Take the outer derivative with `jax.jacfwd`, or use "
    "`adjoint=diffrax.DirectAdjoint()`."
)


class Known(eqx.Module):
    """How to take a step that is known to be accepted.

    ``step(times, state)`` is the loop's body without the search, and ``kept`` is true for the leaves of a state that
    it reads. ``again`` does as ``step`` for ``y`` alone and is not differentiated, so that it need not be unrolled;
    None: ``step`` does it. ``rescales``: rejected tries may have shrunk a step. ``times_exact``: ``step`` knows how
    all times move; else it takes them from the tape, and will not do where they move.
    """

    step: Callable[[Times, Any], Any] | None
    again: Callable[[Times, Any], Any] | None
    kept: Any
    rescales: bool
    times_exact: bool


class _Settings(eqx.Module):
    max_steps: int | None
    checkpoints: int | None
    written: Any  # true for the buffers of a state
    known: Known | None  # without its step, which is differentiated, and how to take it again
    refusal: str | None
    only_reverse: bool  # whether forward mode over reverse mode is refused


class _Replay(eqx.Module):
    """The kind of replay, and which leaves of a state carry a cotangent."""

    by_try: bool
    carried: Any = None

    def count(self, state: Any) -> Any:
        """The row of the tape that ``state`` belongs in."""
        return state.num_steps if self.by_try else state.num_accepted_steps

    def step(self, fun: Callable, times: Times, state: Any) -> Any:
        """One step of the loop, by the body or by the known step."""
        if not self.by_try:
            return fun(times, state)
        running = jnp.array(True)
        return fun((jnp.array(0), running, running, state))[-1]


def replayed_while_loop(
    cond_fun: Callable,
    body_fun: Callable,
    init_val: Any,
    *,
    max_steps: int | None,
    buffers: Callable,
    known: Known | None,
    refusal: str | None,
    checkpoints: int | None,
    only_reverse: bool,
) -> Any:
    """diffrax's outer loop over ``State``; differentiated by replaying its steps, or refused with ``refusal``.

    ``only_reverse``: the loop's body does not know forward mode.
    """
    init_val = jax.tree.map(jnp.array, init_val)
    if max_steps == 0:
        return init_val
    cond, body, carry, _ = common_rewrite(cond_fun, body_fun, init_val, max_steps, buffers, makes_false_steps=False)
    cond = eqx.filter_closure_convert(cond, carry)
    body = eqx.filter_closure_convert(body, carry)
    written = _selected(buffers, init_val)
    step = again = None
    if known is not None:
        step, again, known = known.step, known.again, dataclasses.replace(known, step=None, again=None)
    settings = _Settings(max_steps, checkpoints, written, known, refusal, only_reverse)
    cond = stopped(cond)
    moving = reverse_mode_only((carry, body, step, again), _FORWARD)
    final = _run(moving, cond, settings)[-1]
    return final if refusal else _still(moving, final, settings=settings)


def _selected(select: Callable, tree: Any) -> Any:
    """True for the leaves of ``tree`` that are among those of ``select(tree)``."""
    leaves, structure = jax.tree.flatten(tree)
    places = jax.tree.unflatten(structure, range(len(leaves)))
    selected = set(jax.tree.leaves(select(places)))
    return jax.tree.map(lambda place: place in selected, places)


@eqx.filter_custom_vjp
def _run(vjp_arg, cond, settings):
    carry, body, *_ = vjp_arg
    return lax.while_loop(lambda c: cond(c), lambda c: body(c), carry)


@_run.def_fwd
def _run_fwd(perturbed, vjp_arg, cond, settings):
    if settings.only_reverse:
        vjp_arg = reverse_mode_only(vjp_arg, _FORWARD_OVER_REVERSE)
    carry, body, *_ = vjp_arg
    if settings.refusal is not None:
        return lax.while_loop(lambda c: cond(c), lambda c: body(c), carry), None
    replay, kept, proposals = _choose_replay(perturbed, vjp_arg, settings)

    def advance(taped):
        carry, tape = taped
        return body(carry), tape.write(replay.count(carry[-1]), eqx.filter(carry[-1], kept))

    tape = Tape.blank(Slots.for_steps(settings.max_steps, settings.checkpoints), eqx.filter(carry[-1], kept), proposals)
    carry, tape = lax.while_loop(lambda c: cond(c[0]), advance, (carry, tape))
    final = carry[-1]
    count = replay.count(final)
    return carry, (replay, count, tape.close(count, eqx.filter(final, kept)), eqx.filter(final, settings.written))


def _choose_replay(perturbed, vjp_arg, settings):
    """By accepted step where that is exact, else by try; which leaves to keep, and whether to note proposals."""
    (*_, state), body, step, _ = vjp_arg
    (*_, p_state), p_body, p_step, _ = perturbed
    times, known = Times(state.tnext, state.tnext, state.tnext), settings.known

    def replay(by_try, fun, p_fun):
        step = _Replay(by_try).step
        return _Replay(by_try, perturbed_carry(lambda f, s: step(f, times, s), fun, p_fun, state, p_state))

    if known is not None and known.times_exact:
        by_step = replay(False, step, p_step)
        return by_step, known.kept, known.rescales and _times_move(by_step.carried)
    by_try = replay(True, body, p_body)
    if known is not None and not _times_move(by_try.carried):
        return replay(False, step, p_step), known.kept, False
    return by_try, jax.tree.map(operator.not_, settings.written), False


def _times_move(carried: Any) -> bool:
    return any(jax.tree.leaves((carried.tprev, carried.tnext, carried.controller_state)))


@_run.def_bwd
def _run_bwd(residuals, g_carry, perturbed, vjp_arg, cond, settings):
    if settings.refusal is not None:
        raise UnsupportedError(settings.refusal)
    replay, count, tape, outputs = residuals
    carry, body, step, again = vjp_arg
    fun, p_fun = (body, perturbed[1]) if replay.by_try else (step, perturbed[2])
    # Constants may come back as literals, which are no arrays.
    state = eqx.combine(outputs, jax.tree.map(jnp.array, carry[-1]))
    g_state = _wanted(g_carry[-1], state, replay.carried)
    g_fun = jax.tree.map(lambda x, p: jnp.zeros_like(x) if p else None, fun, p_fun)
    if jax.tree.leaves(g_state):
        back = _Backward(replay, tape, fun, p_fun, None if replay.by_try else again, state, settings.written)
        g_state, g_fun = back.run(count, g_state, g_fun)
    g_state, g_fun = forward_mode_only((g_state, g_fun), _REVERSE_OVER_REVERSE)
    none = functools.partial(jax.tree.map, lambda _: None)
    g_carry = (None, None, None, g_state)
    g_body, g_step = (g_fun, none(step)) if replay.by_try else (none(body), g_fun)
    return g_carry, g_body, g_step, none(again)


@eqx.filter_custom_jvp
def _still(vjp_arg, final, *, settings):
    """``final``, without a tangent where nothing moves: a custom VJP gives one to all that it returns."""
    return final


@_still.def_jvp
def _still_jvp(primals, tangents, *, settings):
    vjp_arg, final = primals
    perturbed = jax.tree.map(lambda _, t: t is not None, vjp_arg, tangents[0])
    replay, _, _ = _choose_replay(perturbed, vjp_arg, settings)
    return final, jax.tree.map(lambda moves, t: t if moves else None, replay.carried, tangents[1])


def _wanted(g: Any, state: Any, carried: Any) -> Any:
    """The cotangents of the leaves that carry one, with zeros made real; nothing at all if all of them are zero."""
    g = eqx.filter(g, carried)
    if not jax.tree.leaves(g):
        return g

    def real(c, x, g):
        if not c:
            return None
        return jnp.zeros_like(x) if g is None else g

    return jax.tree.map(real, carried, state, g)


class _Backward(eqx.Module):
    """The reverse sweep over the tape."""

    replay: _Replay
    tape: Tape
    fun: Any
    p_fun: Any
    again: Any  # see Known
    state: Any  # any state of the loop, for the leaves that are not on the tape
    written: Any  # true for the buffers

    def run(self, count: Any, g_state: Any, g_fun: Any) -> tuple[Any, Any]:
        """Cotangents of the initial state and of the step's closed-over arrays, given that of the final state."""
        g_outputs, g_moving = eqx.partition(g_state, self.written)
        wanted, count = is_wanted(g_state), count.astype(jnp.int32)
        trips = nonbatchable(unvmap_max(jnp.where(wanted, count, 0)))

        def sweep(loop):
            i, shelf, g_moving, g_fun = loop
            i = i - 1
            states, shelf = self.tape.recall(i, shelf, self._advance)
            g_before, g_more = self._pull(i, states, eqx.combine(g_moving, g_outputs))
            g_before = eqx.filter(g_before, self.written, inverse=True)
            ran = i < count
            g_moving = jax.tree.map(functools.partial(select_if_vmap, ran), g_before, g_moving)
            g_more = jax.tree.map(lambda g: select_if_vmap(ran, g, jnp.zeros_like(g)), g_more)
            return i, shelf, g_moving, jax.tree.map(operator.add, g_fun, g_more)

        loop = (trips, self.tape.shelf(trips), g_moving, g_fun)
        _, _, g_moving, g_fun = lax.while_loop(lambda loop: loop[0] > 0, sweep, loop)
        g_moving, g_fun = only_if(wanted, (g_moving, g_fun))
        return eqx.combine(g_moving, g_outputs), g_fun

    def _pull(self, i: Any, states: Any, g: Any) -> tuple[Any, Any]:
        """The vector-Jacobian product of step ``i``: for the state before it, and for the step's closed-over arrays."""
        before, times = self._before(i, states)
        moving, fixed = eqx.partition(before, self.replay.carried)
        moving_fun, fixed_fun = eqx.partition(self.fun, self.p_fun)

        def forward(moving, moving_fun):
            after = self.replay.step(eqx.combine(moving_fun, fixed_fun), times, eqx.combine(moving, fixed))
            return eqx.filter(after, self.replay.carried)

        _, pull = jax.vjp(forward, moving, moving_fun)
        return pull(g)

    def _advance(self, i: Any, states: Any) -> Any:
        """The states on the tape after step ``i``, recomputed."""
        state, times = self._before(i, states)
        after = self.replay.step(self.fun, times, state) if self.again is None else self.again(times, state)
        return _like(states, after)

    def _before(self, i: Any, states: Any) -> tuple[Any, Times]:
        """The state before step ``i``, and its times.

        An element of a batch that has no such step takes its last one from its first state, for nothing: what is
        evaluated, a field or a Brownian path, may raise where the solve never was.
        """
        taken = i <= self.tape.last
        states = jax.tree.map(functools.partial(select_if_vmap, taken), states, _like(states, self.state))
        row, times = self.tape.row(jnp.minimum(i, jnp.maximum(self.tape.last, 0)), states)
        return eqx.combine(row, self.state), times


def _like(states: Any, state: Any) -> Any:
    """The leaves of ``state`` that are among ``states``."""
    return jax.tree.map(lambda x, y: None if x is None else y, states, state, is_leaf=lambda x: x is None)
