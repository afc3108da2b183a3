"""Time and memory of every way to a gradient through an ODE solve in PyTorch: ``python -m benchmarks.torch_speed``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.fields import MEMORY, SPEED
from benchmarks.measure import Speed, machine, speeds
from benchmarks.memory import Memory, memory
from benchmarks.peers import METHODS
from benchmarks.report import Results
from benchmarks.targets import targets


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables and write them to a folder."""
    options = _parser().parse_args(arguments)
    command = " ".join(["python -m benchmarks.torch_speed", *(sys.argv[1:] if arguments is None else arguments)])
    timed: list[Speed] = []
    held: list[Memory] = []
    for row in _rows(options):
        if isinstance(row, Speed):
            timed.append(row)
        else:
            held.append(row)
        # Each time, so that an interrupted run leaves what it has found.
        results = Results(command, machine(), timed, held, targets(timed, held))
        files = results.write(options.out)
    print(results.markdown())
    print("Written:", *files)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torch_speed", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 rounds, and a batch of 256 for memory: a few minutes")
    parser.add_argument("--only", choices=("speed", "memory"), help="one half (default: both)")
    parser.add_argument("--out", type=Path, default=Path("benchmark-report"), metavar="DIR", help="folder of results")
    return parser


def _rows(options: argparse.Namespace) -> Iterator[Speed | Memory]:
    rounds, budget = (3, 5.0) if options.quick else (11, 30.0)
    batch = 256 if options.quick else MEMORY[0].batch
    if options.only != "memory":
        for setup in SPEED:
            yield from speeds(setup, rounds, budget, _note)
    if options.only != "speed":
        for setup in MEMORY:
            for method in METHODS:
                yield memory(setup, method, batch, _note)


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
