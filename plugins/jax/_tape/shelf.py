"""The states at hand in the backward pass, which asks for those of each step, the last one first.

A step that is not kept is reached from the latest kept one before it, and on the way states are kept in the slots that
have become free: ``steptape._plan.reversal`` as a stack, in a loop that is compiled.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import lax

from steptape.jax._tape.plan import Slots
from steptape.jax._tape.rows import get, put


class Shelf(eqx.Module):
    """A stack of kept states, whose step in place p is ``steps[p]`` and whose row is ``places[p]``.

    The row after the top one is free: the state on its way to a step is there.
    """

    rows: Any
    places: Any
    steps: Any
    top: Any
    slots: Slots = eqx.field(static=True)

    @classmethod
    def of(cls, rows: Any, holds: Any, end: Any, slots: Slots) -> "Shelf":
        """The states in ``rows`` of the steps in ``holds`` that come before ``end``; the row after those is free."""
        steps, places = lax.sort_key_val(holds, jnp.arange(slots.count, dtype=holds.dtype))
        top = jnp.sum(steps < end, dtype=holds.dtype) - 1
        return cls(rows, jnp.append(places, slots.count), steps, top, slots)

    def recall(self, i: Any, advance: Callable) -> tuple[Any, "Shelf"]:
        """The states of step ``i``, and what is left on the shelf; ``advance(n, states)`` takes step ``n``."""

        def goes_on(way):
            return way[0] < i

        def go_on(way):
            step, place, stop, shelf = way
            step, states = step + 1, advance(step, get(shelf.rows, place))
            place = shelf.places[shelf.top + 1]
            kept = (step == stop) & (step < i)
            top = shelf.top + kept.astype(shelf.top.dtype)
            steps = put(shelf.steps, top, jnp.where(kept, step, shelf.steps[top]))
            shelf = dataclasses.replace(shelf, rows=put(shelf.rows, place, states), steps=steps, top=top)
            return step, place, jnp.where(kept, shelf._next_stop(i), stop), shelf

        way = (self.steps[self.top], self.places[self.top], self._next_stop(i), self)
        _, place, _, shelf = lax.while_loop(goes_on, go_on, way)
        states = get(shelf.rows, place)
        return states, dataclasses.replace(shelf, top=shelf.top - (shelf.steps[shelf.top] == i).astype(shelf.top.dtype))

    def _next_stop(self, i: Any) -> Any:
        """The step on the way from the top to step ``i`` at which to keep the next state."""
        start = self.steps[self.top]
        return start + self.slots.split(i + 1 - start, self.slots.count - self.top)
