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
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from steptape._errors import UnsupportedError
from steptape.compat._diffrax import with_fields
from steptape.jax._autodiff.activity import active_leaves, settled
from steptape.jax._autodiff.jacobians import Arrays, Flags
from steptape.jax._replay.accepted_step import AcceptedStep
from steptape.jax._replay.blocks import Blocks, Room, Walk, spare_steps
from steptape.jax._replay.sweep import Replay, Sweep
from steptape.jax._tape.tape import Tape, Times
from steptape.jax._types import LoopState, Mask


class Parts(eqx.Module):
    """What a solve is made of; the functions hold the arrays that they read."""

    carry: Any  # of the loop: the state is its last member
    cond: Callable
    body: Callable  # knows forward mode
    tried: Callable | None  # the same for reverse mode, if it may be needed
    step: Callable | None  # see AcceptedStep
    advance: Callable | None
    whole: Callable | None  # the loop in a form that JAX differentiates in any mode, if it may be needed

    def run(self) -> LoopState:
        """The final state."""
        return lax.while_loop(lambda c: self.cond(c), lambda c: self.body(c), self.carry)[-1]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is known of a solve beside its parts."""

    max_steps: int | None
    checkpoints: int | None
    written: Mask  # true for the buffers of a state
    accepted_step: AcceptedStep | None  # without its functions
    refusal: str | None  # why nothing can be pulled back
    reverse_alone: bool  # a function in the loop has no derivative in forward mode
    ruled: bool  # one has a rule of the user's for forward mode, which may be no derivative


class Recording:
    """How a solve is recorded and replayed, for the gradient in what is ``perturbed``.

    Attributes:
        moving: which arrays of the final state carry a derivative.
    """

    def __init__(self, perturbed: Parts, parts: Parts, settings: Settings) -> None:
        self._perturbed, self._settings = perturbed, settings
        self._replay, self._kept, self._timing = _choose_replay(perturbed, parts, settings)
        self._room = None if settings.refusal else self._room_for(parts.carry[-1])
        # Of the loop's whole state more moves than what a replayed step reads, such as a last stage.
        blocks = self._room is not None and self._room.blocks is not None
        self._moves_whole = _replay_of(True, "body", perturbed, parts).active if blocks else None
        self.moving = tuple(jax.tree.leaves(self._replay.active))
        self._structure: Any = None
        self._inexact: Any = None

    @property
    def kind(self) -> tuple[bool, bool]:
        """What the tape depends on, beside the solve."""
        return self._replay.by_try, self._timing["proposals"]

    def _room_for(self, state: LoopState) -> Room:
        spare = spare_steps(eqx.filter(state, self._kept), self._whole(state), **self._timing)
        return Room.of(self._settings.max_steps, self._settings.checkpoints, spare)

    def _whole(self, state: LoopState) -> LoopState:
        return eqx.filter(state, self._settings.written, inverse=True)

    def run(self, parts: Parts) -> tuple[list, list]:
        """The arrays of the final state, and those of the tape."""
        settings, replay, kept = self._settings, self._replay, self._kept
        if self._room is None:
            return jax.tree.leaves(parts.run()), []

        room = self._room

        def row(state: LoopState) -> LoopState:
            return eqx.filter(state, kept)

        def body_on_tape(taped):
            carry, tape = taped
            state = carry[-1]
            more = () if room.blocks is None else (self._whole(state),)
            return parts.body(carry), tape.write(replay.count(state), row(state), *more)

        start = parts.carry[-1]
        tape = Blocks.blank(room, row(start), self._whole(start), **self._timing)
        carry, tape = lax.while_loop(lambda c: parts.cond(c[0]), body_on_tape, (parts.carry, tape))
        final = carry[-1]
        count = replay.count(final)
        tape = tape.close(count, row(final))
        taped = (count.astype(jnp.int32), tape, eqx.filter(final, settings.written))
        leaves, self._structure = jax.tree.flatten(taped)
        self._inexact = jax.tree.map(eqx.is_inexact_array, taped)
        return jax.tree.leaves(final), leaves

    def moving_on(self, tape: "Recording") -> Flags:
        """Which arrays of that tape, which has been made, move with what is perturbed here."""
        if tape._room is None:
            return ()
        active = self._replay.active
        _, taped, outputs = tape._inexact
        blocks = None
        if isinstance(taped, Blocks):
            before = with_fields(taped.before, rows=_both(self._moves_whole, taped.before.rows))
            blocks, taped = with_fields(taped, before=before), taped.tape
        states = with_fields(taped.states, rows=_both(active, taped.states.rows))
        times = {
            "points": None if taped.points is None else active.tprev or active.tnext,
            "proposed": None if taped.proposed is None else active.tnext,
        }
        taped = with_fields(taped, scalars=_both(active, taped.scalars), states=states, **times)
        taped = taped if blocks is None else with_fields(blocks, tape=taped)
        return tuple(jax.tree.leaves((False, taped, _both(active, outputs))))

    def _taking(self, parts: Parts, name: str, moves: Mask) -> Callable[[Times | None, LoopState], LoopState]:
        """Steps by one of the parts, which are not transposed, as those are that were taken for the tape."""
        step = Replay(name == "body").step
        fun, p_fun = getattr(parts, name), getattr(self._perturbed, name)
        if not self._settings.ruled:
            return functools.partial(step, fun)
        return functools.partial(settled, step, (p_fun, False, moves), fun)

    def sweep(self, parts: Parts, tape: Arrays, w: Arrays, told: "Recording") -> Parts:
        """The gradient in what is perturbed, given the cotangents of what is moving; None where it is zero.

        ``told``: what has made the tape.
        """
        settings, replay = self._settings, self._replay
        if settings.refusal is not None:
            raise UnsupportedError(settings.refusal)
        count, recorded, outputs = jax.tree.unflatten(told._structure, tape)
        name = "tried" if replay.by_try else "step"
        fun, p_fun = getattr(parts, name), getattr(self._perturbed, name)
        advance = self._taking(parts, "body" if replay.by_try else "advance", replay.active)
        # Constants may come back as literals, which are no arrays.
        state = eqx.combine(outputs, jax.tree.map(jnp.array, parts.carry[-1]))
        values = iter(w)
        g_state = jax.tree.map(lambda moves: next(values) if moves else None, replay.active)
        g_fun = jax.tree.map(lambda x, p: jnp.zeros_like(x) if p else None, fun, p_fun)
        if jax.tree.leaves(g_state):

            def pull_back(wanted, pull, cotangents):
                if isinstance(recorded, Tape):
                    return pull(recorded, count, cotangents)[-1]
                step = self._taking(parts, "body", self._moves_whole)
                walk = Walk(replay, step, state, self._kept, settings.written, count)
                return walk.pull_back(recorded, wanted, pull, cotangents)

            sweep = Sweep(replay, fun, p_fun, advance, state, settings.written)
            g_state, g_fun = sweep.run(pull_back, g_state, g_fun)
        nothing = jax.tree.map(lambda _: None, parts)
        return dataclasses.replace(nothing, carry=(None, None, None, g_state), **{name: g_fun})


def _both(active: Mask, inexact: Mask) -> Mask:
    """What is marked in both, where there is something in the second."""
    return jax.tree.map(lambda a, x: None if x is None else a and x, active, inexact)


def _replay_of(by_try: bool, name: str, perturbed: Parts, parts: Parts) -> Replay:
    """The replay by one of the parts, with what carries a derivative in it."""
    state, p_state = parts.carry[-1], perturbed.carry[-1]
    times, step = Times(state.tnext, state.tnext, state.tnext), Replay(by_try).step
    fun, p_fun = getattr(parts, name), getattr(perturbed, name)
    return Replay(by_try, active_leaves(lambda f, s: step(f, times, s), fun, p_fun, state, p_state))


def _choose_replay(perturbed: Parts, parts: Parts, settings: Settings) -> tuple[Replay, Mask, dict[str, bool]]:
    """Replay by accepted step where that is exact, else by try; which leaves to keep, and how to note times."""
    accepted_step = settings.accepted_step
    replay = functools.partial(_replay_of, perturbed=perturbed, parts=parts)
    adjoining = accepted_step is not None and accepted_step.adjoining
    if accepted_step is not None and accepted_step.times_exact:
        by_step = replay(False, "step")
        proposals = accepted_step.rescales and _times_move(by_step.active)
        return by_step, accepted_step.kept, {"adjoining": adjoining, "proposals": proposals}
    by_try = replay(True, "body" if parts.tried is None else "tried")
    if accepted_step is not None and not _times_move(by_try.active):
        return replay(False, "step"), accepted_step.kept, {"adjoining": adjoining, "proposals": False}
    return by_try, jax.tree.map(operator.not_, settings.written), {"adjoining": False, "proposals": False}


def _times_move(active: Mask) -> bool:
    return any(jax.tree.leaves((active.tprev, active.tnext, active.controller_state)))
