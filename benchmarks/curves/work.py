"""The cells of one framework: what the runner starts, in a process a framework."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.curves import plan
from benchmarks.curves.plan import Extent, Framework
from benchmarks.curves.store import Store

PARTS = ("precision", "scaling")
BACKENDS = ("torch", "jax")


def framework(backend: str, quick: bool) -> Framework:
    """The framework of that name, imported when it is asked for: two do not share a process."""
    if backend == "torch":
        from benchmarks.curves.torch_side import Torch

        return Torch(quick)
    from benchmarks.curves.jax_side import Jax

    return Jax(quick)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is not in the file yet."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves.work", description=__doc__)
    parser.add_argument("backend", choices=BACKENDS)
    parser.add_argument("file", type=Path)
    parser.add_argument("mlp", type=Path)
    parser.add_argument("--part", action="append", choices=PARTS, required=True)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    store = Store(options.file, options.backend)
    plan.run(framework(options.backend, options.quick), store, options.part, Extent.of(options.quick), options.mlp)
    return 0


if __name__ == "__main__":
    sys.exit(main())
