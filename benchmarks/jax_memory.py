"""Time of gradients through a diffrax solve at equal memory: ``python -m benchmarks.jax_memory``.

Memory is XLA's own account of what a compiled gradient allocates besides its inputs and outputs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import benchmarks.jax_measure as measure  # first: it tells XLA to use one thread

# isort: split
import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from benchmarks.jax_measure import Program, Row
from benchmarks.markdown import table
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


def methods() -> Iterator[Method]:
    """The host's and ours for every number of checkpoints, and by default."""
    for k in (*CHECKPOINTS, None):
        arguments = "" if k is None else f"checkpoints={k}"
        staged = ", ".join(filter(None, (arguments, 'graph="stage"')))
        yield Method(f"{HOST}({arguments})", diffrax.RecursiveCheckpointAdjoint(checkpoints=k), k)
        yield Method(f"{OURS}({arguments})", AdaptiveCheckpointAdjoint(checkpoints=k), k)
        yield Method(f"{OURS}({staged})", AdaptiveCheckpointAdjoint(checkpoints=k, graph="stage"), k)


def measured(setup: Setup, rounds: int) -> list[tuple[Method, Row]]:
    """Compile every method, and time them in rounds of all of them."""
    rows = [(method, _program(setup, method).compiled()) for method in methods()]
    measure.race([row for _, row in rows], rounds, setup.name)
    return rows


def _inputs() -> tuple[Any, Any]:
    keys = jax.random.split(jax.random.key(0))
    field = eqx.nn.MLP(_DIM, _DIM, _WIDTH, 2, jax.nn.tanh, key=keys[0], dtype=jnp.float64)
    return eqx.filter(field, eqx.is_array), jax.random.normal(keys[1], (_BATCH, _DIM))


def _program(setup: Setup, method: Method) -> Program:
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

    return Program(method.name, jax.grad(loss, argnums=(0, 1), has_aux=True), _inputs())


def report(setup: Setup, rows: Sequence[tuple[Method, Row]]) -> Iterator[str]:
    """Both tables as Markdown."""
    host = {method.checkpoints: row for method, row in rows if not method.ours}
    ours = [row for method, row in rows if method.ours]
    accepted, rejected = _steps(rows)
    yield from ("", f"## {setup.name}", "")
    yield f"{setup.text}; {accepted} accepted steps, {rejected} rejected."
    yield ""
    head = ("adjoint", "temporary KiB", "ms", "times faster than the host's same k", "compile s", "difference")
    yield from table(head, (_cells(row, host[method.checkpoints]) for method, row in rows))
    yield from ("", "The fastest of ours in no more memory than the host takes:", "")
    within = ("host", "KiB", "ms", "ours", "KiB", "ms", "times faster")
    yield from table(within, (_within(row, ours) for row in host.values()))


def _steps(rows: Sequence[tuple[Method, Row]]) -> tuple[int, int]:
    stats = rows[0][1].result[1]
    return int(stats["num_accepted_steps"]), int(stats["num_rejected_steps"])


def entry(setup: Setup, rows: Sequence[tuple[Method, Row]]) -> dict[str, Any]:
    """The same as data. ``over_host``: the host's time over the row's, at the same number of checkpoints."""
    host = {method.checkpoints: row for method, row in rows if not method.ours}
    methods = [
        {
            "method": method.name,
            "checkpoints": method.checkpoints,
            "ours": method.ours,
            "seconds": row.seconds,
            "over_host": measure.ratio(host[method.checkpoints], row),
            "temporary": row.temporary,
            "compiling": row.compiling,
            "difference": measure.difference(row.result[0], host[method.checkpoints].result[0]),
        }
        for method, row in rows
    ]
    accepted, rejected = _steps(rows)
    return {"setup": setup.name, "text": setup.text, "accepted": accepted, "rejected": rejected, "methods": methods}


def _cells(row: Row, host: Row) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.temporary / 1024:.0f}",
        f"{row.seconds * 1e3:.0f}",
        f"{measure.ratio(host, row):.2f}",
        f"{row.compiling:.1f}",
        f"{measure.difference(row.result[0], host.result[0]):.0e}",
    )


def _within(host: Row, ours: Sequence[Row]) -> tuple[str, ...]:
    start = (host.name, f"{host.temporary / 1024:.0f}", f"{host.seconds * 1e3:.0f}")
    fitting = [row for row in ours if row.temporary <= host.temporary]
    if not fitting:
        return (*start, "none", "", "", "")
    best = min(fitting, key=lambda row: row.seconds)
    return (
        *start,
        best.name,
        f"{best.temporary / 1024:.0f}",
        f"{best.seconds * 1e3:.0f}",
        f"{measure.ratio(host, best):.2f}",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables and write their figures to a folder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jax_memory", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one set-up in 3 rounds")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", choices=[setup.name for setup in SETUPS])
    parser.add_argument("--out", type=Path, default=Path("benchmark-report"), metavar="DIR", help="folder of results")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.only = 3, SETUPS[0].name
    jax.config.update("jax_enable_x64", True)
    print("# Gradients through diffrax at equal memory", "", sep="\n")
    print(measure.machine())
    print(f"A perceptron {_DIM}-{_WIDTH}-{_WIDTH}-{_DIM}, batch {_BATCH}, float64, Tsit5; processor time, one thread.")
    command = " ".join(["python -m benchmarks.jax_memory", *(sys.argv[1:] if arguments is None else arguments)])
    found: dict[str, Any] = {"command": command, "machine": measure.machine(), "setups": []}
    options.out.mkdir(parents=True, exist_ok=True)
    for setup in SETUPS:
        if options.only in (None, setup.name):
            rows = measured(setup, options.rounds)
            print(*report(setup, rows), sep="\n", flush=True)
            found["setups"].append(entry(setup, rows))
            (options.out / "jax_memory.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
