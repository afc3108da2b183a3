"""diffrax's loop, run with a tape, and its derivative: the accepted steps replayed from the last to the first.

Two kinds of replay:

- by accepted step, with a step that is known to be accepted: no error estimate, no search, no rejected try;
- by try, with the loop's own body: exact also for events whose root is sought, and for any controller where the times
  are differentiated; the price is that of every try.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree

from steptape._errors import UnsupportedError
from steptape.compat._equinox import common_rewrite
from steptape.jax._autodiff.activity import active_leaves
from steptape.jax._autodiff.refusals import forward_mode_only, reverse_mode_only, stopped
from steptape.jax._replay.accepted_step import AcceptedStep
from steptape.jax._replay.sweep import Replay, Sweep
from steptape.jax._tape.plan import Slots
from steptape.jax._tape.tape import Tape, Times
from steptape.jax._types import Cotangent, LoopState, Mask

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


class _Settings(eqx.Module):
    max_steps: int | None
    checkpoints: int | None
    written: Mask  # true for the buffers of a state
    accepted_step: AcceptedStep | None  # without its functions, which are differentiated
    refusal: str | None
    only_reverse: bool  # whether forward mode over reverse mode is refused


def replayed_while_loop(
    cond_fun: Callable,
    body_fun: Callable,
    init_val: LoopState,
    *,
    max_steps: int | None,
    buffers: Callable,
    accepted_step: AcceptedStep | None,
    refusal: str | None,
    checkpoints: int | None,
    only_reverse: bool,
) -> LoopState:
    """Run diffrax's outer loop over ``State``, differentiated by replaying its steps, or refused with ``refusal``.

    ``only_reverse``: the loop's body does not know forward mode.
    """
    init_val = jax.tree.map(jnp.array, init_val)
    if max_steps == 0:
        return init_val
    cond, body, carry, _ = common_rewrite(cond_fun, body_fun, init_val, max_steps, buffers, makes_false_steps=False)
    cond = eqx.filter_closure_convert(cond, carry)
    body = eqx.filter_closure_convert(body, carry)
    written = _selected(buffers, init_val)
    step = advance = None
    if accepted_step is not None:
        step, advance = accepted_step.step, accepted_step.advance
        accepted_step = dataclasses.replace(accepted_step, step=None, advance=None)
    settings = _Settings(max_steps, checkpoints, written, accepted_step, refusal, only_reverse)
    cond = stopped(cond)
    moving = reverse_mode_only((carry, body, step, advance), _FORWARD)
    final = _run(moving, cond, settings)[-1]
    return final if refusal else _without_inactive_tangents(moving, final, settings=settings)


def _selected(select: Callable, tree: PyTree) -> Mask:
    """True for the leaves of ``tree`` that are among those of ``select(tree)``."""
    leaves, structure = jax.tree.flatten(tree)
    places = jax.tree.unflatten(structure, range(len(leaves)))
    selected = set(jax.tree.leaves(select(places)))
    return jax.tree.map(lambda place: place in selected, places)


@eqx.filter_custom_vjp
def _run(vjp_arg: tuple, cond: Callable, settings: _Settings) -> PyTree:
    carry, body, *_ = vjp_arg
    return lax.while_loop(lambda c: cond(c), lambda c: body(c), carry)


@_run.def_fwd
def _run_fwd(perturbed: Mask, vjp_arg: tuple, cond: Callable, settings: _Settings) -> tuple[PyTree, tuple | None]:
    if settings.only_reverse:
        vjp_arg = reverse_mode_only(vjp_arg, _FORWARD_OVER_REVERSE)
    carry, body, *_ = vjp_arg
    if settings.refusal is not None:
        return lax.while_loop(lambda c: cond(c), lambda c: body(c), carry), None
    assert settings.max_steps is not None
    replay, kept, proposals = _choose_replay(perturbed, vjp_arg, settings)

    def body_on_tape(taped):
        carry, tape = taped
        return body(carry), tape.write(replay.count(carry[-1]), eqx.filter(carry[-1], kept))

    tape = Tape.blank(Slots.for_steps(settings.max_steps, settings.checkpoints), eqx.filter(carry[-1], kept), proposals)
    carry, tape = lax.while_loop(lambda c: cond(c[0]), body_on_tape, (carry, tape))
    final = carry[-1]
    count = replay.count(final)
    return carry, (replay, count, tape.close(count, eqx.filter(final, kept)), eqx.filter(final, settings.written))


def _choose_replay(perturbed: Mask, vjp_arg: tuple, settings: _Settings) -> tuple[Replay, Mask, bool]:
    """Replay by accepted step where that is exact, else by try; which leaves to keep, whether to note proposals."""
    (*_, state), body, step, _ = vjp_arg
    (*_, p_state), p_body, p_step, _ = perturbed
    times, accepted_step = Times(state.tnext, state.tnext, state.tnext), settings.accepted_step

    def replay(by_try: bool, fun: Callable, p_fun: Mask) -> Replay:
        step = Replay(by_try).step
        return Replay(by_try, active_leaves(lambda f, s: step(f, times, s), fun, p_fun, state, p_state))

    if accepted_step is not None and accepted_step.times_exact:
        by_step = replay(False, step, p_step)
        return by_step, accepted_step.kept, accepted_step.rescales and _times_move(by_step.active)
    by_try = replay(True, body, p_body)
    if accepted_step is not None and not _times_move(by_try.active):
        return replay(False, step, p_step), accepted_step.kept, False
    return by_try, jax.tree.map(operator.not_, settings.written), False


def _times_move(active: Mask) -> bool:
    return any(jax.tree.leaves((active.tprev, active.tnext, active.controller_state)))


@_run.def_bwd
def _run_bwd(
    residuals: PyTree, g_carry: Cotangent, perturbed: Mask, vjp_arg: tuple, cond: Callable, settings: _Settings
) -> tuple:
    if settings.refusal is not None:
        raise UnsupportedError(settings.refusal)
    replay, count, tape, outputs = residuals
    carry, body, step, advance = vjp_arg
    fun, p_fun = (body, perturbed[1]) if replay.by_try else (step, perturbed[2])
    # Constants may come back as literals, which are no arrays.
    state = eqx.combine(outputs, jax.tree.map(jnp.array, carry[-1]))
    g_state = _with_real_zeros(g_carry[-1], state, replay.active)
    g_fun = jax.tree.map(lambda x, p: jnp.zeros_like(x) if p else None, fun, p_fun)
    if jax.tree.leaves(g_state):
        sweep = Sweep(replay, tape, fun, p_fun, None if replay.by_try else advance, state, settings.written)
        g_state, g_fun = sweep.run(count, g_state, g_fun)
    g_state, g_fun = forward_mode_only((g_state, g_fun), _REVERSE_OVER_REVERSE)
    none = functools.partial(jax.tree.map, lambda _: None)
    g_carry = (None, None, None, g_state)
    g_body, g_step = (g_fun, none(step)) if replay.by_try else (none(body), g_fun)
    return g_carry, g_body, g_step, none(advance)


@eqx.filter_custom_jvp
def _without_inactive_tangents(vjp_arg: tuple, final: LoopState, *, settings: _Settings) -> LoopState:
    """``final``, without a tangent where nothing moves: a custom VJP gives one to all that it returns."""
    return final


@_without_inactive_tangents.def_jvp
def _without_inactive_tangents_jvp(primals, tangents, *, settings):
    vjp_arg, final = primals
    perturbed = jax.tree.map(lambda _, t: t is not None, vjp_arg, tangents[0])
    replay, _, _ = _choose_replay(perturbed, vjp_arg, settings)
    return final, jax.tree.map(lambda moves, t: t if moves else None, replay.active, tangents[1])


def _with_real_zeros(g: LoopState, state: LoopState, active: Mask) -> LoopState:
    """The cotangents of the leaves that carry one, with zeros made real; nothing at all if all of them are zero."""
    g = eqx.filter(g, active)
    if not jax.tree.leaves(g):
        return g

    def real(c, x, g):
        if not c:
            return None
        return jnp.zeros_like(x) if g is None else g

    return jax.tree.map(real, active, state, g)
