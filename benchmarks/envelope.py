"""The one form of all results: a line of JSON a cell, appended when it is measured, so that a rerun skips it.

A line is ``{measurement, cell, framework, pass, day, machine, versions, rows}``. What else runs on a machine slows it
for seconds to minutes, and some ways more than others; it only ever adds time. So some measurements are made in two
passes, hours apart: the time of a way is that of the pass in which it took less, and a ratio, which may be off either
way, is the geometric mean of both. All else stays the first pass's.
"""

import json
import statistics
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from benchmarks import machine

Row = dict[str, Any]
Rows = list[Row]
Entry = dict[str, Any]


def entry(measurement: str, cell: str, framework: str, number: int, rows: Rows) -> Entry:
    """A line, of what was measured just now in this process."""
    return {
        **{"measurement": measurement, "cell": cell, "framework": framework, "pass": number},
        "day": datetime.now(timezone.utc).date().isoformat(),
        "machine": machine.machine(),
        "versions": machine.versions(framework),
        "rows": rows,
    }


def read(file: Path) -> list[Entry]:
    """All lines of a file, none if it is missing."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def write(file: Path, entries: Iterable[Entry], mode: Literal["w", "a"] = "w") -> None:
    """The lines of a file, or more of them; it is made if need be."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open(mode, encoding="utf-8") as lines:
        lines.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in entries)


def done(entries: Iterable[Entry], measurement: str, framework: str, number: int) -> dict[str, Rows]:
    """The rows of one pass by cell."""
    key = measurement, framework, number
    return {e["cell"]: e["rows"] for e in entries if (e["measurement"], e["framework"], e["pass"]) == key}


class Results:
    """The lines of a file of results, of which any may be missing."""

    def __init__(self, entries: Sequence[Entry]):
        self.entries = entries

    def cells(self, measurement: str, framework: str) -> dict[str, Rows]:
        """The rows by cell, of both passes."""
        first, second = (done(self.entries, measurement, framework, number) for number in (1, 2))
        return {cell: [_of_both(row, second.get(cell, [])) for row in rows] for cell, rows in first.items()}

    def rows(self, measurement: str, framework: str) -> Rows:
        """The rows of all cells that were not without a result, each with the name of its ``cell``."""
        found = self.cells(measurement, framework).items()
        return [{"cell": cell, **row} for cell, rows in found for row in rows if not row.get("without")]


def _of_both(row: Row, again: Rows) -> Row:
    found, others = dict(row), [other for other in again if other.get("way") == row.get("way")]
    for name, of_both in (("seconds", min), ("ratio", statistics.geometric_mean)):
        if name in row:
            found[name] = of_both([row[name], *(other[name] for other in others if name in other)])
    return found


def grouped(rows: Rows, name: str) -> dict[str, Rows]:
    """Rows by a name that is made of each, as ``str.format`` makes it of their columns."""
    groups: dict[str, Rows] = {}
    for row in rows:
        groups.setdefault(name.format(**row), []).append(row)
    return groups


def by_way(rows: Rows, name: str) -> dict[str, dict[str, Row]]:
    return {name: {row["way"]: row for row in group} for name, group in grouped(rows, name).items()}


def origin(entries: Sequence[Entry]) -> dict[str, Any]:
    """Frameworks, passes, days, machine and versions of several lines together, as an envelope has them."""
    found: dict[str, str] = {}
    for one in entries:
        found |= one["versions"]
    return {
        "framework": joined(e["framework"] for e in entries),
        "pass": max(e["pass"] for e in entries),
        "day": joined(sorted(e["day"] for e in entries)),
        "machine": joined(e["machine"] for e in entries),
        "versions": found,
    }


def joined(parts: Iterable[str]) -> str:
    """What they name, each once."""
    return ", ".join(dict.fromkeys(part for one in parts for part in one.split(", ") if part))
