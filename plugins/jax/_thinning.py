"""Which accepted steps keep their state when nobody knows how many steps there will be.

Every step is kept until the slots are full; then every other one is forgotten and only each 2nd step is kept, then
each 4th, and so on. What is forgotten is recomputed once, from the kept step before it. Plain integers: the loop
reads the plan from a table.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Thinning:
    """Room for ``slots`` states on a tape of at most ``steps`` accepted steps."""

    steps: int
    slots: int

    @classmethod
    def for_steps(cls, steps: int) -> "Thinning":
        """A plan of few states that recomputes no step twice: about ``2 sqrt(steps)`` slots, or 64 if that is more."""
        slots = max(64, 2 ** math.ceil(math.log2(2 * math.sqrt(steps))))
        return cls(steps, min(slots, steps))

    @property
    def levels(self) -> int:
        """How often the tape can fill up."""
        return max(0, math.ceil(math.log2(self.steps / self.slots)))

    @property
    def span(self) -> int:
        """The widest distance between two kept steps; also the states a backward pass recomputes at a time."""
        return 2**self.levels

    @property
    def table(self) -> np.ndarray:
        """``table[level, k]`` is the slot of step ``k * 2**level`` once the tape has filled up ``level`` times.

        A kept step never moves: the even entries stay, the odd ones are the slots that were freed.
        """
        rows = [np.arange(self.slots)]
        for _ in range(self.levels):
            rows.append(np.concatenate([rows[-1][0::2], rows[-1][1::2]]))
        return np.stack(rows)
