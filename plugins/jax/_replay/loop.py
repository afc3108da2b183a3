"""diffrax's outer loop, in a form that knows how it is replayed."""

import dataclasses
import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp

from steptape.compat._equinox import common_rewrite, while_loop
from steptape.jax._autodiff.converted import converted
from steptape.jax._autodiff.modes import call
from steptape.jax._autodiff.refusals import stopped
from steptape.jax._replay.accepted_step import AcceptedStep
from steptape.jax._replay.program import Solve
from steptape.jax._replay.recording import Parts, Settings
from steptape.jax._types import LoopState, Mask


def replayed_while_loop(
    cond_fun: Callable,
    body_fun: Callable,
    init_val: LoopState,
    *,
    max_steps: int | None,
    buffers: Callable,
    tried: Callable | None,
    bounded: Callable[[], Callable],
    accepted_step: AcceptedStep | None,
    refusal: str | None,
    checkpoints: int | None,
) -> LoopState:
    """Run diffrax's outer loop over ``State``, whose gradient replays its steps, or is refused with ``refusal``.

    The loop's body knows forward mode; ``tried`` is the same body for reverse mode, where tries may be replayed, and
    ``bounded()`` that for any mode, where one after the other does not do.
    """
    init_val = jax.tree.map(jnp.array, init_val)
    if max_steps == 0:
        return init_val

    def rewritten(body_fun):
        cond, body, carry, _ = common_rewrite(cond_fun, body_fun, init_val, max_steps, buffers, makes_false_steps=False)
        return cond, converted(body, carry), carry

    cond, body, carry = rewritten(body_fun)
    cond = stopped(converted(cond, carry))
    tried = None if tried is None else rewritten(tried)[1]
    reverse_alone = refusal is None and body.has_custom_vjp()
    ruled = refusal is None and body.has_custom_jvp()
    whole = None
    if (reverse_alone or ruled) and max_steps is not None:
        run = functools.partial(while_loop, cond_fun, bounded(), max_steps=max_steps, buffers=buffers, kind="bounded")
        whole = converted(run, carry[-1])
    step = advance = None
    if accepted_step is not None:
        step, advance = accepted_step.step, accepted_step.advance
        accepted_step = dataclasses.replace(accepted_step, step=None, advance=None)
    parts = Parts(carry, cond, body, tried, step, advance, whole)
    settings = Settings(
        max_steps, checkpoints, _selected(buffers, init_val), accepted_step, refusal, reverse_alone, ruled
    )
    arrays = [x for x in jax.tree.leaves(parts) if eqx.is_array(x)]
    leaves, structure = jax.tree.flatten(carry[-1])
    final = call(Solve(parts, settings), arrays)
    assert len(final) == len(leaves)
    return jax.tree.unflatten(structure, final)


def _selected(select: Callable, tree: LoopState) -> Mask:
    """True for the leaves of ``tree`` that are among those of ``select(tree)``."""
    leaves, structure = jax.tree.flatten(tree)
    places = jax.tree.unflatten(structure, range(len(leaves)))
    selected = set(jax.tree.leaves(select(places)))
    return jax.tree.map(lambda place: place in selected, places)
