"""The ways to a gradient that the papers compare, behind one call, and a field that counts what they do with it."""

import functools
import itertools
import re
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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


def means(rows: Rows, name: str, ways: Sequence[str], form: str) -> str:
    """By way the mean of a column over the seeds (least to most)."""
    found = {way: values(rows, name, way=way) for way in ways}
    each = (f"{way} {form % (sum(e) / len(e), min(e), max(e))}" for way, e in found.items())
    return f"mean (least to most) of {len(found[ways[0]])} seeds: {', '.join(each)}"


def over_ours(rows: Rows, name: str, ways: Sequence[str], **where: Any) -> str:
    """By way the median of a column over ACA's."""
    base = median(rows, name, way=ACA, **where)
    return ", ".join(f"{way} {median(rows, name, way=way, **where) / base:.2g}" for way in ways)


def why(error: Exception) -> str:
    """An error's words, without the number at their end."""
    return re.sub(r" [-\d.e]+$", "", str(error).splitlines()[0])


def median(rows: Rows, name: str, **where: Any) -> float:
    return statistics.median(values(rows, name, **where) or [float("nan")])


def values(rows: Rows, name: str, **where: Any) -> list[Any]:
    """A column of the rows that match, without empty cells."""
    chosen = [row for row in rows if all(row.get(key) == value for key, value in where.items())]
    return [row[name] for row in chosen if row.get(name) is not None]
