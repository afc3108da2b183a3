"""The figures of the seminorm paper's tasks."""

import statistics
from collections.abc import Sequence

from benchmarks.envelope import Results, Row, Rows
from benchmarks.page import text
from benchmarks.ways import MATCHED

PAIRS = (("seminorm", "default"), ("quadrature", "seminorm"), (MATCHED, "seminorm"), ("aca", "seminorm"))
COLUMNS = ("backward", "seconds", "error")


def compared(
    results: Results, framework: str, one: str, other: str, columns: Sequence[str] = COLUMNS
) -> dict[tuple[str, float], tuple[float, ...]]:
    """By task and tolerance, one way's backward evaluations, seconds and errors over another's."""
    groups: dict[tuple[str, float], dict[str, Row]] = {}
    for row in results.rows("tasks", framework):
        groups.setdefault((row["task"], row["rtol"]), {})[row["way"]] = row
    return {
        place: tuple(group[one][column] / group[other][column] for column in columns)
        for place, group in groups.items()
        if {one, other} <= group.keys()
    }


def changes(results: Results, framework: str) -> Rows:
    """A row a task: each comparison, medians over the tolerances."""
    found = {pair: compared(results, framework, *pair) for pair in PAIRS}
    names = list(dict.fromkeys(task for ratios in found.values() for task, _ in ratios))
    rows = []
    for task in [*names, "all"] if names else []:
        row = {"task": task}
        for (one, other), ratios in found.items():
            columns = zip(*(ratio for (name, _), ratio in ratios.items() if task in (name, "all")), strict=True)
            row[f"{one} over {other}"] = " / ".join(text.change(statistics.median(column)) for column in columns)
        rows.append(row)
    return rows
