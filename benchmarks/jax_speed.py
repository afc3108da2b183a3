"""Time of gradients through diffrax solves, beside diffrax's own adjoint: ``python -m benchmarks.jax_speed``.

Each case is one solve, its value and gradient compiled, in rounds of all methods; the host's best setting is the
fastest of the numbers of checkpoints tried, among them one for every step, with which it recomputes nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import benchmarks.jax_measure as measure  # first: it tells XLA to use one thread

# isort: split
import diffrax
import jax
import jax.numpy as jnp

from benchmarks.jax_measure import Program
from benchmarks.markdown import table
from steptape.jax import AdaptiveCheckpointAdjoint

SOLVERS = {"Tsit5": diffrax.Tsit5, "Dopri5": diffrax.Dopri5, "Dopri8": diffrax.Dopri8}
TOLERANCES = (1e-3, 1e-6)
DEFAULT, OURS = "default", "ours"


@dataclasses.dataclass(frozen=True)
class Size:
    """A perceptron's field with two hidden layers: dim, width, batch, dtype."""

    name: str
    dim: int
    width: int
    batch: int
    dtype: str


SIZES = (
    Size("tiny", 2, 16, 1, "float64"),
    Size("middle", 16, 64, 32, "float64"),
    Size("large", 64, 256, 128, "float32"),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """One solve over [0, 10]. ``pulses``: the field is ten times as fast for a moment now and then."""

    size: Size
    solver: str
    tolerance: float
    pulses: bool

    @property
    def name(self) -> str:
        """Short, for a table."""
        return f"{self.size.name}, {self.solver}, {self.tolerance:g}{', pulses' if self.pulses else ''}"

    def inputs(self) -> tuple:
        """The weights and the initial state."""
        size, keys = self.size, jax.random.split(jax.random.key(0), 4)
        ends = itertools.pairwise((size.dim, size.width, size.width, size.dim))
        weights = [1.5 * jax.random.normal(k, e, size.dtype) / e[0] ** 0.5 for k, e in zip(keys, ends, strict=False)]
        return weights, jax.random.normal(keys[-1], (size.batch, size.dim), size.dtype)

    def program(self, name: str, adjoint: diffrax.AbstractAdjoint) -> Program:
        """The value and gradient of the solve."""

        def field(t, y, weights):
            first, hidden, last = weights
            speed = 1 + 10 * jnp.exp(-(((t % 1.7 - 1) / 0.03) ** 2)) if self.pulses else 1
            return speed * (jnp.tanh(jnp.tanh(y @ first) @ hidden) @ last - y)

        def loss(weights, y0):
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(field),
                SOLVERS[self.solver](),
                0.0,
                10.0,
                0.01,
                y0,
                weights,
                stepsize_controller=diffrax.PIDController(rtol=self.tolerance, atol=self.tolerance),
                adjoint=adjoint,
            )
            return jnp.mean(solution.ys**2), solution.stats

        return Program(name, jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), self.inputs())


@dataclasses.dataclass(frozen=True)
class Result:
    """One case measured. Ratios: the median over the rounds of the host's time over ours in the same round."""

    case: str
    accepted: int
    rejected: int
    milliseconds: float
    over_default: float
    over_best: float
    best: str
    compiling: float
    memory: int
    memory_default: int
    difference: float

    @property
    def rejects(self) -> bool:
        """Whether about a third of the tries is rejected."""
        return self.rejected >= 0.25 * (self.accepted + self.rejected)


def measured(case: Case, rounds: int, settings: int) -> Result:
    """Compile every method, and time them in rounds of all of them."""
    default = case.program(DEFAULT, diffrax.RecursiveCheckpointAdjoint()).compiled()
    stats = default.run()[0][1]
    accepted, tries = int(stats["num_accepted_steps"]), int(stats["num_steps"])
    tuned = [max(1, tries // 2**i) for i in range(settings)]
    hosts = [default]
    for k in tuned:
        hosts.append(case.program(f"checkpoints={k}", diffrax.RecursiveCheckpointAdjoint(checkpoints=k)).compiled())
    held = hosts[1]  # as many checkpoints as steps: the default's gradient can be wrong
    ours = case.program(OURS, AdaptiveCheckpointAdjoint()).compiled()
    measure.race([*hosts, ours], rounds, case.name)
    best = min(hosts, key=lambda row: row.seconds)
    return Result(
        case.name,
        accepted,
        tries - accepted,
        ours.seconds * 1e3,
        measure.ratio(default, ours),
        measure.ratio(best, ours),
        best.name,
        ours.compiling / default.compiling,
        ours.temporary,
        default.temporary,
        measure.difference(ours.result[1], held.result[1]),
    )


def report(results: Sequence[Result]) -> Iterator[str]:
    """The table, the geometric means and the aims, as Markdown."""
    head = ("case", "accepted + rejected", "ms", "times faster than default", "than best", "best", "compile", "KiB")
    yield from table((*head, "default's KiB", "difference"), map(_cells, results))
    yield ""
    yield from table(("aim", "measured", "bound", ""), _aims(results))


def _cells(row: Result) -> tuple[str, ...]:
    return (
        row.case,
        f"{row.accepted} + {row.rejected}",
        f"{row.milliseconds:.2f}",
        f"{row.over_default:.2f}",
        f"{row.over_best:.2f}",
        row.best,
        f"{row.compiling:.2f}",
        f"{row.memory / 1024:.0f}",
        f"{row.memory_default / 1024:.0f}",
        f"{row.difference:.0e}",
    )


def _aims(results: Sequence[Result]) -> Iterator[tuple[str, ...]]:
    def aim(what, value, bound, at_least=True):
        met = value >= bound if at_least else value <= bound
        return what, f"{value:.2f}", f"{'>=' if at_least else '<='} {bound:g}", "met" if met else "not met"

    yield aim("times faster than the default, geometric mean", _mean(row.over_default for row in results), 1.7)
    yield aim("than the best setting, geometric mean", _mean(row.over_best for row in results), 1.4)
    yield aim("than the best setting, least", min(row.over_best for row in results), 1 / 1.05)
    rejecting = [row.over_default for row in results if row.rejects]
    if rejecting:
        yield aim("than the default where a third is rejected, geometric mean", _mean(rejecting), 2)
    yield aim("compile time over the default's, most", max(row.compiling for row in results), 1.5, at_least=False)


def _mean(ratios: Iterable[float]) -> float:
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(sum(logs) / len(logs))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables and write them to a folder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jax_speed", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one tolerance and one solver, few rounds")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name has this in it, such as Dopri8")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--out", type=Path, default=Path("benchmark-report"), metavar="DIR", help="folder of results")
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    solvers, tolerances = (("Tsit5",), (1e-6,)) if options.quick else (tuple(SOLVERS), TOLERANCES)
    rounds, settings = (7, 1) if options.quick else (options.rounds, 3)
    options.out.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python -m benchmarks.jax_speed", *(sys.argv[1:] if arguments is None else arguments)])
    results: list[Result] = []
    cases = itertools.starmap(Case, itertools.product(SIZES, solvers, tolerances, (False, True)))
    for case in filter(lambda case: options.only in case.name, cases):
        results.append(measured(case, rounds, settings))
        jax.clear_caches()
        # Each time, so that an interrupted run leaves what it has found.
        text = "\n".join(["# Gradients through diffrax", "", measure.machine(), "", *report(results)]) + "\n"
        (options.out / "jax_speed.md").write_text(text, encoding="utf-8")
        found = {"command": command, "machine": measure.machine(), "rows": [dataclasses.asdict(row) for row in results]}
        (options.out / "jax_speed.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
