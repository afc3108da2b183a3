"""Work-precision and scaling of gradients in PyTorch and JAX: ``python -m benchmarks.curves``.

Each framework runs in a process of its own. Cells are appended to ``curves.jsonl`` in the output folder as they come; a
rerun into the same folder skips what is there. At the end ``curves.md`` and the plots are written.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import jsonl
from benchmarks.curves import table
from benchmarks.curves.work import BACKENDS, PARTS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and is not there yet, and write the report."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cells: under two minutes")
    parser.add_argument("--only", choices=PARTS, help="one of the two measurements")
    parser.add_argument("--backend", choices=BACKENDS, help="one of the two frameworks")
    parser.add_argument("--out", type=Path, default=Path("benchmark-report"), metavar="DIR", help="folder of results")
    options = parser.parse_args(given)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"curves{'-quick' if options.quick else ''}.jsonl"
    mlp = options.out / "curves-mlp.npz"
    if not mlp.exists() and not options.quick:
        subprocess.run([sys.executable, "-m", "benchmarks.curves.mlp", str(mlp)], check=True)
    parts = [f"--part={part}" for part in ([options.only] if options.only else PARTS)]
    failed = 0
    for backend in [options.backend] if options.backend else BACKENDS:
        worker = [sys.executable, "-m", "benchmarks.curves.work", backend, str(file), str(mlp), *parts]
        failed |= subprocess.run([*worker, *["--quick"] * options.quick], check=False).returncode
    if not file.exists():
        return failed or 1
    report = table.write(jsonl.read(file), " ".join(["python -m benchmarks.curves", *given]), file.with_suffix(".md"))
    print(report)
    return failed


if __name__ == "__main__":
    sys.exit(main())
