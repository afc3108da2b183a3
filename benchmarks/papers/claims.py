"""What a paper says beside what was found, and the words for columns of rows."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.envelope import Rows


class Claim(NamedTuple):
    """What a paper says, what was found here, and why the two differ or agree."""

    claimed: str
    measured: str
    why: str


def means(rows: Rows, name: str, ways: Sequence[str], form: str) -> str:
    """By way the mean of a column over the seeds (least to most)."""
    found = {way: values(rows, name, way=way) for way in ways}
    each = (f"{way} {form % (sum(e) / len(e), min(e), max(e))}" for way, e in found.items())
    return f"mean (least to most) of {len(found[ways[0]])} seeds: {', '.join(each)}"


def over_ours(rows: Rows, name: str, ways: Sequence[str], **where: Any) -> str:
    """By way the median of a column over ACA's."""
    base = median(rows, name, way="ACA", **where)
    return ", ".join(f"{way} {median(rows, name, way=way, **where) / base:.2g}" for way in ways)


def median(rows: Rows, name: str, **where: Any) -> float:
    return statistics.median(values(rows, name, **where) or [float("nan")])


def values(rows: Rows, name: str, **where: Any) -> list[Any]:
    """A column of the rows that match, without empty cells."""
    chosen = [row for row in rows if all(row.get(key) == value for key, value in where.items())]
    return [row[name] for row in chosen if row.get(name) is not None]
