"""The papers' experiments beside what the papers say of them: ``python -m benchmarks.papers``.

Cells are appended to ``papers.jsonl`` in the output folder as they come; a rerun into the same folder skips what is
there. After each experiment ``papers.md`` and its plot are written again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import jsonl
from benchmarks.papers import table
from benchmarks.papers.table import EXPERIMENTS, Results


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and is not there yet, and write the report."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.papers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cells: two minutes")
    parser.add_argument("--only", action="append", choices=EXPERIMENTS, metavar="NAME", help=", ".join(EXPERIMENTS))
    parser.add_argument("--out", type=Path, default=Path("benchmark-report"), metavar="DIR", help="folder of results")
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"papers{'-quick' if options.quick else ''}.jsonl"
    command = " ".join(["python -m benchmarks.papers", *given])
    for name in options.only or EXPERIMENTS:
        _measure(name, options.quick, file)
        report = table.write(_results(file), command, file.with_suffix(".md"))
    print(report)
    return 0


def _measure(name: str, quick: bool, file: Path) -> None:
    cells = importlib.import_module(f"benchmarks.papers.{name}").run(quick)
    done = {entry["cell"] for entry in jsonl.read(file) if entry["experiment"] == name}
    for cell, measure in cells.items():
        if cell in done:
            continue
        print(f"{name}: {cell}", file=sys.stderr, flush=True)
        start = time.process_time()
        torch.manual_seed(0)
        entry = {"experiment": name, "cell": cell, "rows": measure(), "seconds": time.process_time() - start}
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(entry) + "\n")


def _results(file: Path) -> Results:
    results: Results = {}
    for entry in jsonl.read(file):
        rows, seconds = results.setdefault(entry["experiment"], ([], [0.0]))
        rows.extend(entry["rows"])
        seconds[0] += entry["seconds"]
    return {name: results[name] for name in EXPERIMENTS if name in results}


if __name__ == "__main__":
    sys.exit(main())
