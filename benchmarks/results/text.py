"""Markdown, and numbers as a reader wants them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence

from benchmarks import markdown
from benchmarks.results.read import SOURCES

# Two figures that are no further apart are the same.
CLOSE = 1.15


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A table, and the empty lines around it."""
    yield from ("", *markdown.table(head, rows), "")


def link(path: str) -> str:
    """A path of the repository as a link from the page, under its last part."""
    return f"[{path.removeprefix('benchmarks/')}](../{path})"


def missing(name: str) -> str:
    """Which command makes a result."""
    return f"Not measured yet: `{SOURCES[name].command}` makes it."


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


def change(ratio: float) -> str:
    """A ratio as a change in per cent, or as a multiple where it is large."""
    if ratio >= 2:
        return f"{figure(ratio)} times"
    whole = round(100 * (ratio - 1))
    return f"{whole:+d} %" if whole else "0 %"


def changes(ratios: Sequence[float]) -> str:
    """Median (least to most) of ratios, as changes."""
    return _with_range(statistics.median(ratios), ratios, change)
