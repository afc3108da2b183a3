"""The checkpoint plan of ``steptape._plan`` for a loop that is compiled: its decisions, read from tables.

What is kept depends on nothing but the number of steps so far, so the slot of each step is known beforehand. The
backward pass asks for the states of each step, the last one first: one that is not kept is reached from the latest kept
one before it, and on the way states are kept in the slots that have become free. That is ``steptape._plan.reversal`` as
a stack; a segment is split in closed form, by binomial coefficients.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax

from steptape._plan import slots_of
from steptape.jax._tape.rows import get, put
from steptape.jax._types import IntScalar, IntScalarLike, IntVector, LoopState, Rows


@dataclasses.dataclass(frozen=True)
class Slots:
    """Room for ``count`` states of at most ``steps`` steps."""

    steps: int
    count: int

    @classmethod
    def for_steps(cls, steps: int, checkpoints: int | None) -> "Slots":
        """``checkpoints`` slots; by default ``2 sqrt(steps)``, or 64 if that is more: no step is taken again twice."""
        count = max(64, math.ceil(2 * math.sqrt(steps))) if checkpoints is None else checkpoints
        return cls(steps, min(count, steps))

    @property
    def suffice(self) -> bool:
        """Whether every step can be kept."""
        return self.count == self.steps

    def of(self, i: IntScalar) -> IntScalar:
        """The slot of step ``i``, or ``count`` if it is not kept, as those after ``steps`` are not."""
        slot = get(jnp.asarray(_slots(self.steps, self.count)), i)
        return jnp.where(i < self.steps, slot, self.count)

    def split(self, steps: IntScalar, free: IntScalar) -> IntScalar:
        """How many of the ``steps`` steps of a segment come before the next state to keep, as ``_plan`` splits it."""
        binomials = jnp.asarray(_binomials(self.steps, self.count))
        row = get(binomials, free)
        repeats = jnp.sum(row < steps, dtype=jnp.int32)
        rest = binomials[free - 1, repeats]
        return jnp.maximum(steps - rest, row[jnp.maximum(repeats - 2, 0)])


@functools.lru_cache(maxsize=16)
def _slots(steps: int, slots: int) -> np.ndarray:
    return np.fromiter(slots_of(steps, slots), np.int32, steps)


@functools.lru_cache(maxsize=16)
def _binomials(steps: int, slots: int) -> np.ndarray:
    """``C(s + r, r)`` in row s and column r, up to ``steps``; the last column is for all that follow."""
    # One slot repeats up to ``steps`` times, but is split before its last step all the same; two need all columns.
    rows = [np.ones(1 + math.isqrt(2 * steps), np.int64)]
    for _ in range(slots):
        rows.append(np.minimum(np.cumsum(rows[-1]), steps + 1))
    return np.stack(rows).astype(np.int32)


class Checkpoints(eqx.Module):
    """A stack of kept states, whose step in place p is ``steps[p]`` and whose row is ``places[p]``.

    The row after the top one is free: the state on its way to a step is there.
    """

    rows: Rows
    places: IntVector
    steps: IntVector
    top: IntScalar
    slots: Slots = eqx.field(static=True)

    @classmethod
    def of(cls, rows: Rows, holds: IntVector, end: IntScalarLike, slots: Slots) -> "Checkpoints":
        """The states in ``rows`` of the steps in ``holds`` that come before ``end``; the row after those is free."""
        steps, places = lax.sort_key_val(holds, jnp.arange(slots.count, dtype=holds.dtype))
        top = jnp.sum(steps < end, dtype=holds.dtype) - 1
        return cls(rows, jnp.append(places, slots.count), steps, top, slots)

    def recall(self, i: IntScalar, advance: Callable) -> tuple[LoopState, "Checkpoints"]:
        """The states of step ``i``, and what is left of the stack; ``advance(n, states)`` takes step ``n``."""

        def goes_on(way):
            return way[0] < i

        def go_on(way):
            step, place, stop, stack = way
            step, states = step + 1, advance(step, get(stack.rows, place))
            place = stack.places[stack.top + 1]
            kept = (step == stop) & (step < i)
            top = stack.top + kept.astype(stack.top.dtype)
            steps = put(stack.steps, top, jnp.where(kept, step, stack.steps[top]))
            stack = dataclasses.replace(stack, rows=put(stack.rows, place, states), steps=steps, top=top)
            return step, place, jnp.where(kept, stack._next_stop(i), stop), stack

        way = (self.steps[self.top], self.places[self.top], self._next_stop(i), self)
        _, place, _, stack = lax.while_loop(goes_on, go_on, way)
        states = get(stack.rows, place)
        return states, dataclasses.replace(stack, top=stack.top - (stack.steps[stack.top] == i).astype(stack.top.dtype))

    def _next_stop(self, i: IntScalar) -> IntScalar:
        """The step on the way from the top to step ``i`` at which to keep the next state."""
        start = self.steps[self.top]
        return start + self.slots.split(i + 1 - start, self.slots.count - self.top)
