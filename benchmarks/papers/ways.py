"""The ways to a gradient that the papers compare, behind one call, and a field that counts what they do with it."""

import functools
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.envelope import Rows
from benchmarks.fields import Field
from benchmarks.papers.search import odeint_search
from benchmarks.peers import METHODS, ours
from benchmarks.ways import BACKPROP, HOST, HOST_ADJOINT, QUADRATURE

SEARCH, HELD = "through the search", "its steps held"
ADJOINT, SEMINORM, ACA = "adjoint", "seminorm", "ACA"
_SOLVES: dict[str, Callable[..., Any]] = {
    BACKPROP: METHODS[HOST].solve,
    SEARCH: odeint_search,
    HELD: functools.partial(odeint_search, held=True),
    ADJOINT: METHODS[HOST_ADJOINT].solve,
    SEMINORM: METHODS[f"{HOST_ADJOINT}, seminorm"].solve,
    ACA: ours("aca"),
    QUADRATURE: ours("quadrature"),
}
COLOURS = {
    BACKPROP: "#56B4E9",
    SEARCH: "#CC79A7",
    HELD: "#888888",
    ADJOINT: "#E69F00",
    SEMINORM: "#000000",
    ACA: "#0072B2",
    QUADRATURE: "#009E73",
}


def odeint(
    way: str, field: torch.nn.Module, y0: Any, t: Tensor, tolerances: tuple[float, float], method: str = "dopri5"
) -> Any:
    """The solution at ``t`` of ``field`` at (rtol, atol) by ``method``, to be differentiated in that way.

    ``"through the search"`` and its ``"its steps held"`` have one method, Heun and Euler's, whatever ``method`` says.
    """
    return _SOLVES[way](field, y0, t, rtol=tolerances[0], atol=tolerances[1], method=method)


class Counted(Field):
    """A field that also counts its evaluations that are pulled back, and the steps of torchdiffeq's own adjoint."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        slope = super().forward(t, y)
        if slope.requires_grad:
            slope.register_hook(self._pull)
        return slope

    def work(self) -> dict[str, int]:
        return {name: self.counts[name] for name in ("evaluations", "pulled back")}

    def _pull(self, cotangent: Tensor) -> None:
        self.counts["pulled back"] += 1

    def callback_accept_step_adjoint(self, t: Tensor, y: Any, h: Tensor) -> None:
        self.counts["accepted back"] += 1

    def callback_reject_step_adjoint(self, t: Tensor, y: Any, h: Tensor) -> None:
        self.counts["rejected back"] += 1


def lines(axis: Any, rows: Rows, x: str, y: str) -> None:
    """A line for each way that there are points of."""
    for way, colour in COLOURS.items():
        points = [(row[x], row[y]) for row in rows if row["way"] == way and y in row]
        if points:
            axis.plot(*zip(*points, strict=True), "o-", color=colour, label=way)
    axis.legend(fontsize=7)


def gradient(way: str, field: Field, y0: Tensor, end: float, *how: Any) -> tuple[Tensor, ...]:
    """Of |y(end)|², from t = 0, in ``y0`` and the field's parameters; ``how``: tolerances and method."""
    times = torch.tensor([0.0, end], dtype=torch.float64)
    loss = odeint(way, field, y0, times, *how)[-1].square().sum()
    return torch.autograd.grad(loss, (y0, *field.parameters()))


def trained(
    ways: Sequence[str],
    build: Callable[[str], torch.nn.Module],
    optimiser: Callable[..., torch.optim.Optimizer],
    turn: Callable[[Any, torch.optim.Optimizer, int], None],
    turns: int,
    seed: int,
) -> tuple[dict[str, Any], dict[str, float]]:
    """The nets by way, which begin alike and take turns, and the median seconds of their turns."""
    nets, optimisers, seconds = {}, {}, {}
    for way in ways:
        torch.manual_seed(seed)
        nets[way], seconds[way] = build(way), list[float]()
        optimisers[way] = optimiser(nets[way].parameters())
    for n, way in itertools.product(range(turns), ways):
        with timing.lap(seconds[way]):
            turn(nets[way], optimisers[way], n)
    return nets, {way: sorted(each)[len(each) // 2] for way, each in seconds.items()}


def why(error: Exception) -> str:
    """An error's words, without the number at their end."""
    return re.sub(r" [-\d.e]+$", "", str(error).splitlines()[0])
