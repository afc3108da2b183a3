"""Runs measurements: a process for each and each framework, on one core, and a second pass of those that want one.

The process is this module: ``python -m benchmarks.runner MEASUREMENT FRAMEWORK PASS FILE``. A cell that is in the file
is not run again, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import envelope, machine
from benchmarks.measurements import MEASUREMENTS, Scope


def run(names: Sequence[str], file: Path, quick: bool, only: str = "", framework: str = "") -> list[str]:
    """Measure what is not in the file yet; which processes failed."""
    failed = []
    for number in (1,) if quick else (1, 2):
        # The second pass comes after all of the first: hours later, if many are asked for.
        for name in names:
            if number == 2 and not MEASUREMENTS[name].again:
                continue
            for one in MEASUREMENTS[name].modules:
                if framework in ("", one) and not _process(name, one, number, file, quick, only):
                    failed.append(f"{name}, {one}")
    return list(dict.fromkeys(failed))


def _process(name: str, framework: str, number: int, file: Path, quick: bool, only: str) -> bool:
    command = [sys.executable, "-m", "benchmarks.runner", name, framework, str(number), str(file), f"--only={only}"]
    environment = {**os.environ, **machine.ONE_THREAD}
    return subprocess.run([*command, *["--quick"] * quick], env=environment, check=False).returncode == 0


def work(name: str, framework: str, number: int, file: Path, quick: bool, only: str) -> bool:
    """Measure in this process; whether all cells could be."""
    machine.prepare(framework)
    done = envelope.done(envelope.read(file), name, framework, number)
    cells = MEASUREMENTS[name].cells(framework, Scope(quick=quick, done=done, folder=file.parent))
    chosen = {cell: measure for cell, measure in cells.items() if only in cell}
    missing = [cell for cell in chosen if cell not in done]
    where = f"{name}, {framework}{', second pass' * (number == 2)}"
    note(f"{where}: {len(chosen)} cells, {len(chosen) - len(missing)} of them are there")
    failed = 0
    for place, cell in enumerate(missing, 1):
        note(f"{where}: {place} of {len(missing)}: {cell}")
        start = time.monotonic()
        try:
            rows = chosen[cell]()
        except Exception as error:
            failed += 1
            note(f"  failed: {type(error).__name__}: {error}")
            continue
        done[cell] = rows
        envelope.append(file, [envelope.entry(name, cell, framework, number, rows)])
        note(f"  {time.monotonic() - start:.1f} s")
    return not failed


def note(line: str) -> None:
    """Show how far a measurement is."""
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one measurement in one framework."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.runner", description=__doc__)
    parser.add_argument("measurement", choices=MEASUREMENTS)
    parser.add_argument("framework")
    parser.add_argument("number", type=int)
    parser.add_argument("file", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="")
    options = parser.parse_args(arguments)
    return not work(options.measurement, options.framework, options.number, options.file, options.quick, options.only)


if __name__ == "__main__":
    sys.exit(main())
