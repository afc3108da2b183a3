"""The curves, a figure for a part and a framework: time above, bytes held below, a column for a problem or an axis."""

from __future__ import annotations

from typing import Any

import matplotlib.figure
import matplotlib.ticker

from benchmarks.curves import cases

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
_AXES = {axis.name: axis.text for axis in cases.AXES}


def drawn(part: str, panels: dict[str, dict[float, dict[str, Any]]]) -> Any:
    """All panels of a part: by problem or axis, tolerance or size, and way, the rows."""
    figure = matplotlib.figure.Figure(figsize=(max(8, 3.2 * len(panels)), 7), layout="constrained")
    axes = figure.subplots(2, len(panels), squeeze=False, sharey="col" if part == "precision" else "row")
    for column, (name, panel) in enumerate(panels.items()):
        for axis, (what, text) in zip(
            axes[:, column], (("seconds", "seconds, forward and backward"), ("held", "bytes held")), strict=True
        ):
            for way in dict.fromkeys(way for rows in panel.values() for way in rows):
                _line(axis, part, way, what, [(size, panel[size].get(way, {})) for size in sorted(panel)])
            if part == "precision":
                axis.set(xlabel=text, ylabel="error of the gradient" if column == 0 else "")
            else:
                axis.set(xlabel=_AXES[name].replace(", for", "\nfor"), ylabel=text if column == 0 else "")
            axis.set(xscale="log", yscale="log")
            axis.grid(alpha=0.3)
            axis.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        axes[0, column].set_title(name)
    handles = {str(line.get_label()): line for axis in axes.flat for line in axis.get_lines()}
    columns = min(4, len(panels) + 1)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, fontsize=9)
    return figure


def _line(axis: Any, part: str, way: str, what: str, points: list[Any]) -> None:
    found = [(row[what], row["error"], size) for size, row in points if row.get(what)]
    if not found:
        return
    values, errors, sizes = zip(*found, strict=True)
    x, y = (values, errors) if part == "precision" else (sizes, values)
    colour, marker = _LOOKS[way]
    style = "-" if way.startswith("steptape") else "--"
    axis.plot(x, y, style, color=colour, marker=marker, markersize=5, linewidth=1.5, label=way)
