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

from benchmarks.results.read import SECOND, SOURCES, Results

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
TIMED: dict[str, Callable[[list[dict[str, Any]]], Timed]] = {"sde_speed": _sdes, "curves": _curves, "tasks": _tasks}


def merge(folder: Path) -> None:
    """The lesser times into the files of a folder of results, as far as its second pass has them too."""
    for name, timed in TIMED.items():
        found, others = _read(Results(folder), name), dict(timed(_read(Results(folder / SECOND), name)))
        for key, row in timed(found):
            row["seconds"] = min(row["seconds"], others.get(key, row)["seconds"])
        if others:
            _write(folder / SOURCES[name].file, found)


def _read(results: Results, name: str) -> list[dict[str, Any]]:
    if not results.has(name):
        return []
    return results.lines(name) if SOURCES[name].file.endswith(".jsonl") else [results.data(name)]


def _write(file: Path, found: list[dict[str, Any]]) -> None:
    measured = file.stat().st_mtime_ns
    lines = [json.dumps(one, indent=None if file.suffix == ".jsonl" else 1) + "\n" for one in found]
    file.write_text("".join(lines), encoding="utf-8")
    os.utime(file, ns=(measured, measured))
