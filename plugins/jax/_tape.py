"""The tape of a solve: per accepted step its scalars, and for some steps the state.

A row is written before each try, at the number of steps accepted so far, so a rejected try is overwritten by the
next one and what remains is the accepted steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from steptape.compat._equinox import nonbatchable, unvmap_any
from steptape.jax._thinning import Thinning


def _put(rows: Any, i: Any, values: Any) -> Any:
    return jax.tree.map(lambda xs, x: lax.dynamic_update_index_in_dim(xs, x, i, 0), rows, values)


def _get(rows: Any, i: Any) -> Any:
    return jax.tree.map(lambda xs: lax.dynamic_index_in_dim(xs, i, 0, keepdims=False), rows)


def _allocate(count: int, values: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), values)


def split(row: Any) -> tuple[Any, Any]:
    """A row's scalars, kept for every step, and its states."""
    return eqx.partition(row, lambda x: x.ndim == 0)


class Times(NamedTuple):
    """What the rejected tries before an accepted step left behind: no field evaluation, just two times."""

    taken: Any  # where the step ended
    proposed: Any  # where the step after it was first meant to end


class Tape(eqx.Module):
    """Rows of ``(scalars, states)``; XLA zeroes buffers at full size, so only scalars get a row for every step."""

    scalars: Any
    states: Any
    proposed: Any
    last: Any
    level: Any
    plan: Thinning = eqx.field(static=True)

    @classmethod
    def blank(cls, plan: Thinning, row: Any, proposals: bool) -> "Tape":
        """An empty tape for rows like ``row``."""
        scalars, states = split(row)
        bins = 1 if plan.levels else 0
        proposed = jnp.zeros(plan.steps + 1, row.tnext.dtype) if proposals else None
        zero = jnp.zeros((), jnp.int32)
        return cls(
            _allocate(plan.steps + 1, scalars), _allocate(plan.slots + bins, states), proposed, zero - 1, zero, plan
        )

    def write(self, i: Any, row: Any) -> "Tape":
        """Put ``row`` down for step ``i``, over an earlier try's."""
        i = i.astype(jnp.int32)
        scalars, states = split(row)
        tape = eqx.tree_at(
            lambda t: (t.scalars, t.states, t.last),
            self,
            (_put(self.scalars, i, scalars), _put(self.states, self._slot(i), states), i),
        )
        return tape._propose(i, row.tnext, i == self.last)

    def close(self, i: Any, tnext: Any) -> "Tape":
        """Note where the step after the last one, ``i``, would have ended."""
        return self._propose(i.astype(jnp.int32), tnext, i == self.last)

    def _propose(self, i: Any, tnext: Any, tried_before: Any) -> "Tape":
        if self.proposed is None:
            return self
        proposed = jnp.where(tried_before, _get(self.proposed, i), tnext)
        return eqx.tree_at(lambda t: t.proposed, self, _put(self.proposed, i, proposed))

    def thin(self, i: Any) -> "Tape":
        """Make room when the next step to write, ``i``, is one too many for any element of the batch."""
        if not self.plan.levels:
            return self
        full = unvmap_any(i >= jnp.left_shift(self.plan.slots, self.level).astype(i.dtype))
        level = jnp.minimum(self.level + full, self.plan.levels)
        return eqx.tree_at(lambda t: t.level, self, nonbatchable(level))

    def _slot(self, i: Any) -> Any:
        if not self.plan.levels:
            return i
        k = jnp.right_shift(i, self.level)
        kept = jnp.left_shift(k, self.level) == i
        return jnp.where(kept, self._slot_of(k), self.plan.slots)

    def _slot_of(self, k: Any) -> Any:
        return jnp.asarray(self.plan.table.astype(np.int32))[self.level, k]

    def blank_memory(self) -> Any:
        """Room for the states of the steps from one kept step to the next, as ``states`` fills it."""
        return _allocate(self.plan.span, jax.tree.map(lambda xs: xs[0], self.states)) if self.plan.levels else None

    def recall(self, i: Any, is_last: Any, memory: Any, advance: Callable) -> tuple[Any, Any]:
        """The states of step ``i``, when asked for from the last step to the first, and the memory for the next.

        On entering the steps after a kept one, those in between are recomputed: ``advance(i, states)`` gives the
        states of step ``i + 1``.
        """
        if not self.plan.levels:
            return _get(self.states, i), memory
        start = jnp.left_shift(jnp.right_shift(i, self.level), self.level)
        behind = i - start
        enters = is_last | (behind == jnp.left_shift(1, self.level) - 1)

        def recompute(j, memory):
            return _put(memory, j + 1, advance(start + j, _get(memory, j)))

        memory = _put(memory, 0, _get(self.states, self._slot_of(jnp.right_shift(i, self.level))))
        memory = lax.fori_loop(0, jnp.where(enters, behind, 0), recompute, memory)
        return _get(memory, behind), memory

    def row(self, i: Any, states: Any) -> tuple[Any, Times]:
        """Step ``i`` as it was first proposed, given its ``states``, and the times around it."""
        row = eqx.combine(_get(self.scalars, i), states)
        if self.proposed is None:
            return row, Times(row.tnext, row.tnext)
        times = Times(row.tnext, _get(self.proposed, i + 1))
        return eqx.tree_at(lambda r: r.tnext, row, _get(self.proposed, i)), times
