"""Solves of many steps, or of no known number of them, a block of steps at a time.

A tape has room for a block, so that room and time go with the steps that are taken and not with those that may be. At
the end of the solve it has the last block. The others are recorded again, from the loop's whole state before each of
them, of which the plan keeps some as it does those of steps.
"""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from steptape.compat._equinox import nonbatchable, select_if_vmap, unvmap_any, unvmap_max
from steptape.jax._replay.sweep import Pulled, Replay
from steptape.jax._tape.kept import Kept
from steptape.jax._tape.plan import Slots
from steptape.jax._tape.tape import Tape
from steptape.jax._types import BoolScalar, IntScalar, LoopState, Mask

# Solves of no more steps are one block: they need no second run of the loop in their program.
_ONE = 4096
# As many blocks are planned for where the number of steps is not known; those after them are reached from the last one.
_MANY = 4096


@dataclasses.dataclass(frozen=True)
class Room:
    """How many steps are in a block, and the slots for the states of steps and for those before blocks."""

    steps: Slots
    blocks: Slots | None  # None where there is one block

    @classmethod
    def of(cls, max_steps: int | None, checkpoints: int | None) -> "Room":
        """For at most ``max_steps`` steps and ``checkpoints`` states: a quarter of them for those before blocks."""
        if max_steps is not None and max_steps <= _ONE:
            return cls(Slots.for_steps(max_steps, checkpoints), None)
        if checkpoints is None:
            assert max_steps is not None
            checkpoints = Slots.for_steps(max_steps, None).count
        # A row of scalars is a fraction of the loop's state, of which the host keeps one a checkpoint.
        size = min(max(256, 16 * checkpoints), _ONE)
        count = _MANY if max_steps is None else -(-max_steps // size)
        # One more than there may be: a state is put down only where a block begins.
        blocks = Slots.for_steps(count + 1, max(1, min(checkpoints // 4, count)))
        return cls(Slots.for_steps(size, max(1, checkpoints - blocks.count)), blocks)


class Blocks(eqx.Module):
    """The tape of the block that a solve, or the furthest of a batch, is in, and the states before blocks."""

    tape: Tape
    before: Kept
    block: IntScalar
    last: IntScalar  # the step that was written last

    @classmethod
    def blank(cls, room: Room, row: LoopState, proposals: bool, state: LoopState) -> "Blocks":
        """Room for rows like ``row``, and for states like ``state``."""
        assert room.blocks is not None
        tape = Tape.blank(room.steps, row, proposals)
        return cls(tape, Kept.blank(room.blocks, state), jnp.array(0, jnp.int32), jnp.array(-1, jnp.int32))

    @property
    def size(self) -> int:
        """The number of steps in a block."""
        return self.tape.states.slots.steps

    def write(self, i: IntScalar, row: LoopState, state: LoopState) -> "Blocks":
        """Put down the ``row`` of step ``i``, over an earlier try's, and its ``state`` where a block begins."""
        i = i.astype(jnp.int32)
        first = nonbatchable(unvmap_max(i))
        (block, place), (furthest, first) = jnp.divmod(i, self.size), jnp.divmod(first, self.size)
        before = self.before.write(block, state, furthest, (place == 0) & (i != self.last))
        states = self.tape.states.emptied(furthest != self.block)
        tape = dataclasses.replace(self.tape, states=states).write(place, row, first, block == furthest)
        return Blocks(tape, before, furthest, i)

    def close(self, i: IntScalar, row: LoopState) -> "Blocks":
        """Note where the step after the last one, ``i``, would have begun and ended."""
        i = i.astype(jnp.int32)
        # After the last step of a block, in the row after it.
        place = i - jnp.maximum(i - 1, 0) // self.size * self.size
        return dataclasses.replace(self, tape=self.tape.close(place, row))


@dataclasses.dataclass(frozen=True)
class Walk:
    """The solve once more, over a block."""

    replay: Replay
    body: Callable
    state: LoopState  # any state of the loop, for the leaves that are not kept
    kept: Mask  # true for what is on the tape
    written: Mask  # true for the buffers
    proposals: bool
    count: IntScalar  # the number of steps of the solve, of the type that blocks are counted in

    def recorded(self, block: IntScalar, start: LoopState, room: Slots) -> tuple[LoopState, Tape]:
        """The state after ``block``, which begins with ``start``, and the tape of it.

        An element of a batch without a step in the block stays where the solve began, for nothing.
        """
        first = block * room.steps
        end = jnp.minimum(self.count, first + room.steps)
        start = jax.tree.map(lambda x, y: select_if_vmap(first < self.count, x, y), start, self._filtered(self.state))

        def at(state: LoopState) -> IntScalar:
            return self.replay.count(state).astype(end.dtype)

        def runs(state: LoopState) -> BoolScalar:
            return (first < self.count) & (at(state) < end)

        def row(state: LoopState) -> tuple[IntScalar, LoopState]:
            return jnp.clip(at(state) - first, 0, room.steps), eqx.filter(state, self.kept)

        def take(walked: tuple[LoopState, Tape]) -> tuple[LoopState, Tape]:
            state, tape = walked
            running = jnp.array(True)
            after = self.body((jnp.array(0), running, running, eqx.combine(state, self.state)))[-1]
            after = jax.tree.map(lambda x, y: select_if_vmap(runs(state), x, y), self._filtered(after), state)
            return after, tape.write(*row(state))

        tape = Tape.blank(room, eqx.filter(self.state, self.kept), self.proposals)
        state, tape = lax.while_loop(lambda w: nonbatchable(unvmap_any(runs(w[0]))), take, (start, tape))
        return state, tape.close(*row(state))

    def pull_back(self, blocks: Blocks, wanted: BoolScalar, pull: Callable, cotangents: Pulled) -> Pulled:
        """Pull ``cotangents`` back through all blocks, with ``pull`` through that on a tape."""
        room = blocks.tape.states.slots
        count = jnp.where(wanted, self.count, 0)
        trips = nonbatchable(unvmap_max((count + room.steps - 1) // room.steps))

        def again(block, left):
            states, left = blocks.before.recall(block, left, lambda n, states: self.recorded(n, states, room)[0])
            return self.recorded(block, states, room)[1], left

        def pull_last(loop):
            block, left, cotangents = loop
            block = block - 1
            last = block == blocks.block
            tape, left = lax.cond(last, lambda block, left: (blocks.tape, left), again, block, left)
            cotangents = pull(tape, jnp.clip(count - block * room.steps, 0, room.steps), cotangents)
            return block, left, cotangents

        loop = (trips, blocks.before.before(jnp.minimum(trips, blocks.block)), cotangents)
        return lax.while_loop(lambda loop: loop[0] > 0, pull_last, loop)[-1]

    def _filtered(self, state: LoopState) -> LoopState:
        return eqx.filter(state, self.written, inverse=True)
