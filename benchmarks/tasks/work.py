"""The cells of one framework, each written when it is done: what the runner starts, in a process a framework."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import jsonl
from benchmarks.tasks.data import TASKS
from benchmarks.tasks.measure import METHODS, Row, cell


def results(file: Path) -> list[Row]:
    """The rows of a file of results, one in a line."""
    return [Row(**row) for row in jsonl.read(file)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is not in the file yet."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tasks.work", description=__doc__)
    parser.add_argument("backend", choices=("torch", "jax"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--task", action="append", default=[], choices=tuple(TASKS))
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--tolerances", type=int, default=3)
    parser.add_argument("--paper", action="store_true")
    options = parser.parse_args(arguments)
    models = importlib.import_module(f"benchmarks.tasks.{options.backend}_models")
    for name in options.task:
        task = TASKS[name](options.paper)
        run = (options.backend, name, options.steps)
        done = {(row.rtol, row.atol, row.method) for row in results(options.file) if row.run() == run}
        every = {method: models.Model(task, method) for method in METHODS}
        for pair in task.tolerances[: options.tolerances]:
            missing = {method: model for method, model in every.items() if (*pair, method) not in done}
            if not missing:
                continue
            reference = _reference(every["aca"], options.file.with_name(f"{options.file.stem}-{name}.npy"))
            rows = cell(options.backend, task, missing, reference, pair, options.steps, options.rounds, _note)
            with options.file.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows)
    return 0


def _reference(model: Any, file: Path) -> np.ndarray:
    """The gradient of the first batch to compare with, by the framework that comes to it first: both share it."""
    if not file.exists():
        np.save(file, model.reference(model.task.weights(), next(model.task.batches(1))))
    return np.load(file)


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
