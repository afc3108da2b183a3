"""Explicit Runge–Kutta methods as a replay sees them.

A step of size h from y has stages k_i = f(t + c_i h, y + h Σ_j a_ij k_j). Its end, y + h Σ_i b_i k_i, and every output
inside it, y + h Σ_i w_i(x) k_i at the relative place x in [0, 1], are further rows of the same table. The matching
adjoint (Hu, arXiv 2402.15141) reads the table by columns.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Tableau:
    """An explicit Runge–Kutta method with s stages and a dense output of degree p.

    ``rows`` is (s + 1, s), float64: a, then b. ``dense`` is (p, s): w(x) = Σ_q dense[q] x^(q+1). ``hermite``: the dense
    output is the cubic through the ends of the step and their slopes. ``mid``: it is the quartic through these and the
    middle of the step, whose weights those are.
    """

    rows: Tensor
    c: tuple[float, ...]
    dense: Tensor
    hermite: bool = False
    mid: Tensor | None = None

    @property
    def stages(self) -> int:
        """The number of stages, s."""
        return len(self.c)

    @functools.cached_property
    def last_at_end(self) -> bool:
        """Whether the last stage is the vector field at the end of the step, which itself does without it."""
        return bool((self.rows[-1] == self.rows[-2]).all())

    def weights(self, x: Tensor, spans: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The rows w(x) and their derivatives in x, each (len(x), s), and the weight of y: all in float64.

        ``spans``, ``sizes``: t_{n+1} - t_n and h of the step around each place, which differ by rounding.
        """
        powers = torch.arange(1, len(self.dense) + 1, dtype=torch.float64, device=x.device)
        dense, places = self.dense.to(x.device), x.double()[:, None]
        slopes = powers * places ** (powers - 1) @ dense
        if not self.hermite:
            return places**powers @ dense, slopes, torch.ones_like(x, dtype=torch.float64)
        of_y, of_slope, of_end, of_end_slope = hermite_weights(x, spans)
        ends = torch.zeros_like(dense[:2])
        ends[0, 0] = ends[1, -1] = 1
        rows = torch.stack([of_slope, of_end_slope], dim=1).double() / sizes.double()[:, None] @ ends
        return rows + of_end.double()[:, None] * self.rows[-1].to(x.device), slopes, (of_y.double() + of_end.double())


def hermite_weights(x: Tensor, spans: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Those of y and of its slope at the start, and then at the end, of a step that spans so much time.

    In the order and the dtype in which the host rounds: that of the times, which may be less than y's.
    """
    of_y, of_slope = (1 + 2 * x) * (1 - x) * (1 - x), x * (1 - x) * (1 - x) * spans
    return of_y, of_slope, x * x * (3 - 2 * x), x * x * (x - 1) * spans


def _rows(a: list[list[float]], b: list[float]) -> Tensor:
    return torch.tensor([row + [0.0] * (len(b) - len(row)) for row in [[], *a, b]], dtype=torch.float64)


def _unit(index: int, length: int) -> Tensor:
    return torch.eye(length, dtype=torch.float64)[index]


_FIXED_GRID: dict[str, tuple[list[list[float]], list[float], tuple[float, ...]]] = {
    "euler": ([], [1.0], (0.0,)),
    "midpoint": ([[1 / 2]], [0.0, 1.0], (0.0, 1 / 2)),
    "heun2": ([[1.0]], [1 / 2, 1 / 2], (0.0, 1.0)),
    "heun3": ([[1 / 3], [0.0, 2 / 3]], [1 / 4, 0.0, 3 / 4], (0.0, 1 / 3, 2 / 3)),
    "rk4": (
        [[1 / 3], [-1 / 3, 1.0], [1.0, -1.0, 1.0]],
        [1 / 8, 3 / 8, 3 / 8, 1 / 8],
        (0.0, 1 / 3, 2 / 3, 1.0),
    ),
}


def fixed_grid_tableau(name: str, interp: str) -> Tableau:
    """That of a fixed-grid solver, by its name, with its kind of interpolation."""
    a, b, c = _FIXED_GRID[name]
    if interp == "linear":
        return Tableau(_rows(a, b), c, torch.tensor([b], dtype=torch.float64))
    # Cubic Hermite: h10(x) k_0 + h01(x) Σ b_i k_i + h11(x) f(y_1), whose last slope is one more stage.
    a, b, c = [*a, b], [*b, 0.0], (*c, 1.0)
    first, last, end = _unit(0, len(b)), _unit(-1, len(b)), torch.tensor(b, dtype=torch.float64)
    dense = torch.stack([first, 3 * end - 2 * first - last, first - 2 * end + last])
    return Tableau(_rows(a, b), c, dense, hermite=True)


def adaptive_tableau(tableau: Any, mid: Tensor) -> Tableau:
    """That of an adaptive solver, from the host's own and its weights of the middle of a step."""
    b, mid = tableau.c_sol.double(), mid.double()
    first, last = _unit(0, len(b)), _unit(-1, len(b))
    # The quartic through y_0, y_1, the middle and both end slopes, by powers of x.
    dense = torch.stack(
        [
            first,
            last - 4 * first - 5 * b + 16 * mid,
            5 * first - 3 * last + 14 * b - 32 * mid,
            2 * last - 2 * first - 8 * b + 16 * mid,
        ]
    )
    a = [row.tolist() for row in tableau.beta]
    return Tableau(_rows(a, b.tolist()), (0.0, *tableau.alpha.tolist()), dense, mid=mid)
