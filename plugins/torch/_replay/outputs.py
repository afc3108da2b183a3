"""The adjoint of a step's dense output; below float64, the host's own operations in their order reversed.

Its terms are large and cancel: there, the same sum in another order is another number.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from steptape.torch._hosts.base import Timeline
from steptape.torch._hosts.tableau import Tableau, hermite_weights


class Outputs(abc.ABC):
    """The outputs of a solve, each inside its step."""

    @abc.abstractmethod
    def pull(self, outputs: slice, mu: Tensor, h: float, end: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """The cotangents of the start and the end of a step of size ``h``; writes those of its slopes to ``slopes``.

        ``mu``: the cotangents of its outputs, one at least; ``end``: that of its end but for them.
        """

    @staticmethod
    def _last_first(of_each: Sequence[Any], mu: Tensor) -> Iterator[tuple[Any, Tensor]]:
        return zip(reversed(of_each), reversed(mu.unbind()), strict=True)


def outputs_of(tableau: Tableau, timeline: Timeline, y0: Tensor, weights: Tensor, of_start: Tensor) -> Outputs:
    """Those of a timeline; ``weights`` and ``of_start``: what they take of slopes times h, and of the step's start."""
    x = timeline.positions.detach()
    if y0.dtype in (torch.float64, torch.complex128):
        return _AtOnce(weights, of_start)
    if tableau.mid is not None:
        return _Quartic(tableau.mid.to(y0), x.to(y0))
    if tableau.hermite:
        return _Hermite([weights.to(y0) for weights in hermite_weights(x, timeline.spans.detach())])
    return _Linear(x.tolist())


class _AtOnce(Outputs):
    """All of a step in one product, in which no order is kept."""

    def __init__(self, weights: Tensor, of_start: Tensor):
        self._weights, self._of_start = weights, of_start

    def pull(self, outputs: slice, mu: Tensor, h: float, end: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        torch.addmm(slopes, self._weights[outputs].T, mu, beta=0, alpha=h, out=slopes)
        return self._of_start[outputs] @ mu, end


class _Linear(Outputs):
    """On the line between the ends: y0 + x (y1 - y0), and y1 itself."""

    def __init__(self, positions: list[float]):
        self._of_each = positions

    def pull(self, outputs: slice, mu: Tensor, h: float, end: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        start = torch.zeros_like(end)
        slopes.zero_()
        for x, cotangent in self._last_first(self._of_each[outputs], mu):
            if x == 1:
                end = end + cotangent
            else:
                moved = x * cotangent
                start, end = start + cotangent - moved, end + moved
        return start, end


class _Hermite(Outputs):
    """On the cubic w0 y0 + w1 k_0 + w2 y1 + w3 k_last."""

    def __init__(self, weights: list[Tensor]):
        self._of_each = [upright[..., None] for upright in torch.stack(weights, dim=1).unbind()]

    def pull(self, outputs: slice, mu: Tensor, h: float, end: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        start = torch.zeros_like(end)
        slopes.zero_()
        for weights, cotangent in self._last_first(self._of_each[outputs], mu):
            of_start, of_slope, of_end, of_end_slope = (weights * cotangent).unbind()
            start, end = start + of_start, end + of_end
            slopes[0] += of_slope
            slopes[-1] += of_end_slope
        return start, end


class _Quartic(Outputs):
    """On the quartic through y at the ends and in the middle, and the slopes at the ends.

    ``mid``: the weights of the slopes in the middle.
    """

    def __init__(self, mid: Tensor, positions: Tensor):
        self._mid = mid
        powers = [torch.ones_like(positions), positions]
        while len(powers) < 5:
            powers.append(powers[-1] * positions)
        self._of_each = [upright[..., None] for upright in torch.stack(powers, dim=1).unbind()]

    def pull(self, outputs: slice, mu: Tensor, h: float, end: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        (powers, cotangent), *others = self._last_first(self._of_each[outputs], mu)
        coefficients = powers * cotangent
        term = torch.empty_like(coefficients)
        for powers, cotangent in others:
            coefficients += torch.mul(powers, cotangent, out=term)
        # e + d x + c x² + b x³ + a x⁴, of which e = y0, d = h k_0,
        # a = 2 h (k_last - k_0) - 8 (y1 + y0) + 16 y_mid,
        # b = h (5 k_0 - 3 k_last) + 18 y0 + 14 y1 - 32 y_mid, and
        # c = h (k_last - 4 k_0) - 11 y0 - 5 y1 + 16 y_mid.
        e, d, c, b, a = coefficients.unbind()
        of_c, of_b, of_a = h * c, h * b, 2 * h * a
        middle = 16 * c - 32 * b + 16 * a
        start = e - 11 * c + 18 * b - 8 * a + middle
        end = end - 5 * c + 14 * b - 8 * a
        torch.mul((h * self._mid)[:, None], middle, out=slopes)
        slopes[0] += h * d - 4 * of_c + 5 * of_b - of_a
        slopes[-1] += of_c - 3 * of_b + of_a
        return start, end
