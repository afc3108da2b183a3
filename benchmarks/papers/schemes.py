"""Hu's theorem: an adjoint equals back-propagation if and only if it has the scheme of the solve.

The rotation problem of the parity report, solved on equal steps by torchdiffeq. Relative differences of the gradient in
(y0, parameters) from the host's back-propagation: of the discrete adjoint of the solve's own scheme, written out in
NumPy, and of the continuous adjoint that integrates y and its cotangent in reverse by each scheme.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

from benchmarks.envelope import Rows
from benchmarks.measurements import Cells
from benchmarks.page.panels import panels
from benchmarks.papers.claims import Claim
from steptape.shared_tests.backends.backend_torch import run as run_torch
from steptape.shared_tests.backends.backends import Case
from steptape.shared_tests.oracles.scheme_adjoint import SCHEMES, continuous, difference, gradient, grid_of
from steptape.shared_tests.problems.problems import PROBLEMS

PROBLEM = PROBLEMS["rotation"]
OWN = "its own discrete adjoint"
_COLOURS = dict(zip(SCHEMES, ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00"), strict=True))


def run(quick: bool) -> Cells:
    steps = (8, 16, 32) if quick else (4, 8, 16, 32, 64)
    return {scheme: functools.partial(_cell, scheme, steps) for scheme in SCHEMES}


def _cell(scheme: str, steps: Sequence[int]) -> Rows:
    rows: Rows = []
    for count in steps:
        grid = grid_of(PROBLEM, count)
        host = run_torch(Case(PROBLEM.name, "backprop", scheme, grid=grid)).gradient
        adjoints = {OWN: gradient(scheme, PROBLEM, grid)}
        adjoints |= {f"continuous, {name}": continuous(scheme, name, PROBLEM, grid) for name in SCHEMES}
        rows += [
            {"solve": scheme, "step size": grid[1] - grid[0], "adjoint": name, "difference": difference(found, host)}
            for name, found in adjoints.items()
        ]
    return rows


def _points(rows: Rows, scheme: str, adjoint: str) -> list[tuple[float, float]]:
    mine = [r for r in rows if (r["solve"], r["adjoint"]) == (scheme, adjoint)]
    return sorted((r["step size"], r["difference"]) for r in mine)


def _order(points: Sequence[tuple[float, float]]) -> float:
    (h, fine), (twice, coarse) = points[:2]
    return math.log(coarse / fine) / math.log(twice / h)


def claims(rows: Rows) -> list[Claim]:
    solved = list(dict.fromkeys(r["solve"] for r in rows))
    worst = max(r["difference"] for r in rows if r["adjoint"] == OWN)
    orders = {
        (scheme, name): _order(_points(rows, scheme, f"continuous, {name}")) for scheme in solved for name in SCHEMES
    }
    lower = {pair: min(SCHEMES[pair[0]].order, SCHEMES[pair[1]].order) for pair in orders}
    off = max(abs(orders[pair] - lower[pair]) for pair in orders if pair not in _CANCELLING)
    return [
        Claim(
            "the discrete adjoint of the same scheme is back-propagation",
            f"at every step size, to {worst:.0e}",
            "It agrees; the parameters' gradient in it is a quadrature by the scheme's own nodes and weights.",
        ),
        Claim(
            "any other adjoint is not",
            f"the continuous adjoint by {len(SCHEMES)} schemes differs at the lower of both orders, within {off:.2f}",
            "It agrees, also where the backward scheme is that of the solve. By Heun or Dopri5 both ways the leading "
            "errors cancel in part: "
            + ", ".join(f"{pair[0]} {orders[pair]:.1f}" for pair in _CANCELLING if pair in orders)
            + ".",
        ),
    ]


_CANCELLING = (("heun", "heun"), ("dopri5", "dopri5"))


def draw(rows: Rows) -> Any:
    figure, axes = panels(2, 3, 11, 6.5, sharex=True, sharey=True)
    for axis, scheme in zip(axes.flat, SCHEMES, strict=True):
        for name, colour in _COLOURS.items():
            if points := _points(rows, scheme, f"continuous, {name}"):
                axis.plot(*zip(*points, strict=True), "o-", markersize=3, color=colour, label=f"continuous, {name}")
        if own := [(h, max(error, 1e-17)) for h, error in _points(rows, scheme, OWN)]:
            axis.plot(*zip(*own, strict=True), "s-", color="black", label=OWN)
        axis.set(title=f"solved by {scheme}", yscale="log", ylim=(1e-17, 10))
        axis.set_xscale("log", base=2)
    axes[0][0].legend(fontsize=6)
    figure.supxlabel("step size")
    figure.supylabel("relative difference from back-propagation")
    return figure
