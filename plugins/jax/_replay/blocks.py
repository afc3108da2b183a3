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
from steptape.jax._tape.tape import Tape, split
from steptape.jax._types import BoolScalar, IntScalar, LoopState, Mask

# Blocks have no more steps, and no fewer.
_MOST, _LEAST = 4096, 64
# As many blocks are planned for where the number of steps is not known; those after them are reached from the last one.
_MANY = 4096


@dataclasses.dataclass(frozen=True)
class Room:
    """How many steps are in a block, and the slots for the states of steps and for those before blocks."""

    steps: Slots
    blocks: Slots | None  # None where there is one block

    @classmethod
    def of(cls, max_steps: int | None, checkpoints: int | None, spare: float) -> "Room":
        """For at most ``max_steps`` steps and ``checkpoints`` states; ``spare``: the steps that each makes room for.

        A third of the checkpoints are for the states before blocks. By default a solve is one block, if it may be: it
        needs no second run of the loop in its program.
        """
        given = max_steps if checkpoints is None else checkpoints
        assert given is not None
        count = Slots.for_steps(given, None).count if checkpoints is None else checkpoints
        # Half of it for several blocks, whose program has more of everything.
        one, size = (min(max(_LEAST, int(spare * count / n)), _MOST) for n in (1, 2))
        if max_steps is not None and max_steps <= (_MOST if checkpoints is None else one):
            return cls(Slots.for_steps(max_steps, checkpoints), None)
        # One more than there may be: a state is put down only where a block begins.
        most = 1 + (_MANY if max_steps is None else -(-max_steps // size))
        blocks = Slots.for_steps(most, max(1, min(count // 3, most - 1)))
        return cls(Slots.for_steps(size, max(1, count - blocks.count)), blocks)


def spare_steps(row: LoopState, state: LoopState, *, adjoining: bool, proposals: bool) -> float:
    """How many steps' scalars there is room for beside a kept ``row``, if a checkpoint takes no more than diffrax's.

    That is the loop's ``state``; and a quarter of y, for diffrax moves its checkpoints about, which ours are not.
    """
    scalars, states = split(row)
    per_step = _bytes(scalars) + (proposals - adjoining) * _bytes(row.tnext)
    return (_bytes(state) - 0.75 * _bytes(states)) / max(per_step, 1)


def _bytes(tree: LoopState) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


class Blocks(eqx.Module):
    """The tape of the block that a solve, or the furthest of a batch, is in, and the states before blocks."""

    tape: Tape
    before: Kept
    block: IntScalar
    last: IntScalar  # the step that was written last

    @classmethod
    def blank(cls, room: Room, row: LoopState, state: LoopState, **timing: bool) -> "Tape | Blocks":
        """Room for rows like ``row``, ``timing`` as of a ``Tape``, and for states like ``state``."""
        tape = Tape.blank(room.steps, row, **timing)
        if room.blocks is None:
            return tape
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
    step: Callable  # by the loop's body, of no given times
    state: LoopState  # any state of the loop, for the leaves that are not kept
    kept: Mask  # true for what is on the tape
    written: Mask  # true for the buffers
    count: IntScalar  # the number of steps of the solve, of the type that blocks are counted in

    def recorded(self, block: IntScalar, start: LoopState, tape: Tape) -> tuple[LoopState, Tape]:
        """The state after ``block``, which begins with ``start``, and the tape of it, in the place of another one.

        An element of a batch without a step in the block stays where the solve began, for nothing.
        """
        size = tape.states.slots.steps
        first = block * size
        end = jnp.minimum(self.count, first + size)
        start = jax.tree.map(lambda x, y: select_if_vmap(first < self.count, x, y), start, self._filtered(self.state))

        def at(state: LoopState) -> IntScalar:
            return self.replay.count(state).astype(end.dtype)

        def runs(state: LoopState) -> BoolScalar:
            return (first < self.count) & (at(state) < end)

        def row(state: LoopState) -> tuple[IntScalar, LoopState]:
            return jnp.clip(at(state) - first, 0, size), eqx.filter(state, self.kept)

        def take(walked: tuple[LoopState, Tape]) -> tuple[LoopState, Tape]:
            state, tape = walked
            after = self.step(None, eqx.combine(state, self.state))
            after = jax.tree.map(lambda x, y: select_if_vmap(runs(state), x, y), self._filtered(after), state)
            return after, tape.write(*row(state))

        state, tape = lax.while_loop(lambda w: nonbatchable(unvmap_any(runs(w[0]))), take, (start, tape.emptied()))
        return state, tape.close(*row(state))

    def pull_back(self, blocks: Blocks, wanted: BoolScalar, pull: Callable, cotangents: Pulled) -> Pulled:
        """Pull ``cotangents`` back through all blocks, with ``pull`` through that on a tape."""
        walk = dataclasses.replace(self, count=jnp.where(wanted, self.count, 0))
        trips = nonbatchable(jnp.where(unvmap_any(wanted), blocks.block + 1, 0))

        def pull_last(loop):
            block, tape, left, cotangents = loop
            block, size = block - 1, blocks.size
            # i is 0, but not before the tape has been read: so the block before is recorded in its place.
            tape, i, cotangents = pull(tape, jnp.clip(walk.count - block * size, 0, size), cotangents)
            before = block - 1 + i
            states, left = blocks.before.recall(before, left, lambda n, states: walk.recorded(n, states, tape)[0])
            return block, walk.recorded(before, states, tape)[1], left, cotangents

        loop = (trips, blocks.tape, blocks.before.before(blocks.block), cotangents)
        return lax.while_loop(lambda loop: loop[0] > 0, pull_last, loop)[-1]

    def _filtered(self, state: LoopState) -> LoopState:
        return eqx.filter(state, self.written, inverse=True)
