"""The curves, a figure for a part and a framework: time above, bytes held below, a column for a problem or an axis."""

from typing import Any

import matplotlib.ticker

from benchmarks.curves import cases
from benchmarks.page.panels import legend, panels

# Okabe and Ito's colours, grey for their yellow. Ours are drawn in full, the others dashed.
_LOOKS = {
    "back-propagation": ("#000000", "o"),
    "RecursiveCheckpoint": ("#000000", "o"),
    "adjoint": ("#E69F00", "s"),
    "Backsolve": ("#E69F00", "s"),
    "adjoint, seminorm": ("#D55E00", "D"),
    "steptape seminorm": ("#D55E00", "D"),
    "zuko": ("#888888", "v"),
    "Direct": ("#888888", "v"),
    "torchode, autograd": ("#CC79A7", "^"),
    "steptape ACA": ("#0072B2", "o"),
    "steptape ACA, 16 checkpoints": ("#56B4E9", "s"),
    "steptape ACA, 32 checkpoints": ("#56B4E9", "s"),
    "steptape quadrature": ("#009E73", "P"),
}
_AXES = {axis.name: axis.text.replace(", for", "\nfor") for axis in cases.AXES}


def drawn(part: str, found: dict[str, dict[float, dict[str, Any]]]) -> Any:
    """All panels of a part: by problem or axis, tolerance or size, and way, the rows."""
    precision, count = part == "precision", len(found)
    figure, axes = panels(2, count, max(8, 3.2 * count), 7, sharey="col" if precision else "row")
    quantities = (("seconds", "seconds, forward and backward"), ("held", "bytes held"))
    for column, (name, panel) in zip(axes.T, found.items(), strict=True):
        for axis, (what, text) in zip(column, quantities, strict=True):
            for way in dict.fromkeys(way for rows in panel.values() for way in rows):
                _line(axis, precision, way, what, [(size, panel[size].get(way, {})) for size in sorted(panel)])
            x, y = (text, "error of the gradient") if precision else (_AXES[name], text)
            axis.set(xlabel=x, xscale="log", yscale="log", ylabel=y if axis in axes[:, 0] else "")
            axis.grid(alpha=0.3)
            axis.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        column[0].set_title(name)
    legend(figure, min(4, count + 1))
    return figure


def _line(axis: Any, precision: bool, way: str, what: str, points: list[Any]) -> None:
    found = [(row[what], row["error"], size) for size, row in points if row.get(what)]
    if found:
        values, errors, sizes = zip(*found, strict=True)
        colour, marker = _LOOKS[way]
        style = {"linestyle": "-" if way.startswith("steptape") else "--", "color": colour, "marker": marker}
        x, y = (values, errors) if precision else (sizes, values)
        axis.plot(x, y, markersize=5, linewidth=1.5, label=way, **style)
