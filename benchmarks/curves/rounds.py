"""Every way once, and then in interleaved rounds, of which a slow one takes part in fewer, or in none."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

from benchmarks.curves.store import Row

_AFFORDABLE = 1.0


def race(runs: Mapping[str, Callable[[], Row]], rounds: int) -> list[Row]:
    """A row for each way: that of its first run, with the medians of the rounds; or why there is none."""
    rows: dict[str, Row] = {}
    for way, run in runs.items():
        try:
            rows[way] = {"way": way, **run()}
        except Exception as error:
            rows[way] = {"way": way, "without": f"failed: {type(error).__name__}: {' '.join(str(error).split())[:90]}"}
    again: dict[str, list[Row]] = {way: [] for way, row in rows.items() if "seconds" in row}
    for n in range(rounds):
        for way, found in again.items():
            if rows[way]["seconds"] * (n + 1) < _AFFORDABLE:
                found.append(runs[way]())
    for way, found in again.items():
        for what in ("seconds", "held"):
            if found and rows[way][what] is not None:
                rows[way][what] = statistics.median(row[what] for row in found)
    return list(rows.values())
