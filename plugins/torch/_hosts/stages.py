"""The evaluations of a try of an explicit Runge–Kutta method, in the host's operations and in its order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Slopes:
    """The slopes of a try side by side, as the host sums over them: all, each, and the first i + 1."""

    def __init__(self, y: Tensor, count: int):
        self.all = y.new_empty(*y.shape, count)
        self.each = self.all.unbind(-1)
        self.first = [self.all[..., : i + 1] for i in range(count)]


class Stages:
    """The evaluations of a try. Successive steps write to two places in turn: the last accepted one stays readable."""

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
        count = len(self._alpha) + 1
        self._slopes, self._others = _Slopes(y, count), _Slopes(y, count)

    @property
    def slopes(self) -> Tensor:
        """Those of the latest try, (*y.shape, s + 1)."""
        return self._slopes.all

    def begin(self, slope: Tensor) -> None:
        """Start from a slope."""
        self._slopes.each[0].copy_(slope)

    def hand_on(self, slope: Tensor | None) -> None:
        """Start the next step from a slope, by default the last one."""
        slope = self._slopes.each[-1] if slope is None else slope
        self._slopes, self._others = self._others, self._slopes
        self.begin(slope)

    def taken(self, evaluate: Any, y0: Tensor, t0: Tensor, h: Tensor, t1: Tensor) -> tuple[Tensor, Tensor]:
        """The end of a step and its error."""
        t0, h, t1 = (x.to(self._alpha.dtype) for x in (t0, h, t1))
        at = (t0 + self._alpha * h).masked_fill_(self._at_end, t1)
        # As the host has it: stages at the end look at it from before.
        times = torch.nextafter(at, at - self._before_end).unbind()
        torch.mul(self._weights, h, out=self._scaled)
        for i, t in enumerate(times):
            y = y0 + self._sum(i, self._rows[i])
            slope = evaluate(t, y, i + 1 == len(times))
            if slope.shape == y.shape:
                self._slopes.each[i + 1].copy_(slope)
            else:
                self._slopes.all[..., i + 1] = slope
        if not self._ends_at_last_stage:
            y = y0 + self._sum(-1, self._rows[-1])
        return y, self._sum(-1, self._rows[len(times)])

    def _sum(self, i: int, weights: Tensor) -> Tensor:
        return (self._slopes.first[i] * weights).sum(-1)
