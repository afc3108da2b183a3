"""A comparison as a picture: time against memory, coloured by error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steptape._compare.rows import Row
from steptape._errors import OptionError, UnsupportedHostVersion

_MISSING = (
    "Comparison.plot() needs matplotlib, which is not installed: pip install 'steptape[report]'. All figures are in "
    "its rows, and print() shows them."
)


def check_file(file: Path) -> None:
    """Refuse a picture that could not be saved after all else is done."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as missing:
        raise UnsupportedHostVersion(_MISSING) from missing
    kinds = sorted(FigureCanvasBase.get_supported_filetypes())
    if file.suffix[1:].lower() not in kinds:
        raise OptionError(f"--plot {file}: no kind of picture. It must end in .{', .'.join(kinds)}.")
    if not file.absolute().parent.is_dir():
        raise OptionError(f"--plot {file}: there is no folder {file.absolute().parent}.")


def plot(title: str, rows: Sequence[Row], ax: Any = None) -> Any:
    """Draw on ``ax``, or on a new figure's; what was drawn on."""
    try:
        from matplotlib import pyplot as plt
        from matplotlib.colors import LogNorm
        from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
    except ImportError as missing:
        raise UnsupportedHostVersion(_MISSING) from missing
    is_ours = ax is None
    if is_ours:
        _, ax = plt.subplots(figsize=(9, 4.5), layout="constrained")
    shown = [row for row in rows if row.seconds is not None and row.memory]
    errors = [x for row in shown if (x := _error(row)) is not None]
    norm = LogNorm(min(errors), max(max(errors), 1.1 * min(errors))) if errors else None
    for n, row in enumerate(shown, 1):
        error = _error(row)
        look = {"c": "0.8"} if error is None else {"c": [error], "norm": norm, "cmap": "viridis_r"}
        ax.scatter(row.memory, row.seconds, s=150, marker="o" if row.is_discrete else "s", alpha=0.8, **look)
        side = (9, 3) if n % 2 else (-9, 3)
        ax.annotate(
            str(n), (row.memory, row.seconds), side, textcoords="offset points", ha="left" if n % 2 else "right"
        )
        ax.plot([], [], " ", label=f"{n}  {row.way}")
    ax.set(xscale="log", yscale="log", xlabel="memory, peak", ylabel="time, both passes")
    for axis, unit in ((ax.xaxis, "B"), (ax.yaxis, "s")):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=9))
        axis.set_major_formatter(EngFormatter(unit))
        axis.set_minor_formatter(NullFormatter())
    ax.margins(0.15)
    ax.set_title(title, fontsize="small")
    if errors:
        ax.figure.colorbar(plt.cm.ScalarMappable(norm, "viridis_r"), ax=ax, label="error of the gradient")
    if shown:
        place = {"loc": "outside right upper"} if is_ours else {}
        (ax.figure if is_ours else ax).legend(fontsize="small", frameon=False, handlelength=0, **place)
    return ax


def _error(row: Row) -> float | None:
    error = row.difference if row.error is None else row.error
    return None if error is None else max(error, 1e-16)
