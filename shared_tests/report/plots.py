"""The plots of a parity report: error against evaluations, and error per method and problem."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from steptape.shared_tests.backends.backends import METHODS, Run
from steptape.shared_tests.parity.compare import Comparison
from steptape.shared_tests.parity.parity import HEADLINE

# Okabe and Ito's colours, told apart in all common forms of colour blindness.
_COLOURS = {
    ("torch", "aca"): "#0072B2",
    ("torch", "backprop"): "#56B4E9",
    ("torch", "adjoint"): "#E69F00",
    ("torch", "seminorm"): "#000000",
    ("torch", "quadrature"): "#0072B2",
    ("jax", "aca"): "#D55E00",
    ("jax", "recursive"): "#CC79A7",
    ("jax", "backsolve"): "#009E73",
    ("jax", "seminorm"): "#000000",
    ("jax", "quadrature"): "#D55E00",
}
_MARKERS = {
    "aca": "o",
    "backprop": "s",
    "recursive": "s",
    "adjoint": "^",
    "seminorm": "v",
    "backsolve": "D",
    "quadrature": "P",
}
_LINES = {"torch": "-", "jax": "--"}
_ROUNDING = 1e-16


def draw_all(folder: Path, comparison: Comparison) -> list[Path]:
    """Draw every plot of the ODEs, where there are any, into `folder` and return the files."""
    if not comparison.outcome.scope.problems:
        return []
    files = [folder / "error-against-evaluations.png", folder / "error-per-method.png"]
    for file, draw in zip(files, (_draw_work, _draw_errors), strict=True):
        figure = draw(comparison)
        figure.savefig(file, dpi=150)
        plt.close(figure)
    return files


def _draw_work(comparison: Comparison) -> Any:
    problems = comparison.outcome.scope.problems
    columns = math.ceil(math.sqrt(len(problems)))
    rows = math.ceil(len(problems) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4 * columns + 2, 3.1 * rows + 0.8), squeeze=False, layout="constrained"
    )
    for axis, problem in zip(axes.flat, problems, strict=False):
        _draw_work_of(axis, comparison, problem)
    for axis in axes.flat[len(problems) :]:
        axis.axis("off")
    figure.supxlabel("evaluations of the field, forward and backward")
    figure.supylabel("relative gradient error (y0, params)")
    figure.suptitle(f"Gradient error against function evaluations, {HEADLINE[0]} at falling tolerances")
    _add_legend(figure, comparison)
    return figure


def _draw_work_of(axis: Any, comparison: Comparison, problem: str) -> None:
    failing = []
    for backend, method in _shown(comparison):
        runs = _adaptive_runs(comparison, backend, problem, method)
        good = [run for run in runs if not run.failure]
        points = [(run.forward_evaluations + run.backward_evaluations, comparison.reference_error(run)) for run in good]
        if points:
            axis.plot(*zip(*points, strict=True), **_style(backend, method))
        if any(comparison.failure(run) for run in runs):
            failing.append(f"{backend} {method}")
    axis.set(xscale="log", yscale="log", title=_title(problem))
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.3)
    if failing:
        axis.text(0.03, 0.04, "failing: " + "\n".join(failing), transform=axis.transAxes, fontsize=7, color="#B00000")


def _draw_errors(comparison: Comparison) -> Any:
    problems = comparison.outcome.scope.problems
    figure, axes = plt.subplots(2, 1, figsize=(1.15 * len(problems) + 4.5, 8), sharex=True, layout="constrained")
    axes[0].axhline(HEADLINE[1], color="#888888", linewidth=1, linestyle=":")
    _draw_errors_on(axes[0], comparison, comparison.reference_error)
    _draw_errors_on(axes[1], comparison, comparison.host_difference)
    axes[0].set_ylabel("relative gradient error (y0, params)")
    axes[0].set_title("error against the reference; the dotted line is the tolerance")
    axes[1].set_ylabel("relative gradient difference")
    axes[1].set_title("difference to the host's own back-propagation")
    axes[1].set_xticks(range(len(problems)), map(_title, problems), rotation=25, ha="right")
    figure.suptitle(f"Gradients of {HEADLINE[0]} at {HEADLINE[1]:g}; a cross at the top: no gradient")
    _add_legend(figure, comparison)
    return figure


def _draw_errors_on(axis: Any, comparison: Comparison, error: Callable[[Run], float]) -> None:
    problems, shown = comparison.outcome.scope.problems, _shown(comparison)
    for place, (backend, method) in enumerate(shown):
        style = {**_style(backend, method), "linestyle": "none"}
        for index, problem in enumerate(problems):
            x = index + 0.7 * (place / max(len(shown) - 1, 1) - 0.5)
            for run in _adaptive_runs(comparison, backend, problem, method):
                if run.case.rtol != HEADLINE[1]:
                    continue
                if run.failure:
                    cross = {**style, "marker": "x", "markersize": 7}
                    axis.plot(x, 0.95, transform=axis.get_xaxis_transform(), **cross)
                elif math.isfinite(error(run)):
                    axis.plot(x, max(error(run), _ROUNDING), **style)
    for edge in range(1, len(problems)):
        axis.axvline(edge - 0.5, color="#CCCCCC", linewidth=0.8)
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.set(ylim=(low, high * (high / low) ** 0.15), xlim=(-0.5, len(problems) - 0.5))
    axis.grid(alpha=0.3, axis="y")


def _title(problem: str) -> str:
    return problem.replace("_", " ")


def _shown(comparison: Comparison) -> list[tuple[str, str]]:
    return [(backend, method.name) for backend in comparison.outcome.scope.backends for method in METHODS[backend]]


def _adaptive_runs(comparison: Comparison, backend: str, problem: str, method: str) -> list[Run]:
    runs = [
        run
        for run in comparison.outcome.runs
        if (run.backend, run.case.problem, run.case.method) == (backend, problem, method)
        and run.case.grade == "adaptive"
        and run.case.solver == HEADLINE[0]
    ]
    return sorted(runs, key=lambda run: -run.case.rtol)


def _style(backend: str, method: str) -> dict[str, Any]:
    """Return one look for a method; filled markers and full lines are torch, open and dashed ones JAX."""
    colour = _COLOURS[backend, method]
    return {
        "color": colour,
        "marker": _MARKERS[method],
        "markerfacecolor": colour if backend == "torch" else "white",
        "linestyle": _LINES[backend],
        "markersize": 5,
        "linewidth": 1.2,
    }


def _add_legend(figure: Any, comparison: Comparison) -> None:
    handles = [
        Line2D([], [], label=f"{backend}: {method}", **_style(backend, method))
        for backend, method in _shown(comparison)
    ]
    figure.legend(handles=handles, loc="outside right center", frameon=False)
