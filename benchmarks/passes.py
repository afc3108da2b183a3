"""What is measured a second time, and how the times of both passes become one.

What else runs on a machine slows it for seconds to minutes, and some ways more than others. It only ever adds time: so
the time of a way becomes that of the pass in which the median of its rounds was less. All else stays the first pass's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import jsonl

SECOND = "second-pass"  # the folder of its results, in that of the first
Timed = Iterator[tuple[tuple[Any, ...], dict[str, Any]]]


def _curves(cells: list[dict[str, Any]]) -> Timed:
    for cell in cells:
        for row in cell["rows"]:
            if "seconds" in row:
                yield (*_of(cell, "backend", "part", "name", "size"), row["way"]), row


def _tasks(rows: list[dict[str, Any]]) -> Timed:
    for row in rows:
        if not row["failed"]:
            yield _of(row, "backend", "task", "rtol", "atol", "method", "parameters", "channels"), row


def _sdes(runs: list[dict[str, Any]]) -> Timed:
    for run in runs:
        for row in run["rows"]:
            for way, found in row["ways"].items():
                case = _of(row, "sde_type", "noise", "method", "known_dt")
                yield (*_of(run, "steps", "batch", "state"), *case, way), found


def _of(found: dict[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(found[name] for name in names)


# Their figures are times, not ratios within each round.
FILES: dict[str, tuple[str, Callable[[list[dict[str, Any]]], Timed]]] = {
    "sde_speed": ("sde_speed.json", _sdes),
    "curves": ("curves.jsonl", _curves),
    "tasks": ("tasks.jsonl", _tasks),
}


def merge(folder: Path) -> None:
    """The lesser times into the files of a folder of results, as far as its second pass has them too."""
    for file, timed in FILES.values():
        found, others = _read(folder / file), dict(timed(_read(folder / SECOND / file)))
        for key, row in timed(found):
            row["seconds"] = min(row["seconds"], others.get(key, row)["seconds"])
        if others:
            _write(folder / file, found)


def _read(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".jsonl":
        return jsonl.read(file)
    return [json.loads(file.read_text(encoding="utf-8"))] if file.exists() else []


def _write(file: Path, found: list[dict[str, Any]]) -> None:
    measured = file.stat().st_mtime_ns
    lines = [json.dumps(one, indent=None if file.suffix == ".jsonl" else 1) + "\n" for one in found]
    file.write_text("".join(lines), encoding="utf-8")
    os.utime(file, ns=(measured, measured))
