"""The seminorm paper's tasks by every adjoint, in both frameworks: ``python -m benchmarks.tasks``.

Each framework runs in a process of its own. Results are appended to ``tasks.jsonl`` in the output folder as they come;
a rerun into the same folder skips what is there. At the end ``tasks.md`` and ``tasks.png`` are written.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.tasks import table, work
from benchmarks.tasks.data import TASKS

QUICK = ("cde", "cnf-moons")
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for, and write the report."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tasks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(QUICK)} at one tolerance, few steps")
    parser.add_argument("--task", action="append", metavar="NAME", help=f"begins the name of any of {', '.join(TASKS)}")
    parser.add_argument("--backend", action="append", choices=("torch", "jax"))
    parser.add_argument("--paper", action="store_true", help="nets and batches of the paper's sizes: hours")
    parser.add_argument("--steps", type=int, help="of training; 10, or 3 with --quick")
    parser.add_argument("--out", type=Path, default=Path("benchmark-report"), metavar="DIR", help="folder of results")
    options = parser.parse_args(given)
    tasks = [name for name in TASKS if any(map(name.startswith, options.task or (QUICK if options.quick else [""])))]
    if not tasks:
        parser.error(f"--task {' '.join(options.task)}: none of {', '.join(TASKS)}.")
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"tasks{'-paper' if options.paper else ''}.jsonl"
    command = [f"--steps={options.steps or (3 if options.quick else 10)}", f"--rounds={2 if options.quick else 21}"]
    command += [f"--tolerances={1 if options.quick else 3}", *["--paper"] * options.paper]
    command += [f"--task={name}" for name in tasks]
    failed = 0
    for backend in options.backend or ("torch", "jax"):
        worker = [sys.executable, "-m", "benchmarks.tasks.work", backend, str(file), *command]
        failed |= subprocess.run(worker, env={**os.environ, **ONE_THREAD}, check=False).returncode
    rows = work.results(file)
    if rows:
        report = table.write(rows, " ".join(["python -m benchmarks.tasks", *given]), options.out)
        print(report.read_text(encoding="utf-8"))
    return failed


if __name__ == "__main__":
    sys.exit(main())
