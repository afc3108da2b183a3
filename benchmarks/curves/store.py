"""The results: a line of JSON a cell, appended when it is done, so that a rerun skips what is there."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import jsonl

Row = dict[str, Any]
Entry = dict[str, Any]


class Store:
    """The cells of one framework in a file, each under (part, name, size): a tolerance, or a number of something."""

    def __init__(self, file: Path, backend: str):
        self._file, self._backend = file, backend
        self._rows = {_key(entry): entry["rows"] for entry in jsonl.read(file) if entry["backend"] == backend}

    def cell(self, part: str, name: str, size: float, measure: Callable[[], list[Row]]) -> list[Row]:
        """Its rows, one for each way: from the file, or measured and written there."""
        key = part, name, float(size)
        if key not in self._rows:
            start = time.process_time()
            rows = self._rows[key] = measure()
            seconds = time.process_time() - start
            entry = {"backend": self._backend, "part": part, "name": name, "size": size, "seconds": seconds}
            with self._file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({**entry, "rows": rows}) + "\n")
            print(f"{self._backend} {part}: {name} {size:g}, {seconds:.1f} s", file=sys.stderr, flush=True)
        return self._rows[key]


def _key(entry: Entry) -> tuple[str, str, float]:
    return entry["part"], entry["name"], float(entry["size"])
