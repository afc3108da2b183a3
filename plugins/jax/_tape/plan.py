"""The checkpoint plan of ``steptape._plan`` for a loop that is compiled: its decisions, read from tables.

What is kept depends on nothing but the number of steps so far, so the slot of each step is known beforehand. Backward,
a segment is split in closed form, by binomial coefficients.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from steptape._plan import slots_of
from steptape.jax._tape.rows import get


@dataclass(frozen=True)
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

    def of(self, i: Any) -> Any:
        """The slot of step ``i``, or ``count`` if it is not kept."""
        return get(jnp.asarray(_slots(self.steps, self.count)), i)

    def split(self, steps: Any, free: Any) -> Any:
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
