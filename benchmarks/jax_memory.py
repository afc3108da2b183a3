"""Time of gradients through a diffrax solve at equal memory: ``python -m benchmarks.jax_memory``.

Memory is XLA's own account of what a compiled gradient allocates besides its inputs and outputs.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

# One thread, whose processor time is what a computation costs. XLA reads this once, when it starts.
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from steptape.jax import AdaptiveCheckpointAdjoint

HOST, OURS = "RecursiveCheckpointAdjoint", "AdaptiveCheckpointAdjoint"
CHECKPOINTS = (8, 16, 44)
_BATCH, _DIM, _WIDTH = 32, 16, 64


@dataclasses.dataclass(frozen=True)
class Setup:
    """One solve: a perceptron's flow, float64, Tsit5, about 1000 accepted steps."""

    name: str
    text: str
    t1: float
    forcing: float
    how: dict[str, Any]


SETUPS = (
    Setup("constant", "1000 steps of equal size, max_steps=1000", 1.0, 0.0, {"max_steps": 1000}),
    Setup(
        "adaptive",
        "PIDController at 1e-9, a fast forcing, max_steps=4096",
        3.0,
        200.0,
        {"stepsize_controller": diffrax.PIDController(rtol=1e-9, atol=1e-9), "max_steps": 4096},
    ),
)


@dataclasses.dataclass(frozen=True)
class Method:
    """One adjoint. ``checkpoints``: the host's row to compare it with; None: the host's default."""

    name: str
    adjoint: diffrax.AbstractAdjoint
    checkpoints: int | None

    @property
    def ours(self) -> bool:
        """Whether it is steptape's."""
        return self.name.startswith(OURS)


@dataclasses.dataclass
class Row:
    """What one method took: seconds to compile, bytes, seconds of each round, and its gradient."""

    method: Method
    compiled: Callable
    compiling: float
    temporary: int
    gradient: Any = None
    stats: Any = None
    times: list[float] = dataclasses.field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The median round."""
        return statistics.median(self.times)


def methods() -> Iterator[Method]:
    """The host's and ours for every number of checkpoints, and by default."""
    for k in (*CHECKPOINTS, None):
        arguments = "" if k is None else f"checkpoints={k}"
        staged = ", ".join(filter(None, (arguments, 'graph="stage"')))
        yield Method(f"{HOST}({arguments})", diffrax.RecursiveCheckpointAdjoint(checkpoints=k), k)
        yield Method(f"{OURS}({arguments})", AdaptiveCheckpointAdjoint(checkpoints=k), k)
        yield Method(f"{OURS}({staged})", AdaptiveCheckpointAdjoint(checkpoints=k, graph="stage"), k)


def measure(setup: Setup, rounds: int) -> list[Row]:
    """Compile every method, and time them in rounds of all of them."""
    inputs = _inputs()
    rows = [_compiled(setup, method, inputs) for method in methods()]
    for n in range(rounds + 1):
        _note(f"{setup.name}: round {n} of {rounds}")
        for row in rows:
            start = time.process_time()
            gradient, stats = jax.block_until_ready(row.compiled(*inputs))
            if n > 0:
                row.times.append(time.process_time() - start)
            row.gradient, row.stats = gradient, stats
    return rows


def _inputs() -> tuple[Any, Any]:
    keys = jax.random.split(jax.random.key(0))
    field = eqx.nn.MLP(_DIM, _DIM, _WIDTH, 2, jax.nn.tanh, key=keys[0], dtype=jnp.float64)
    return eqx.filter(field, eqx.is_array), jax.random.normal(keys[1], (_BATCH, _DIM))


def _compiled(setup: Setup, method: Method, inputs: tuple[Any, Any]) -> Row:
    _note(f"{setup.name}: compiling {method.name}")
    static = eqx.nn.MLP(_DIM, _DIM, _WIDTH, 2, jax.nn.tanh, key=jax.random.key(0))
    static = eqx.filter(static, eqx.is_array, inverse=True)

    def slope(t, y, weights):
        return jax.vmap(eqx.combine(weights, static))(y) * (1 + jnp.sin(setup.forcing * t))

    def loss(weights, y0):
        term = diffrax.ODETerm(slope)
        solution = diffrax.diffeqsolve(
            term, diffrax.Tsit5(), 0.0, setup.t1, 1e-3, y0, weights, adjoint=method.adjoint, **setup.how
        )
        return jnp.sum(solution.ys**2), solution.stats

    start = time.perf_counter()
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True)).lower(*inputs).compile()
    compiling = time.perf_counter() - start
    return Row(method, compiled, compiling, compiled.memory_analysis().temp_size_in_bytes)


def report(setup: Setup, rows: Sequence[Row]) -> Iterator[str]:
    """Both tables as Markdown."""
    host = {row.method.checkpoints: row for row in rows if not row.method.ours}
    stats = {name: int(rows[0].stats[name]) for name in ("num_accepted_steps", "num_rejected_steps")}
    yield from ("", f"## {setup.name}", "")
    yield f"{setup.text}; {stats['num_accepted_steps']} accepted steps, {stats['num_rejected_steps']} rejected."
    yield ""
    head = ("adjoint", "temporary KiB", "ms", "times faster than the host's same k", "compile s", "difference")
    yield from _table(head, (_cells(row, host[row.method.checkpoints]) for row in rows))
    yield from ("", "The fastest of ours in no more memory than the host takes:", "")
    head = ("host", "KiB", "ms", "ours", "KiB", "ms", "times faster")
    yield from _table(head, (_within(row, rows) for row in host.values()))


def _cells(row: Row, host: Row) -> tuple[str, ...]:
    return (
        row.method.name,
        f"{row.temporary / 1024:.0f}",
        f"{row.seconds * 1e3:.0f}",
        f"{_ratio(host, row):.2f}",
        f"{row.compiling:.1f}",
        f"{_difference(row.gradient, host.gradient):.0e}",
    )


def _within(host: Row, rows: Sequence[Row]) -> tuple[str, ...]:
    start = (host.method.name, f"{host.temporary / 1024:.0f}", f"{host.seconds * 1e3:.0f}")
    fitting = [row for row in rows if row.method.ours and row.temporary <= host.temporary]
    if not fitting:
        return (*start, "none", "", "", "")
    best = min(fitting, key=lambda row: row.seconds)
    return (
        *start,
        best.method.name,
        f"{best.temporary / 1024:.0f}",
        f"{best.seconds * 1e3:.0f}",
        f"{_ratio(host, best):.2f}",
    )


def _ratio(host: Row, row: Row) -> float:
    """The median over the rounds of the host's time over this one's in the same round."""
    return statistics.median(a / b for a, b in zip(host.times, row.times, strict=True))


def _difference(got: Any, want: Any) -> float:
    """The largest difference of two gradients, relative to the largest entry."""
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))
    return float(max(jnp.max(jnp.abs(a - b)) for a, b in pairs) / max(jnp.max(jnp.abs(b)) for _, b in pairs))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    for cells in (head, ["---"] * len(head), *rows):
        yield "| " + " | ".join(cells) + " |"


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jax_memory", description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", choices=[setup.name for setup in SETUPS])
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("jax", "equinox", "diffrax")]
    print("# Gradients through diffrax at equal memory", "", sep="\n")
    print(", ".join([platform.platform(), f"Python {platform.python_version()}", *versions]))
    print(f"A perceptron {_DIM}-{_WIDTH}-{_WIDTH}-{_DIM}, batch {_BATCH}, float64, Tsit5; processor time, one thread.")
    for setup in SETUPS:
        if options.only in (None, setup.name):
            print(*report(setup, measure(setup, options.rounds)), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
