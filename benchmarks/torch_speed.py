"""Time and memory of every way to a gradient through an ODE solve in PyTorch: ``python -m benchmarks.torch_speed``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
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
    timed, held = [], []
    if options.only != "memory":
        timed = _speeds(options.quick)
    if options.only != "speed":
        held = _memories(options.quick)
    command = " ".join(["python -m benchmarks.torch_speed", *(sys.argv[1:] if arguments is None else arguments)])
    results = Results(command, machine(), timed, held, targets(timed, held))
    print(results.markdown())
    print("Written:", *results.write(options.out))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torch_speed", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 rounds, and a batch of 256 for memory: a few minutes")
    parser.add_argument("--only", choices=("speed", "memory"), help="one half (default: both)")
    parser.add_argument("--out", type=Path, default=Path("benchmark-report"), metavar="DIR", help="folder of results")
    return parser


def _speeds(quick: bool) -> list[Speed]:
    rounds, budget = (3, 5.0) if quick else (11, 30.0)
    return [row for setup in SPEED for row in speeds(setup, rounds, budget, _note)]


def _memories(quick: bool) -> list[Memory]:
    batch = 256 if quick else MEMORY[0].batch
    return [memory(setup, method, batch, _note) for setup in MEMORY for method in METHODS]


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
