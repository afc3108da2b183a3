"""The evaluations of a try of an explicit Runge–Kutta method: what the host's operations return, to the bit.

The host sums over slopes that lie side by side, entry by entry, in which torch is slow: of a large state that takes as
long as a good part of func. There they lie one after the other, and are added in the order in which torch adds.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# From how many entries of a state on they do.
_LARGE = 2**12
# Which of some terms are added to each other, first to last, and then the sums of these, first to last.
Order = tuple[tuple[int, ...], ...]


class _SideBySide:
    """The slopes of a try as the host has them: all, each, and the first i + 1."""

    def __init__(self, y: Tensor, count: int):
        self.all = y.new_empty(*y.shape, count)
        self.each = self.all.unbind(-1)
        self._first = [self.all[..., : i + 1] for i in range(count)]

    def sum(self, weights: Tensor) -> Tensor:
        """That of the first ones, with a weight each."""
        return (self._first[len(weights) - 1] * weights).sum(-1)


class _OneByOne:
    """The slopes of a try; ``orders``: in which the host adds i + 1 terms; ``terms``: room for these, one by one."""

    def __init__(self, terms: Tensor, orders: Sequence[Order]):
        slopes = torch.empty_like(terms)
        self.each, self._terms, self._orders = slopes.unbind(), terms.unbind(), orders
        self._first = [(slopes[: i + 1], terms[: i + 1]) for i in range(len(orders))]
        self._upright = (-1, *[1] * (terms.ndim - 1))

    @property
    def all(self) -> Tensor:
        """As the host has them."""
        return torch.stack(self.each, dim=-1)

    def sum(self, weights: Tensor) -> Tensor:
        """The same, readable until the next one is made in the same room."""
        last = len(weights) - 1
        slopes, terms = self._first[last]
        torch.mul(slopes, weights.view(self._upright), out=terms)
        return _added(self._terms, self._orders[last])


Slopes = _SideBySide | _OneByOne


def _added(terms: Sequence[Tensor], order: Order) -> Tensor:
    """The sum of terms, in one of them."""
    sums = (functools.reduce(Tensor.add_, [terms[i] for i in each]) for each in order)
    # As torch does, from 0 on: a sum is never -0.
    return functools.reduce(Tensor.add_, sums).add_(0)


@functools.cache
def _orders(dtype: torch.dtype, count: int) -> list[Order] | None:
    """In which order torch adds 1 to ``count`` numbers that lie side by side; None where that is not known."""
    numbers = torch.arange(64 * count, dtype=dtype, device="cpu").sin().view(64, count)
    found = []
    for n in range(1, count + 1):
        x = numbers[:, :n].contiguous()
        candidates = (_order(n, lanes) for lanes in (0, 2, 4, 8, 16))
        order = next((one for one in candidates if torch.equal(_added(x.clone().unbind(1), one), x.sum(1))), None)
        if order is None:
            return None
        found.append(order)
    return found


def _order(n: int, lanes: int) -> Order:
    """That of n numbers by vectors of ``lanes``, or if they do not fill one, by four sums of which one has the rest."""
    width = lanes if 0 < lanes <= n else 4
    whole = n - n % width
    sums, rest = [tuple(range(i, whole, width)) for i in range(width if whole else 0)], tuple(range(whole, n))
    if width == lanes:
        return (rest, *sums) if rest else tuple(sums)
    return (sums[0] + rest, *sums[1:]) if sums else (rest,)


class Stages:
    """The evaluations of a try; ``slopes``: those of the latest one.

    Successive steps write to two places in turn: the last accepted one stays readable.
    """

    def __init__(self, tableau: Any, y: Tensor):
        rows = [*tableau.beta, tableau.c_error]
        b, last = tableau.c_sol, tableau.beta[-1]
        self._ends_at_last_stage = bool(b[-1] == 0 and (b[:-1] == last).all())
        rows += [] if self._ends_at_last_stage else [b]
        self._weights = torch.cat(rows)
        self._scaled = torch.empty_like(self._weights)
        self._rows = self._scaled.split([len(row) for row in rows])
        self._alpha = tableau.alpha.real
        self._at_end = self._alpha == 1
        self._before_end = self._at_end.to(self._alpha.dtype)
        self.slopes, self._others = _places(y, len(self._alpha) + 1)

    def begin(self, slope: Tensor) -> None:
        """Start from a slope."""
        self.slopes.each[0].copy_(slope)

    def hand_on(self, slope: Tensor | None) -> None:
        """Start the next step from a slope, by default the last one."""
        slope = self.slopes.each[-1] if slope is None else slope
        self.slopes, self._others = self._others, self.slopes
        self.begin(slope)

    def taken(self, evaluate: Any, y0: Tensor, t0: Tensor, h: Tensor, t1: Tensor) -> tuple[Tensor, Tensor]:
        """The end of a step, and its error, which is readable until the next step."""
        t0, h, t1 = (x.to(self._alpha.dtype) for x in (t0, h, t1))
        at = (t0 + self._alpha * h).masked_fill_(self._at_end, t1)
        # As the host has it: stages at the end look at it from before.
        times = torch.nextafter(at, at - self._before_end).unbind()
        torch.mul(self._weights, h, out=self._scaled)
        for i, t in enumerate(times):
            y = y0 + self.slopes.sum(self._rows[i])
            slope, place = evaluate(t, y, i + 1 == len(times)), self.slopes.each[i + 1]
            if slope.shape == y.shape:
                place.copy_(slope)
            else:
                place[...] = slope
        if not self._ends_at_last_stage:
            y = y0 + self.slopes.sum(self._rows[-1])
        return y, self.slopes.sum(self._rows[len(times)])


def _places(y: Tensor, count: int) -> Sequence[Slopes]:
    """Two for the slopes of a try."""
    is_known = y.is_cpu and y.numel() >= _LARGE and y.dtype in (torch.float32, torch.float64)
    orders = _orders(y.dtype, count) if is_known else None
    if orders is None:
        return [_SideBySide(y, count) for _ in range(2)]
    terms = y.new_empty(count, *y.shape)
    return [_OneByOne(terms, orders) for _ in range(2)]
