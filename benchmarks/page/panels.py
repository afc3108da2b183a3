"""What the plots have in common: panels in a grid, ticks of a logarithmic axis, one legend below."""

from typing import Any

import matplotlib.figure
import matplotlib.ticker


def panels(lines: int, columns: int, width: float, height: float, **shared: Any) -> tuple[Any, Any]:
    """A figure of that size in inches, and its axes, (lines, columns)."""
    figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(lines, columns, squeeze=False, **shared)


def legend(figure: Any, columns: int) -> None:
    """What is drawn in any panel, once, below all of them."""
    drawn: dict[str, Any] = {}
    for axis in figure.axes:
        drawn |= {name: handle for handle, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=columns, fontsize=9)


def ticks(side: Any, *multiples: float) -> None:
    """At these multiples of the powers of ten, as plain numbers."""
    side.set_major_locator(matplotlib.ticker.LogLocator(subs=multiples))
    side.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:g}"))
    side.set_minor_locator(matplotlib.ticker.NullLocator())
