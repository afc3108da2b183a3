"""States kept by the plan: rows for as many as there are slots, of steps that may be more.

In a batch, what is kept goes by the element that is furthest ahead.
"""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp

from steptape.compat._equinox import nonbatchable, unvmap_max
from steptape.jax._tape.plan import Checkpoints, Slots
from steptape.jax._tape.rows import allocate, get, put
from steptape.jax._types import BoolScalarLike, IntScalar, IntVector, LoopState, Rows


class Kept(eqx.Module):
    """States of some steps, a row each."""

    rows: Rows
    holds: IntVector | None  # which step each row is for, the same for a whole batch; None if all steps are kept
    slots: Slots = eqx.field(static=True)

    @classmethod
    def blank(cls, slots: Slots, states: LoopState) -> "Kept":
        """Room for states like ``states``."""
        # A row more, for what is not kept; the backward pass has the state at hand there.
        count = slots.count + (not slots.suffice)
        return cls(allocate(count, states), None if slots.suffice else jnp.full(count, slots.steps, jnp.int32), slots)

    def emptied(self, empty: BoolScalarLike) -> "Kept":
        """The same, if it is ``empty`` with no step held."""
        if self.holds is None:
            return self
        return dataclasses.replace(self, holds=nonbatchable(jnp.where(empty, self.slots.steps, self.holds)))

    def write(
        self, i: IntScalar, states: LoopState, first: IntScalar | None = None, asked: BoolScalarLike = True
    ) -> "Kept":
        """Keep ``states`` for step ``i`` if ``asked`` and in the plan; ``first``: that of the furthest of a batch."""
        if self.holds is None:
            return dataclasses.replace(self, rows=put(self.rows, i, states))
        first = unvmap_max(i) if first is None else first
        holds = nonbatchable(put(self.holds, self.slots.of(first), first))
        slot = self.slots.of(i)
        slot = jnp.where((get(holds, slot) == i) & asked, slot, self.slots.count)
        return dataclasses.replace(self, rows=put(self.rows, slot, states), holds=holds)

    def before(self, end: IntScalar) -> Checkpoints | None:
        """Those before step ``end``, to be asked for from the last to the first; None if none is missing."""
        return None if self.holds is None else Checkpoints.of(self.rows, self.holds[:-1], end, self.slots)

    def recall(self, i: IntScalar, left: Checkpoints | None, advance: Callable) -> tuple[LoopState, Checkpoints | None]:
        """The states of step ``i``, and what is left: see ``Checkpoints.recall``."""
        return (get(self.rows, i), None) if left is None else left.recall(i, advance)

    def after(self, left: Checkpoints | None) -> "Kept":
        """The same rows, of which ``left`` is left once states have been recalled: to be emptied and written to."""
        return self if left is None else dataclasses.replace(self, rows=left.rows)
