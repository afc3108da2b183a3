"""Every way by itself, and then in interleaved rounds, of which a slow one takes part in fewer, or in none.

One run may be off by a third where others share the machine, and a ratio of two by more. Rounds help where that lasts
seconds, a second pass (``benchmarks.passes``) where it lasts minutes: within 15 % of each other were 83 % of the ratios
of two days with 1 to 5 rounds, and 94 % with the better of two passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.curves.store import Row
from benchmarks.turns import medians

_SECONDS = 4.0  # for all rounds of a way; but
_LEAST = 3  # rounds in any case, except
_SLOW = 8.0  # where one run takes longer, and is the only one


def race(runs: Mapping[str, Callable[[], Row]], rounds: int) -> list[Row]:
    """A row for each way, with the median seconds of the rounds; or why there is none."""
    rows: dict[str, Row] = {}
    for way, run in runs.items():
        try:
            row = run()
            # What a first run sets up for good, and what the way before it left behind, is not its own.
            rows[way] = {"way": way, **(run() if row["seconds"] < _SLOW else row)}
        except Exception as error:
            rows[way] = {"way": way, "without": f"failed: {type(error).__name__}: {' '.join(str(error).split())[:90]}"}
    fast = {way: row["seconds"] for way, row in rows.items() if row.get("seconds", _SLOW) < _SLOW}
    again = {way: lambda _, run=runs[way]: run()["seconds"] for way in fast}
    for way, seconds in medians(again, fast, rounds, _SECONDS, _LEAST).items():
        rows[way]["seconds"] = seconds
    return list(rows.values())
