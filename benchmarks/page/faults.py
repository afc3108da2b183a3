"""The table of where the hosts' default gradients are wrong."""

from benchmarks.envelope import Results, Rows
from benchmarks.faults import FOLDER
from benchmarks.page import text
from benchmarks.ways import BASE


def table(results: Results) -> Rows:
    return [
        {
            "call": row["call"],
            "solve": row["solve"],
            "true value": f"{row['right']:.6g}",
            "how known": row["known"],
            "the host's error": _error(row["host"]),
            "ours": _error(row["ours"]),
            "to reproduce": text.link(f"{FOLDER}/{row['file']}"),
        }
        for framework in BASE
        for row in results.rows("faults", framework)
    ]


def _error(error: float | None) -> str:
    return "fails" if error is None else f"{error:.1e}"
