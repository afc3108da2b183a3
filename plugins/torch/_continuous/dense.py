"""The dense output of a solve, for a backward solve that reads it instead of integrating y in reverse."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class DenseOutput:
    """y(t), flat, for t that moves down.

    ``nodes``: the N + 1 ends of the accepted steps. ``pieces``: the interpolant of each step, the last one first, y by
    powers of the relative place in the step, (degree + 1, numel). A piece is taken when it is first read, and held
    until ``forget_after``.
    """

    def __init__(self, nodes: Sequence[float], pieces: Iterator[Tensor]):
        self._nodes, self._pieces = nodes, pieces
        self._first = len(nodes) - 1
        self._held: dict[int, Tensor] = {}

    def __call__(self, t: float) -> Tensor:
        piece, x, _ = self._piece(t)
        return _row([x**power for power in range(len(piece))], piece) @ piece

    def slope(self, t: float) -> Tensor:
        """dy/dt of the interpolant, flat: at the ends of a step that of the solve itself."""
        piece, x, h = self._piece(t)
        return _row([power * x ** (power - 1) / h for power in range(1, len(piece))], piece) @ piece[1:]

    def _piece(self, t: float) -> tuple[Tensor, float, float]:
        """The interpolant around t, the relative place there, and the size of the step."""
        n = self._step(t)
        while self._first > n:
            self._first -= 1
            self._held[self._first] = next(self._pieces)
        h = self._nodes[n + 1] - self._nodes[n]
        return self._held[n], (t - self._nodes[n]) / h, h

    def reach(self, t: float) -> float:
        """How far below t as much happened as in one step of the solve: the mean of the steps around, by their part."""
        n = self._step(t)
        size, before = (self._nodes[i + 1] - self._nodes[i] for i in (n, max(n - 1, 0)))
        x = (t - self._nodes[n]) / size
        return x * size + (1 - x) * before

    def _step(self, t: float) -> int:
        # A time may lie outside by its rounding.
        return min(max(bisect.bisect_left(self._nodes, t) - 1, 0), len(self._nodes) - 2)

    def forget_after(self, t: float) -> None:
        """Let go of the pieces that begin after t."""
        for n in [n for n in self._held if self._nodes[n] > t]:
            del self._held[n]


def _row(entries: list[float], like: Tensor) -> Tensor:
    return torch.tensor(entries, dtype=like.dtype, device=like.device)
