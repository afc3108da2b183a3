"""What the JAX benchmarks share: compiled programs, timed in interleaved rounds on one thread."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

# One thread, whose processor time is what a computation costs. XLA reads this once, when it starts.
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Program:
    """A function and its inputs, to compile and to run."""

    name: str
    function: Callable
    inputs: tuple

    def compiled(self) -> Row:
        """Compile it, and note the time that takes."""
        start = time.process_time()
        compiled = jax.jit(self.function).lower(*self.inputs).compile()
        seconds = time.process_time() - start
        analysis: Any = compiled.memory_analysis()
        return Row(self.name, compiled, self.inputs, seconds, analysis.temp_size_in_bytes)


@dataclasses.dataclass
class Row:
    """A compiled program. ``compiling``: processor seconds. ``temporary``: bytes allocated besides inputs and outputs.

    ``times``: processor seconds of its rounds. ``result``: what it returned last.
    """

    name: str
    program: Callable
    inputs: tuple
    compiling: float
    temporary: int
    times: list[float] = dataclasses.field(default_factory=list)
    result: Any = None

    @property
    def seconds(self) -> float:
        """The median round."""
        return statistics.median(self.times)

    def run(self) -> Any:
        """Its result, computed."""
        self.result = jax.block_until_ready(self.program(*self.inputs))
        return self.result


def race(rows: Sequence[Row], rounds: int, name: str) -> None:
    """Time the programs in rounds of all of them, after one that warms up."""
    print(f"{name}: {rounds} rounds", file=sys.stderr, flush=True)
    for n in range(rounds + 1):
        for row in rows:
            start = time.process_time()
            row.run()
            if n > 0:
                row.times.append(time.process_time() - start)


def ratio(slow: Row, fast: Row) -> float:
    """The median over the rounds of one program's time over another's in the same round."""
    return statistics.median(a / b for a, b in zip(slow.times, fast.times, strict=True))


def difference(got: Any, want: Any) -> float:
    """The largest difference of two gradients, relative to the largest entry."""
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))
    return float(max(jnp.max(jnp.abs(a - b)) for a, b in pairs) / max(jnp.max(jnp.abs(b)) for _, b in pairs))


def machine() -> str:
    """The platform and the versions that count."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "equinox", "diffrax")]
    return ", ".join([platform.platform(), f"Python {platform.python_version()}", *versions])
