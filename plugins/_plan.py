"""Which states of a solve to keep, and how to get the others back: plain integers, no tensors.

A solve of unknown length runs forward and keeps at most k of the states y_0, y_1, ... at which its steps start. The
backward pass replays the steps from the last to the first and recomputes the states that are missing. The kept states
cut the solve into segments, and each is reversed with its own slot and those the later segments have left free.

The least number of recomputed steps is known in closed form (Griewank 1992). Forward, the keeper drops the state whose
loss costs least; up to (k + 1)(k + 2)/2 - 1 steps that is as good as knowing the length in advance (Stumm and Walther
2010), and little worse beyond. Backward, a segment's length is known and the best split is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from math import comb, inf, isqrt
from typing import Literal, NamedTuple


@cache
def recomputed(steps: int, slots: int) -> int:
    """The least number of steps to take again to reverse ``steps`` steps with ``slots`` slots, one for their start."""
    repeats = _repeats(steps, slots)
    return repeats * steps - comb(slots + repeats, repeats - 1) if repeats else 0


def _repeats(steps: int, slots: int) -> int:
    """The least r such that no step need be taken again more than r times: C(slots + r, r) >= steps."""
    repeats = 0
    while comb(slots + repeats, repeats) < steps:
        repeats += 1
    return repeats


class Keeper:
    """Chooses online which states to keep: ``offer`` 0, 1, 2, ... in turn, and let go of what it says.

    ``kept``: the steps whose starting states are kept, increasing; 0 always is. ``slots`` is k, or None for no limit.
    """

    def __init__(self, slots: int | None):
        self.slots = slots
        self.kept: list[int] = []
        # Per place, for ``_cheapest``: what the places up to it change, the least cost among them, and whose it is.
        self._best: list[tuple[float, float, int]] = [(0, inf, 0)]
        # Whether those kept are the ones that would be had there been this limit from the start.
        self._even = True

    def offer(self, step: int) -> int | None:
        """Keep the state at which ``step`` starts. Returns the step whose state goes for it, if one must."""
        self.kept.append(step)
        if self.slots is None or len(self.kept) <= self.slots:
            return None
        return self.kept.pop(self._cheapest())

    def shrink(self) -> int:
        """Keep one state less from now on. Returns the step whose state goes."""
        self._even = self._even and self.slots is None
        self.slots = len(self.kept) - 1
        self._best = [(0, inf, 0)]
        return self.kept.pop(self._cheapest())

    def _cheapest(self) -> int:
        """The place in ``kept`` to give up: what comes before it joins with it, and what comes after gains a slot."""
        assert self.slots is not None
        # As long as no step need be taken again twice, the segments fill up one after the other.
        to_come = self.slots * (self.slots + 1) // 2 - (self.kept[-1] - self.slots)
        if to_come > 0 and self._even:
            return self.slots - (isqrt(8 * to_come - 7) - 1) // 2
        # A place's cost, less what all segments cost with a slot gained, depends on those up to it alone: it is still
        # known for the places well before the one last given up.
        ends = [*self.kept, self.kept[-1] + 1]
        for place in range(len(self._best), self.slots + 1):
            free = self.slots - place + 1
            before, middle, after = ends[place - 1 : place + 2]
            change, cost, best = self._best[-1]
            change -= recomputed(after - middle, free)
            joined = change + recomputed(after - before, free)
            self._best.append((change + recomputed(middle - before, free), *min((cost, best), (joined, place))))
        place = self._best[-1][-1]
        del self._best[max(place - 1, 1) :]
        return place


def slots_of(steps: int, slots: int) -> Iterator[int]:
    """The slot that each of ``steps`` steps is kept in: that of the step given up for it, or ``slots`` if it is not."""
    keeper = Keeper(slots)
    taken: dict[int, int] = {}
    for step in range(steps):
        dropped = keeper.offer(step)
        if dropped == step:
            yield slots
        else:
            taken[step] = len(taken) if dropped is None else taken.pop(dropped)
            yield taken[step]


class Action(NamedTuple):
    """One move of the backward pass, which has one state at hand besides those in slots.

    ``load``: take y_step from its slot to hand. ``advance``: from y_step at hand to y_(step + 1). ``keep``: put y_step
    at hand into a slot too. ``replay``: differentiate step ``step`` from y_step at hand. ``drop``: free y_step's slot.
    """

    kind: Literal["load", "advance", "keep", "replay", "drop"]
    step: int


def reversal(kept: Sequence[int], steps: int, slots: int | None) -> Iterator[Action]:
    """The moves that replay ``steps`` steps from the last to the first, from the ``kept`` states within ``slots``."""
    ends = [*kept[1:], steps]
    for place in reversed(range(len(kept))):
        free = len(kept) if slots is None else slots
        yield from _segment(kept[place], ends[place], free - place)


def _segment(start: int, end: int, slots: int) -> Iterator[Action]:
    """Reverse the steps of a segment whose start is in a slot; frees that slot at the end."""
    parts = [(start, end, slots)]
    while parts:
        start, end, slots = parts.pop()
        yield Action("load", start)
        if end - start == 1:
            yield Action("replay", start)
            yield Action("drop", start)
            continue
        middle = start + _split(end - start, slots)
        yield from (Action("advance", step) for step in range(start, middle))
        parts.append((start, middle, slots))
        if end - middle == 1:
            yield Action("replay", middle)
        else:
            yield Action("keep", middle)
            parts.append((middle, end, slots - 1))


def _split(steps: int, slots: int) -> int:
    """How many steps of a segment come before the next state to keep: the rest is as long as its slots allow."""
    repeats = _repeats(steps, slots)
    rest = comb(slots - 1 + repeats, repeats) if slots > 1 else 1
    return max(steps - rest, comb(slots + repeats - 2, repeats - 2) if repeats > 1 else 1)
