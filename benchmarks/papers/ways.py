"""The ways to a gradient that the papers compare, behind one call, and a field that counts what they do with it."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torchdiffeq
from torch import Tensor

import steptape.torch
from benchmarks.envelope import Rows
from benchmarks.papers.search import odeint_search

BACKPROP, SEARCH, HELD, ADJOINT, SEMINORM, ACA, QUADRATURE = (
    "back-propagation",
    "through the search",
    "its steps held",
    "adjoint",
    "seminorm",
    "ACA",
    "quadrature",
)
COLOURS = {
    BACKPROP: "#56B4E9",
    SEARCH: "#CC79A7",
    HELD: "#888888",
    ADJOINT: "#E69F00",
    SEMINORM: "#000000",
    ACA: "#0072B2",
    QUADRATURE: "#009E73",
}


class Claim(NamedTuple):
    """What a paper says, what was found here, and why the two differ or agree."""

    claimed: str
    measured: str
    why: str


def odeint(
    way: str, field: torch.nn.Module, y0: Any, t: Tensor, tolerances: tuple[float, float], method: str = "dopri5"
) -> Any:
    """The solution at ``t`` of ``field`` at (rtol, atol) by ``method``, to be differentiated in that way.

    ``"through the search"`` and its ``"its steps held"`` have one method, Heun and Euler's, whatever ``method`` says.
    """
    rtol, atol = tolerances
    if way in (SEARCH, HELD):
        return odeint_search(field, y0, t, rtol, atol, held=way == HELD)
    settings: dict[str, Any] = {"rtol": rtol, "atol": atol, "method": method}
    if way == BACKPROP:
        return torchdiffeq.odeint(field, y0, t, **settings)
    if way == ADJOINT:
        return torchdiffeq.odeint_adjoint(field, y0, t, **settings)
    if way == SEMINORM:
        return torchdiffeq.odeint_adjoint(field, y0, t, **settings, adjoint_options={"norm": "seminorm"})
    return steptape.torch.odeint_adjoint(field, y0, t, **settings, adjoint_method=way.lower())


class Counted(torch.nn.Module):
    """A field that counts its evaluations, those pulled back, and the accepted and rejected steps."""

    def __init__(self, field: torch.nn.Module):
        super().__init__()
        self.field = field
        self.reset()

    def reset(self) -> None:
        """Start again from 0."""
        self.evaluations = self.pulled = self.accepted = self.rejected = self.accepted_back = self.rejected_back = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope at ``y``."""
        self.evaluations += 1
        slope = self.field(t, y)
        if slope.requires_grad:
            slope.register_hook(self._pull)
        return slope

    def _pull(self, cotangent: Tensor) -> None:
        self.pulled += 1

    def callback_accept_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        """Called by torchdiffeq."""
        self.accepted += 1

    def callback_reject_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        """Called by torchdiffeq."""
        self.rejected += 1

    def callback_accept_step_adjoint(self, t: Tensor, y: Any, h: Tensor) -> None:
        """Called by torchdiffeq's own adjoint."""
        self.accepted_back += 1

    def callback_reject_step_adjoint(self, t: Tensor, y: Any, h: Tensor) -> None:
        """Called by torchdiffeq's own adjoint."""
        self.rejected_back += 1


def relative_error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The Euclidean norm of the difference over that of ``exact``, over all tensors together."""
    one, other = (torch.cat([x.detach().double().flatten() for x in each]) for each in (found, exact))
    return float((one - other).norm() / other.norm())


def why(error: Exception) -> str:
    """An error's words, without the number at their end."""
    return re.sub(r" [-\d.e]+$", "", str(error).splitlines()[0])


def median(rows: Rows, name: str, **where: Any) -> float:
    """The median of a column over the rows that match."""
    return statistics.median(values(rows, name, **where) or [float("nan")])


def values(rows: Rows, name: str, **where: Any) -> list[Any]:
    """A column of the rows that match, without empty cells."""
    chosen = [row for row in rows if all(row.get(key) == value for key, value in where.items())]
    return [row[name] for row in chosen if row.get(name) is not None]
