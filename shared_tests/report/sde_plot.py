"""The plot of the SDE section of a parity report: error of the gradient against step size, with the fitted orders."""

from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from steptape.shared_tests.backends.sde_schemes import SCHEMES
from steptape.shared_tests.parity.sde_compare import SdeSeries

# Okabe and Ito's colours, as in `plots`.
_COLOURS = ("#0072B2", "#D55E00", "#CC79A7", "#009E73", "#56B4E9", "#E69F00", "#000000")
_STYLES = dict(zip(SCHEMES, zip(_COLOURS, "osv^DPX", strict=True), strict=True))


def draw(folder: Path, series: list[SdeSeries]) -> list[Path]:
    """Draw the plot into `folder`, where anything has a closed form, and return the files."""
    shown = [one for one in series if one.points]
    panels = {problem: list(group) for problem, group in groupby(shown, key=lambda one: one.problem)}
    if not panels:
        return []
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.2 * len(panels) + 0.6, 4.6), squeeze=False, layout="constrained"
    )
    for axis, (problem, group) in zip(axes.flat, panels.items(), strict=True):
        _draw_problem(axis, problem, group)
    figure.supxlabel("step size")
    figure.supylabel("relative gradient error (y0, params)")
    figure.suptitle("Gradient error of aca against the closed form on the path\nfilled: torch, open: JAX", fontsize=10)
    file = folder / "sde-error-against-step.png"
    figure.savefig(file, dpi=150)
    plt.close(figure)
    return [file]


def _draw_problem(axis: Any, problem: str, group: list[SdeSeries]) -> None:
    for scheme, pair in groupby(group, key=lambda one: one.scheme):
        for index, one in enumerate(pair):
            order = f" {one.order:.2f} ({one.expected_order:g})" if one.order is not None else ""
            label = scheme.replace("_", " ") + order if index == 0 else None
            axis.plot(*zip(*one.points, strict=True), label=label, **_style(one))
    axis.set(yscale="log", title=problem.replace("_", " "))
    axis.set_xscale("log", base=2)
    axis.grid(alpha=0.3)
    axis.legend(title="fitted order (theory)", fontsize=7, title_fontsize=7)


def _style(one: SdeSeries) -> dict[str, Any]:
    """Return the look of a scheme; JAX's open markers are larger, to be seen around torch's."""
    colour, marker = _STYLES[one.scheme]
    style = {"color": colour, "marker": marker, "linewidth": 1.2}
    if one.backend == "torch":
        return {**style, "markersize": 4}
    return {**style, "markersize": 8, "markerfacecolor": "none", "linestyle": "--"}
