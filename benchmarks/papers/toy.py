"""The ACA paper's toy problem, dz/dt = αz with L = z(T)²: the gradient's error against its closed form, over T.

z(0) = 1, at rtol = atol = 1e-5 in float64. "Through the search" differentiates the search for the step sizes as well,
by a Heun's method of its own, of two evaluations a step where torchdiffeq's makes do with one; "its steps held" is the
same solution with the step sizes as constants.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.envelope import Row, Rows
from benchmarks.fields import Field
from benchmarks.measurements import Cells
from benchmarks.page.panels import panels
from benchmarks.papers.claims import Claim
from benchmarks.papers.ways import ACA, ADJOINT, BACKPROP, HELD, QUADRATURE, SEARCH, gradient, lines, why

CASES = (("adaptive_heun", 0.1), ("adaptive_heun", -0.3), ("dopri5", 0.1), ("dopri5", 1.0), ("dopri5", -0.3))
TIMES = (2.5, 5.0, 10.0, 15.0, 19.5)
TOLERANCES = (1e-5, 1e-5)


def run(quick: bool) -> Cells:
    times = TIMES[1::3] if quick else TIMES
    return {
        f"{method}, alpha {rate:g}, T {end:g}": functools.partial(_cell, method, rate, end)
        for method, rate in CASES
        for end in times
    }


def _cell(method: str, rate: float, end: float) -> Rows:
    ways = [BACKPROP, ADJOINT, ACA, QUADRATURE] + [SEARCH, HELD] * (method == "adaptive_heun")
    return [{"solver": method, "α": rate, "T": end, "way": way, **_errors(way, method, rate, end)} for way in ways]


def _errors(way: str, method: str, rate: float, end: float) -> Row:
    alpha = torch.nn.Parameter(torch.tensor(rate, dtype=torch.float64))
    field, z0 = Field(lambda t, z: alpha * z, alpha), torch.ones(1, dtype=torch.float64, requires_grad=True)
    try:
        found = [float(x) for x in gradient(way, field, z0, end, TOLERANCES, method)]
    except AssertionError as error:
        return {"failed": why(error)}
    growth = math.exp(2 * rate * end)
    exact = (2 * growth, 2 * end * growth)
    row: Row = {}
    for name, x, y in zip(("z0", "α"), found, exact, strict=True):
        row |= {f"error in {name}": abs(x - y), f"relative, {name}": abs(x - y) / y}
    return row


def claims(rows: Rows) -> list[Claim]:
    """Against the errors read from the paper's figure, and its order of the ways."""
    last = {(r["solver"], r["α"], r["way"]): r for r in rows if r["T"] == TIMES[-1]}

    def over(solver: str, error: str, rates: Sequence[float], *ways: str) -> str:
        told = []
        for rate in rates:
            found = {way: last.get((solver, rate, way), {}) for way in ways}
            each = {way: f"{row[error]:.2g}" if error in row else str(row.get("failed")) for way, row in found.items()}
            told.append(f"α = {rate:g}: {', '.join(map(' '.join, each.items()))}")
        return "; ".join(told)

    return [
        Claim(
            "T about 19.5, absolute error: 0.48 ACA, 0.80 adjoint, 0.98 naive",
            f"Heun, in z0, {over('adaptive_heun', 'error in z0', (0.1,), ACA, ADJOINT, SEARCH, BACKPROP, QUADRATURE)}",
            "The α and the tolerance behind the paper's figure are not known to us: its levels cannot be compared.",
        ),
        Claim(
            "ACA is more accurate than the adjoint",
            f"dopri5, in α, relative, {over('dopri5', 'relative, α', (-0.3, 0.1, 1.0), ACA, ADJOINT, QUADRATURE)}",
            "It holds where the solution decays: in reverse it grows, and its errors with it. Where it grows forward "
            "the reverse solve is stable, and the continuous adjoint is as close, if it does not fail for the size of "
            "its cotangent.",
        ),
        Claim(
            "naive is the least accurate",
            f"Heun, in z0, relative, {over('adaptive_heun', 'relative, z0', (-0.3, 0.1), SEARCH, HELD)}",
            "One solution, with the derivative of its step sizes and without. What that adds is of the tolerance's "
            "order, of either sign: several times the error where the solution decays, none where it grows. "
            "torchdiffeq's back-propagation is not this method: it holds the sizes, all but its guess of the first, "
            "and so agrees with ACA.",
        ),
    ]


def draw(rows: Rows) -> Any:
    figure, axes = panels(1, len(CASES), 15, 4, sharey=True)
    for axis, (method, rate) in zip(axes[0], CASES, strict=True):
        lines(axis, [r for r in rows if (r["solver"], r["α"]) == (method, rate)], "T", "relative, α")
        axis.set(title=f"{method}, α = {rate:g}", xlabel="T", yscale="log")
    figure.supylabel("relative error of dL/dα")
    return figure
