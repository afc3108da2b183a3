"""Time of gradients through diffrax solves, beside diffrax's own adjoint: a cell a solve, of one row.

Its value and gradient are compiled, and timed in rounds of all methods; the host's best setting is the fastest of the
numbers of checkpoints tried, among them one for every step, with which it recomputes nothing. ``over_default`` and
``over_best``: the median over the rounds of the host's time over ours in the same round.
"""

import dataclasses
import functools
import itertools

import diffrax
import jax
import jax.numpy as jnp

from benchmarks import jax_programs as programs
from benchmarks import timing
from benchmarks.envelope import Rows
from benchmarks.measurements import Cells, Scope

SOLVERS = {"Tsit5": diffrax.Tsit5, "Dopri5": diffrax.Dopri5, "Dopri8": diffrax.Dopri8}
TOLERANCES = (1e-3, 1e-6)
# Of a perceptron's field with two hidden layers: dim, width, batch, dtype.
SIZES = {"tiny": (2, 16, 1, "float64"), "middle": (16, 64, 32, "float64"), "large": (64, 256, 128, "float32")}


@dataclasses.dataclass(frozen=True)
class Case:
    """One solve over [0, 10]. ``pulses``: the field is ten times as fast for a moment now and then.

    ``outputs``: evenly spread; without them the end alone. ``max_steps``: the most tries.
    """

    size: str
    solver: str
    tolerance: float
    pulses: bool
    outputs: int = 0
    max_steps: int = 4096

    @property
    def name(self) -> str:
        return f"{self.size}, {self.solver}, {self.tolerance:g}{', pulses' if self.pulses else ''}"

    @property
    def text(self) -> str:
        dim, width, batch, dtype = SIZES[self.size]
        return (
            f"dim {dim}, width {width}, batch {batch}, {self.solver}, tolerance {self.tolerance:g}, {dtype}, t in [0, "
            f"10], {self.outputs or 1} output times, max_steps={self.max_steps}"
        )

    def inputs(self) -> tuple:
        (dim, width, batch, dtype), keys = SIZES[self.size], jax.random.split(jax.random.key(0), 4)
        ends = itertools.pairwise((dim, width, width, dim))
        weights = [1.5 * jax.random.normal(k, e, dtype) / e[0] ** 0.5 for k, e in zip(keys, ends, strict=False)]
        return weights, jax.random.normal(keys[-1], (batch, dim), dtype)

    def program(self, name: str, adjoint: diffrax.AbstractAdjoint) -> programs.Program:
        def field(t, y, weights):
            first, hidden, last = weights
            speed = 1 + 10 * jnp.exp(-(((t % 1.7 - 1) / 0.03) ** 2)) if self.pulses else 1
            return speed * (jnp.tanh(jnp.tanh(y @ first) @ hidden) @ last - y)

        def loss(weights, y0):
            how = {"solver": SOLVERS[self.solver](), "adjoint": adjoint, **programs.adaptive(self.tolerance)}
            if self.outputs:
                how["saveat"] = diffrax.SaveAt(ts=jnp.linspace(0.0, 10.0, self.outputs))
            solution = programs.solved(field, 10.0, y0, weights, max_steps=self.max_steps, **how)
            return jnp.mean(solution.ys**2), solution.stats

        return programs.Program.compiled(name, jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), self.inputs())


def cells(scope: Scope) -> Cells:
    """A cell a solve; quick: one tolerance and one solver, few rounds."""
    solvers, tolerances = (("Tsit5",), (1e-6,)) if scope.quick else (tuple(SOLVERS), TOLERANCES)
    rounds, settings = (7, 1) if scope.quick else (21, 3)
    cases = itertools.starmap(Case, itertools.product(SIZES, solvers, tolerances, (False, True)))
    return {case.name: functools.partial(_cell, case, rounds, settings) for case in cases}


def _cell(case: Case, rounds: int, settings: int) -> Rows:
    default, ours = (case.program(name, adjoint) for name, adjoint in programs.both().items())
    default.run()
    stats = default.result[0][1]
    accepted, tries = int(stats["num_accepted_steps"]), int(stats["num_steps"])
    hosts = [default]
    for k in (max(1, tries // 2**i) for i in range(settings)):
        hosts.append(case.program(f"checkpoints={k}", diffrax.RecursiveCheckpointAdjoint(checkpoints=k)))
    held = hosts[1]  # as many checkpoints as steps: the default's gradient can be wrong
    programs.race([*hosts, ours], rounds)
    best = min(hosts, key=lambda row: row.seconds)
    row = {
        **{"case": case.name, "accepted": accepted, "rejected": tries - accepted},
        "milliseconds": ours.seconds * 1e3,
        "over_default": timing.ratio(default.times, ours.times),
        **{"over_best": timing.ratio(best.times, ours.times), "best": best.name},
        "compiling": ours.compiling / default.compiling,
        **{"memory": ours.temporary, "memory_default": default.temporary},
        "difference": programs.difference(ours.result[1], held.result[1]),
    }
    jax.clear_caches()
    return [row]
