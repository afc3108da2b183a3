"""The ACA paper's van der Pol equation: does the reverse solve return to the start, and what becomes of the gradient?

The mild form is the paper's, y1' = y2, y2' = (0.15 − y1²) y2 − y1; the stiff one the usual, y2' = μ (1 − y1²) y2 − y1
with μ = 5. From (2, 0) over t in [0, 20], dopri5. L = |y(20)|²; errors of dL/d(y(0), μ) are relative, against
back-propagation at 1e-12.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.envelope import Row, Rows
from benchmarks.fields import Field, relative_error
from benchmarks.measurements import Cells
from benchmarks.page.panels import panels
from benchmarks.papers.claims import Claim
from benchmarks.papers.ways import ACA, ADJOINT, BACKPROP, QUADRATURE, SEMINORM, gradient, lines, odeint, why

TOLERANCES = ((1e-3, 1e-6), (1e-5, 1e-8), (1e-7, 1e-10), (1e-9, 1e-12))
WAYS = (BACKPROP, ADJOINT, SEMINORM, ACA, QUADRATURE)
START, END = (2.0, 0.0), 20.0
MILD, STIFF = "mild, μ = 0.15", "stiff, μ = 5"


def _oscillator(form: str) -> Field:
    mu = torch.nn.Parameter(torch.tensor(0.15 if form == MILD else 5.0, dtype=torch.float64))

    def slope(t: Tensor, y: Tensor) -> Tensor:
        damping = mu - y[0] ** 2 if form == MILD else mu * (1 - y[0] ** 2)
        return torch.stack([y[1], damping * y[1] - y[0]])

    return Field(slope, mu)


def run(quick: bool) -> Cells:
    pairs = TOLERANCES[:2] if quick else TOLERANCES
    return {
        f"{form}, rtol {pair[0]:g}": functools.partial(_cell, form, pair) for form in (MILD, STIFF) for pair in pairs
    }


def _cell(form: str, pair: tuple[float, float]) -> Rows:
    exact = _gradient(BACKPROP, form, (1e-12, 1e-12), "dopri8")
    rows = [_return(form, pair)]
    for way in WAYS:
        try:
            rows.append({"way": way, "gradient error": relative_error(_gradient(way, form, pair), exact)})
        except AssertionError as error:
            rows.append({"way": way, "failed": why(error)})
    return [{"form": form, "rtol": pair[0], "atol": pair[1], **row} for row in rows]


def _gradient(way: str, form: str, pair: tuple[float, float], method: str = "dopri5") -> Sequence[Tensor]:
    y0 = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    return gradient(way, _oscillator(form), y0, END, pair, method)


@torch.no_grad()
def _return(form: str, pair: tuple[float, float]) -> Row:
    field, start = _oscillator(form), torch.tensor(START, dtype=torch.float64)
    times = torch.tensor([0.0, END], dtype=torch.float64)
    end = odeint(BACKPROP, field, start, times, pair)[-1]
    try:
        back = odeint(BACKPROP, field, end, times.flip(0), pair)[-1]
    except AssertionError as error:
        return {"way": "reverse solve", "failed": why(error)}
    point = f"({back[0]:.3g}, {back[1]:.3g})"
    return {"way": "reverse solve", "comes back to": point, "distance": float((back - start).norm())}


def claims(rows: Rows) -> list[Claim]:
    reverse = {(r["form"], r["rtol"]): r for r in rows if r["way"] == "reverse solve"}
    mild, stiff = reverse.get((MILD, 1e-3)), reverse.get((STIFF, 1e-3))
    if not mild or not stiff:
        return []
    last = min(r["rtol"] for r in rows)

    def returns(row: Row) -> str:
        return f"dies ({row['failed']})" if "failed" in row else f"returns to {row['comes back to']}"

    def errors(form: str) -> str:
        found = [r for r in rows if r["form"] == form and r["rtol"] == 1e-3 and r["way"] in WAYS]
        each = (f"fails ({r['failed']})" if "failed" in r else f"{r['gradient error']:.1e}" for r in found)
        return ", ".join(f"{r['way']} {error}" for r, error in zip(found, each, strict=True))

    return [
        Claim(
            "integrating back from the end does not return to (2, 0) (SciPy's RK45 at 1e-3, 1e-6: to (0.36, 1.18))",
            f"at 1e-3, 1e-6 it {returns(mild)}; at {last:g} it {returns(reverse[MILD, last])}",
            "The limit cycle attracts forward, so it repels backward: the error at the end is amplified by what the "
            "flow contracted. The point depends on the solver's own errors; that it is far off does not. A "
            "tight tolerance does bring it back on this mild problem.",
        ),
        Claim(
            "the adjoint is not reverse-accurate, ACA is",
            "; ".join(f"{form}, 1e-3: {errors(form)}" for form in (MILD, STIFF)),
            "ACA and the quadrature read y(t) from the forward solve, the adjoint integrates it in reverse. "
            "What is left of ACA's error is that of the discrete solution itself.",
        ),
    ]


def draw(rows: Rows) -> Any:
    figure, axes = panels(1, 2, 11, 4)
    for axis, form in zip(axes[0], (MILD, STIFF), strict=True):
        lines(axis, [r for r in rows if r["form"] == form], "rtol", "gradient error")
        axis.set(title=form, xlabel="rtol", ylabel="relative error of the gradient", xscale="log", yscale="log")
    return figure
