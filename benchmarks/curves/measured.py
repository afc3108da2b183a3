"""A row for each way: by itself, then in interleaved rounds, of which a slow one takes part in fewer, or in none."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks import timing
from benchmarks.envelope import Row, Rows

_SECONDS = 4.0  # for all rounds of a way; but three in any case, except
_SLOW = 8.0  # where one run takes longer, and is the only one


def measured(runs: Mapping[str, Callable[[], Row]], most: int) -> Rows:
    """The rows with the median seconds of at ``most`` so many rounds; or why there are none."""
    rows: dict[str, Row] = {}
    for way, run in runs.items():
        try:
            row = run()
            # What a first run sets up for good, and what the way before it left behind, is not its own.
            rows[way] = {"way": way, **(run() if row["seconds"] < _SLOW else row)}
        except Exception as error:
            rows[way] = {"way": way, "without": f"failed: {type(error).__name__}: {' '.join(str(error).split())[:90]}"}
    first = {way: row["seconds"] for way, row in rows.items() if "seconds" in row}
    again = {way: lambda run=runs[way]: run()["seconds"] for way in first}
    for way, times in timing.race(again, timing.Rounds(most, _SECONDS, alone=_SLOW), first).items():
        rows[way]["seconds"] = timing.median(times)
    return list(rows.values())
