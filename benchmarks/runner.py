"""Runs measurements: a process for each and each framework, on one core, and a second pass of those that want one.

The process is this module: ``python -m benchmarks.runner MEASUREMENT FRAMEWORK PASS FILE TEXT [--quick]``, where TEXT
is in the names of the cells to be run. A cell that is in the file is not run again, so that an interrupted run goes on
where it was.
"""

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
    again = [] if quick else [name for name in names if MEASUREMENTS[name].again]
    failed, environment = [], {**os.environ, **machine.ONE_THREAD}
    # The second pass comes after all of the first: hours later, if many are asked for.
    for number, name in [*((1, name) for name in names), *((2, name) for name in again)]:
        for one in MEASUREMENTS[name].modules:
            if framework in ("", one):
                command = [sys.executable, "-m", "benchmarks.runner", name, one, str(number), str(file), only]
                if subprocess.run([*command, *["--quick"] * quick], env=environment, check=False).returncode:
                    failed.append(f"{name}, {one}")
    return list(dict.fromkeys(failed))


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
        envelope.write(file, [envelope.entry(name, cell, framework, number, rows)], "a")
        note(f"  {time.monotonic() - start:.1f} s")
    return not failed


def note(line: str) -> None:
    """Show how far a measurement is."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    name, framework, number, file, only, *rest = sys.argv[1:]
    sys.exit(not work(name, framework, int(number), Path(file), "--quick" in rest, only))
