"""The tape of a solve: per accepted step its scalars, and for some steps the state.

A row is written before each try, at the number of steps accepted so far, so a rejected try is overwritten by the
next one and what remains is the accepted steps. In a batch, what is kept goes by the element that is furthest ahead.
"""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import lax

from steptape.compat._diffrax import with_fields
from steptape.jax._tape.kept import Kept
from steptape.jax._tape.plan import Slots
from steptape.jax._tape.rows import allocate, get, put
from steptape.jax._types import BoolScalar, BoolScalarLike, IntScalar, LoopState, Rows, Scalar, Vector


def split(row: LoopState) -> tuple[LoopState, LoopState]:
    """A row's scalars, kept for every step, and its states."""
    return eqx.partition(row, lambda x: x.ndim == 0)


def _untimed(row: LoopState) -> LoopState:
    return with_fields(row, tprev=None, tnext=None)


class Times(NamedTuple):
    """What the controller made of an accepted step and of the rejected tries before it."""

    taken: Scalar  # where the step ended
    begun: Scalar  # where the step after it began: there, but for a jump in between
    proposed: Scalar  # where the step after it was first meant to end


class Tape(eqx.Module):
    """Rows of ``(scalars, states)``; XLA zeroes buffers at full size, so only scalars get a row for every step.

    ``points``: of steps each of which begins where the one before it ended, in place of both in the scalars.
    """

    scalars: Rows
    states: Kept
    points: Vector | None
    proposed: Vector | None
    last: IntScalar

    @classmethod
    def blank(cls, slots: Slots, row: LoopState, *, adjoining: bool = False, proposals: bool = False) -> "Tape":
        """An empty tape for rows like ``row``; ``adjoining``: each step begins where the one before it ended."""
        scalars, states = split(_untimed(row) if adjoining else row)
        return cls(
            scalars=allocate(slots.steps + 1, scalars),
            states=Kept.blank(slots, states),
            points=jnp.zeros(slots.steps + 2, row.tnext.dtype) if adjoining else None,
            proposed=jnp.zeros(slots.steps + 1, row.tnext.dtype) if proposals else None,
            last=jnp.array(-1, jnp.int32),
        )

    def emptied(self) -> "Tape":
        """Room for other steps in place of those on it."""
        return dataclasses.replace(self, states=self.states.emptied(True), last=jnp.full_like(self.last, -1))

    def write(
        self, i: IntScalar, row: LoopState, first: IntScalar | None = None, asked: BoolScalarLike = True
    ) -> "Tape":
        """Put ``row`` down for step ``i``, over an earlier try's; its states are kept as ``Kept.write`` does."""
        i = i.astype(jnp.int32)
        tape = self._put(i, row)
        tape = dataclasses.replace(tape, states=self.states.write(i, split(row)[1], first, asked), last=i)
        return tape._propose(i, row.tnext, i == self.last)

    def close(self, i: IntScalar, row: LoopState) -> "Tape":
        """Note where the step after the last one, ``i``, would have begun and ended."""
        i = i.astype(jnp.int32)
        return self._put(i, row)._propose(i, row.tnext, i == self.last)

    def _put(self, i: IntScalar, row: LoopState) -> "Tape":
        """Put down the scalars of step ``i``."""
        if self.points is None:
            return dataclasses.replace(self, scalars=put(self.scalars, i, split(row)[0]))
        scalars = put(self.scalars, i, split(_untimed(row))[0])
        points = lax.dynamic_update_slice(self.points, jnp.stack([row.tprev, row.tnext]), (i,))
        return dataclasses.replace(self, scalars=scalars, points=points)

    def _propose(self, i: IntScalar, tnext: Scalar, tried_before: BoolScalar) -> "Tape":
        if self.proposed is None:
            return self
        proposed = jnp.where(tried_before, get(self.proposed, i), tnext)
        return dataclasses.replace(self, proposed=put(self.proposed, i, proposed))

    def row(self, i: IntScalar, states: LoopState) -> tuple[LoopState, Times]:
        """Step ``i`` as it was first proposed, given its ``states``, and the times around it."""
        row = eqx.combine(get(self.scalars, i), states)
        if self.points is None:
            begun = get(self.scalars.tprev, i + 1)
        else:
            begun = get(self.points, i + 1)
            row = with_fields(row, tprev=get(self.points, i), tnext=begun)
        if self.proposed is None:
            return row, Times(row.tnext, begun, row.tnext)
        times = Times(row.tnext, begun, get(self.proposed, i + 1))
        return with_fields(row, tnext=get(self.proposed, i)), times
