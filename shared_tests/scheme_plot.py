"""The figure of Hu's theorem: how far each adjoint is from back-propagation, against the size of the steps."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from steptape.shared_tests.problems import PROBLEMS, Problem
from steptape.shared_tests.scheme_adjoint import SCHEMES, continuous, difference, gradient, grid_of

# Okabe and Ito's colours, as in `plots`.
_COLOURS = dict(zip(SCHEMES, ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00"), strict=True))
_STEPS = (4, 8, 16, 32, 64)
_ROUNDING = 1e-17


def draw_theorem(folder: Path, given: dict[tuple[str, int], dict[str, Any]]) -> Path:
    """Draw the figure into `folder` and return the file.

    `given`: the host's back-propagation by scheme and number of steps between outputs, on the grids of `theorem_runs`.
    """
    problem = PROBLEMS["rotation"]
    figure, axes = plt.subplots(2, 3, figsize=(11, 6.4), sharex=True, sharey=True, layout="constrained")
    for axis, forward in zip(axes.flat, SCHEMES, strict=True):
        _draw_scheme(axis, problem, forward, given)
    figure.supxlabel("step size")
    figure.supylabel("relative difference from the host's back-propagation (y0, params)")
    figure.suptitle(
        "An adjoint equals back-propagation if and only if it has the scheme of the solve (Hu 2024)\n"
        "black: the discrete adjoint of the solve's own scheme; colours: the continuous adjoint by each scheme",
        fontsize=10,
    )
    file = folder / "adjoint-schemes.png"
    figure.savefig(file, dpi=150)
    plt.close(figure)
    return file


def theorem_runs() -> list[tuple[str, int, tuple[float, ...]]]:
    """Return the scheme, the steps between outputs and the grid of each run that the figure needs."""
    return [(scheme, steps, grid_of(PROBLEMS["rotation"], steps)) for scheme in SCHEMES for steps in _STEPS]


def _draw_scheme(axis: Any, problem: Problem, forward: str, given: dict[tuple[str, int], dict[str, Any]]) -> None:
    grids = {steps: grid_of(problem, steps) for steps in _STEPS}
    sizes = [grid[1] - grid[0] for grid in grids.values()]
    for backward, colour in _COLOURS.items():
        errors = [
            difference(continuous(forward, backward, problem, grid), given[forward, k]) for k, grid in grids.items()
        ]
        slope = np.polyfit(np.log(sizes[1:]), np.log(errors[1:]), 1)[0]
        axis.plot(sizes, errors, marker="o", markersize=3, color=colour, label=f"{backward}, order {slope:.1f}")
    matching = [difference(gradient(forward, problem, grid), given[forward, k]) for k, grid in grids.items()]
    axis.plot(sizes, np.maximum(matching, _ROUNDING), marker="s", color="black", label="its own discrete adjoint")
    axis.set(xscale="log", yscale="log", title=f"solved by {forward}")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=6.5)
