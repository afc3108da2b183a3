"""Markdown tables, and numbers as a reader wants them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tabulate import DataRow, TableFormat, tabulate

from benchmarks.measurements import MEASUREMENTS

# Two figures that are no further apart are the same.
CLOSE = 1.15
_LINE = DataRow("| ", " | ", " |")
# Without padding: a cell may be as long as a paragraph.
_MARKDOWN = TableFormat(
    lineabove=None,
    linebelowheader=lambda widths, _: "|---" * len(widths) + "|",  # type: ignore[arg-type]
    linebetweenrows=None,
    linebelow=None,
    headerrow=_LINE,
    datarow=_LINE,
    padding=0,
    with_header_hide=None,
)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of rows by column, with the columns of the first one; nothing where there are none."""
    if not rows:
        return ""
    cells = [[str(row.get(column, "")).replace("|", "\\|") for column in rows[0]] for row in rows]
    return tabulate(cells, list(rows[0]), tablefmt=_MARKDOWN, disable_numparse=True, stralign=None)  # type: ignore[arg-type]


def link(path: str) -> str:
    """A path of the repository as a link from the page, under its last part."""
    return f"[{path.removeprefix('benchmarks/')}](../{path})"


def command(measurement: str) -> str:
    """What measures it."""
    known = MEASUREMENTS.get(measurement)
    return f"`python -m benchmarks {measurement}`" if known else "`python -m benchmarks compare FIRST SECOND --keep`"


def per_cent(share: float) -> str:
    """A share of 1."""
    return f"{share:.0%}".replace("%", " %")


def figure(x: float) -> str:
    """Three digits."""
    return f"{x:.3g}" if abs(x) < 1000 or x >= 1e6 else f"{x:.0f}"


def spread(values: Sequence[float]) -> str:
    """Median (least to most)."""
    return _with_range(statistics.median(values), values, figure)


def mean(values: Sequence[float]) -> str:
    """Geometric mean (least to most)."""
    return _with_range(statistics.geometric_mean(values), values, lambda x: f"{x:.2f}")


def _with_range(middle: float, values: Sequence[float], form: Callable[[float], str]) -> str:
    ends = [form(min(values)), form(max(values))]
    return form(middle) if ends[0] == ends[1] else f"{form(middle)} ({ends[0]} to {ends[1]})"


def ends(values: Sequence[float]) -> str:
    """Least to most."""
    return " to ".join(dict.fromkeys(f"{x:.1f}" for x in (min(values), max(values))))


def ends_of(ratios: Sequence[float]) -> str:
    """Least to most, of shares of 1."""
    return " to ".join(dict.fromkeys(f"{x:.2f}" for x in (min(ratios), max(ratios))))


def change(ratio: float) -> str:
    """A ratio as a change in per cent, or as a multiple where it is large."""
    if ratio >= 2:
        return f"{figure(ratio)} times"
    whole = round(100 * (ratio - 1))
    return f"{whole:+d} %" if whole else "0 %"


def changes(ratios: Sequence[float]) -> str:
    """Median (least to most) of ratios, as changes."""
    return _with_range(statistics.median(ratios), ratios, change)
