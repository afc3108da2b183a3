"""Markdown tables, and numbers as a reader wants them."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.measurements import MEASUREMENTS

# Two figures that are no further apart are the same.
CLOSE = 1.15


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of rows by column, with the columns of the first one; nothing where there are none."""
    if not rows:
        return ""
    cells = [[str(row.get(column, "")).replace("|", "\\|") for column in rows[0]] for row in rows]
    head, *body = (f"| {' | '.join(line)} |" for line in (list(rows[0]), *cells))
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


def link(path: str) -> str:
    """A path of the repository as a link from the page, under its last part."""
    return f"[{path.removeprefix('benchmarks/')}](../{path})"


def command(measurement: str) -> str:
    known = MEASUREMENTS.get(measurement)
    return f"`python -m benchmarks {measurement}`" if known else "`python -m benchmarks compare FIRST SECOND --keep`"


def per_cent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %")


def figure(x: float) -> str:
    return f"{x:.3g}" if abs(x) < 1000 or x >= 1e6 else f"{x:.0f}"


def change(ratio: float) -> str:
    """A ratio as a change in per cent, or as a multiple where it is large."""
    if ratio >= 2:
        return f"{figure(ratio)} times"
    whole = round(100 * (ratio - 1))
    return f"{whole:+d} %" if whole else "0 %"


def spread(
    values: Sequence[float],
    form: Callable[[float], str] = figure,
    middle: Callable[[Sequence[float]], float] = statistics.median,
) -> str:
    """Median (least to most), or another ``middle``."""
    least, most = form(min(values)), form(max(values))
    return form(middle(values)) + ("" if least == most else f" ({least} to {most})")


def mean(values: Sequence[float]) -> str:
    """Geometric mean (least to most)."""
    return spread(values, "{:.2f}".format, statistics.geometric_mean)


def ends(values: Sequence[float], digits: int = 1) -> str:
    """Least to most."""
    return " to ".join(dict.fromkeys(f"{x:.{digits}f}" for x in (min(values), max(values))))
