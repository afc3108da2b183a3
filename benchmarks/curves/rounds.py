"""Every way by itself, and then in interleaved rounds, of which a slow one takes part in fewer, or in none."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

from benchmarks.curves.store import Row

_AFFORDABLE = 1.0


def race(runs: Mapping[str, Callable[[], Row]], rounds: int) -> list[Row]:
    """A row for each way, with the median seconds of the rounds; or why there is none."""
    rows: dict[str, Row] = {}
    for way, run in runs.items():
        try:
            row = run()
            # What a first run sets up for good, and what the way before it left behind, is not its own.
            rows[way] = {"way": way, **(run() if row["seconds"] < _AFFORDABLE else row)}
        except Exception as error:
            rows[way] = {"way": way, "without": f"failed: {type(error).__name__}: {' '.join(str(error).split())[:90]}"}
    times: dict[str, list[float]] = {way: [] for way, row in rows.items() if "seconds" in row}
    for n in range(rounds):
        for way, found in times.items():
            if rows[way]["seconds"] * (n + 1) < _AFFORDABLE:
                found.append(runs[way]()["seconds"])
    for way, found in times.items():
        rows[way]["seconds"] = statistics.median(found or [rows[way]["seconds"]])
    return list(rows.values())
