"""The table of libraries that differentiate a diffrax solve: a row an algorithm, by the adjoint it is given."""

from __future__ import annotations

from benchmarks.envelope import Results, Row, Rows, by_way
from benchmarks.page import text
from benchmarks.ways import DEFAULT, REPLAY


def table(results: Results) -> Rows:
    """Milliseconds by each, over the replay's in brackets, and the furthest that a result is from the replay's."""
    found = by_way(results.rows("jax_libraries", "jax"), "{algorithm}")
    return [
        {
            "algorithm": name,
            **{f"`{way}`": _time(rows.get(way, {})) for way in (DEFAULT, "DirectAdjoint()", "ForwardMode()")},
            f"`{REPLAY}`": _time(rows[REPLAY]),
            "results apart": f"{max(row.get('difference', 0.0) for row in rows.values()):.0e}".replace("0e+00", "0"),
        }
        for name, rows in found.items()
    ]


def _time(row: Row) -> str:
    if "seconds" not in row:
        return "refused"
    over = "" if row["way"] == REPLAY else f" ({row['over_replay']:.2f} times)"
    return f"{text.figure(row['seconds'] * 1e3)}{over}"
