"""The dense output of the forward solve, from which the backward one reads y(t), one block of its steps at a time.

The forward solve leaves the times of every step, the state before every block, or before some of them, and the dense
output of its last block. Any other block is opened by taking its steps again, with the times that are known.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PyTree

from steptape.compat._diffrax import with_fields
from steptape.compat._equinox import nonbatchable, select_if_vmap, unvmap_max
from steptape.jax._tape.plan import Checkpoints, Slots
from steptape.jax._tape.rows import allocate, get, put
from steptape.jax._tape.tape import Tape, split
from steptape.jax._types import (
    BoolScalar,
    DenseInfo,
    IntScalar,
    LoopState,
    Rows,
    Scalar,
    ScalarLike,
    SolverState,
    Vector,
    Y,
)


class Step(NamedTuple):
    """The times of an accepted step, with which it is taken again; or a row of them for each of many."""

    begin: Array
    end: Array
    made_jump: Array  # just before it


class DenseOutput(eqx.Module):
    """y(t) over a block of steps: that from ``begins[i]`` to ``ends[i]`` has its dense output in row ``i``."""

    begins: Vector
    ends: Vector  # infinite where there is no step
    dense_infos: Rows
    interpolation_cls: Callable = eqx.field(static=True)

    def __call__(self, t: ScalarLike) -> Y:
        """The state at ``t``, a scalar."""
        row = self._row(t)
        return self.interpolation_cls(t0=self.begins[row], t1=self.ends[row], **get(self.dense_infos, row)).evaluate(t)

    def begin(self, t: Scalar) -> Scalar:
        """Where the step that ``t`` is in begins."""
        return self.begins[self._row(t)]

    def reach(self, t: Scalar) -> Scalar:
        """The size of a step down from ``t``: the mean of the steps around, by their part."""
        row = self._row(t)
        size, before = (self.ends[n] - self.begins[n] for n in (row, jnp.maximum(row - 1, 0)))
        x = (t - self.begins[row]) / size
        reach = x * size + (1 - x) * before
        return jnp.where(reach > 0, reach, jnp.inf)

    def _row(self, t: ScalarLike) -> IntScalar:
        row = jnp.searchsorted(self.ends, t, side="left", method="scan_unrolled")
        return jnp.clip(row, 0, jnp.maximum(jnp.sum(jnp.isfinite(self.ends), dtype=row.dtype) - 1, 0))


class Record(eqx.Module):
    """The record of a forward solve: its ``steps``, the tape of the states before each block, the last block."""

    steps: Step  # a row each
    tape: Tape
    dense_infos: Rows  # step n is in row n % size; None until the record is closed
    count: PyTree[IntScalar]
    size: int = eqx.field(static=True)  # of a block, in steps

    @classmethod
    def blank(cls, state: LoopState, steps: int, checkpoints: int | None) -> "Record":
        """Room for ``steps`` steps, given the loop's first state, whose dense output has room for a block."""
        size = state.dense_ts.shape[0] - 1
        # One more of each: what is put down of a step or a block that does not come.
        slots = Slots.for_steps(-(-steps // size) + 1, checkpoints)
        tape = Tape.blank(slots, _before(state))
        return cls(allocate(steps + 1, _step(state)), tape, None, None, size)

    def write(self, state: LoopState) -> "Record":
        """Put down the step that begins at ``state``, over an earlier try of it.

        Each step puts its state down for the block to come, over those before it, so the block's own first is left.
        """
        n = state.num_accepted_steps
        tape = self.tape.write((n + self.size - 1) // self.size, _before(state))
        return dataclasses.replace(self, steps=put(self.steps, n, _step(state)), tape=tape)

    def close(self, state: LoopState) -> "Record":
        """The record of a solve that came to ``state``."""
        return dataclasses.replace(
            self, dense_infos=state.dense_infos, count=state.num_accepted_steps.astype(jnp.int32)
        )

    @property
    def blocks(self) -> IntScalar:
        """The number of blocks."""
        return (self.count + self.size - 1) // self.size

    def first_step(self) -> Scalar:
        """The size of the first step."""
        return self.steps.end[0] - self.steps.begin[0]

    def last_step(self) -> Scalar:
        """The larger of the last two steps: the last one may have been cut off at the end."""
        sizes = self.steps.end - self.steps.begin
        return jnp.maximum(sizes[jnp.maximum(self.count - 1, 0)], sizes[jnp.maximum(self.count - 2, 0)])


Held: TypeAlias = tuple[Rows, Checkpoints | None]  # the dense output of a block, and the states before others


@dataclasses.dataclass(frozen=True)
class DenseBlocks:
    """The blocks of a record, opened from the last to the first."""

    record: Record
    advance: Callable[[Step, Y, SolverState], tuple[Y, SolverState, DenseInfo]]  # take a step again
    interpolation_cls: Callable

    def last(self) -> DenseOutput:
        """The last block, as the forward solve left it."""
        return self._dense(jnp.maximum(self.record.blocks - 1, 0), self.record.dense_infos)

    def trips(self) -> IntScalar:
        """The number of blocks to open, in a batch for the element that has most of them."""
        return nonbatchable(unvmap_max(self.record.blocks))

    def closed(self) -> Held:
        """Hold what ``open`` needs to open the last block."""
        return self.record.dense_infos, self.record.tape.states.before(self.trips())

    def open(self, block: IntScalar, held: Held) -> tuple[DenseOutput, Held]:
        """Open ``block``; and what is held to open the one before it. For an element without it, any dense output."""
        dense_infos, kept = held
        record = self.record
        first, kept = record.tape.states.recall(block, kept, lambda n, states: split(self._walk(n, states)[0])[1])
        past = block < record.blocks - 1
        trips = nonbatchable(unvmap_max(jnp.where(past, record.size, 0)))
        _, opened = self._walk(block, first, trips, dense_infos)
        dense_infos = _if_batched(past, opened, dense_infos)
        return self._dense(block, dense_infos), (dense_infos, kept)

    def first(self, held: Held) -> DenseOutput:
        """The first block, once all are opened."""
        return self._dense(jnp.zeros_like(self.record.count), held[0])

    def _walk(
        self, block: IntScalar, states: LoopState, trips: IntScalar | None = None, dense_infos: Rows | None = None
    ) -> tuple[LoopState, Rows | None]:
        """The state before the block after ``block``, and its dense output if there is room for it."""
        record = self.record
        # An element of a batch that has no such block, or no such step in it, takes one again that it has, for nothing:
        # what is evaluated may raise where the solve never was.
        there = block < record.blocks
        states = _if_batched(there, states, get(record.tape.states.rows, 0))
        block = jnp.where(there, block, 0)
        start = eqx.combine(get(record.tape.scalars, block), states)

        def step(i, walked):
            before, dense_infos = walked
            first = block * record.size
            taken = functools.partial(_if_batched, first + i < record.count)
            now = taken(before, start)
            y, solver_state, dense_info = self.advance(
                get(record.steps, taken(first + i, first)), now.y, now.solver_state
            )
            y, solver_state = taken((y, solver_state), (before.y, before.solver_state))
            before = with_fields(before, y=y, solver_state=solver_state)
            return before, None if dense_infos is None else put(dense_infos, i, dense_info)

        return lax.fori_loop(0, record.size if trips is None else trips, step, (start, dense_infos))

    def _dense(self, block: IntScalar, dense_infos: Rows) -> DenseOutput:
        record = self.record
        n = block * record.size + jnp.arange(record.size, dtype=block.dtype)
        begins, ends, _ = (times[jnp.minimum(n, record.count)] for times in record.steps)
        return DenseOutput(begins, jnp.where(n < record.count, ends, jnp.inf), dense_infos, self.interpolation_cls)


def _if_batched(pred: BoolScalar, x: PyTree, y: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: select_if_vmap(pred, x, y), x, y)


def _step(state: LoopState) -> Step:
    return Step(state.tprev, state.tnext, state.made_jump)


def _before(state: LoopState) -> LoopState:
    """The part of the loop's state that is kept before a block."""
    nothing = eqx.filter(state, False)
    return with_fields(nothing, y=state.y, solver_state=state.solver_state, tnext=state.tnext)
