"""How the time of a batch of diffrax gradients grows with its longest solve: ``python -m benchmarks.jax_scaling``.

256 oscillators whose step counts differ tenfold, under ``vmap``: the gradient is compiled once, and the time at which
the solves end varies. Fits time = c · steps^p and draws both.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import benchmarks.jax_measure as measure  # first: it tells XLA to use one thread

# isort: split
import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.markdown import table
from steptape.jax import AdaptiveCheckpointAdjoint

ELEMENTS = 256
ENDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
ADJOINTS = {
    "RecursiveCheckpointAdjoint()": diffrax.RecursiveCheckpointAdjoint(),
    "AdaptiveCheckpointAdjoint()": AdaptiveCheckpointAdjoint(),
}


def program(name: str) -> measure.Program:
    """The gradient of the batch in its initial states and frequencies, as a function of the end as well."""

    def field(t, y, frequency):
        return frequency * jnp.stack([y[1] * (1 + 0.2 * y[0] ** 2), -y[0]])

    def loss(y0, frequency, end):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            0.0,
            end,
            0.01,
            y0,
            frequency,
            stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-6),
            adjoint=ADJOINTS[name],
        )
        return jnp.sum(solution.ys**2), solution.stats["num_accepted_steps"]

    batch = jax.vmap(jax.grad(loss, argnums=(0, 1), has_aux=True), in_axes=(0, 0, None))
    inputs = (jnp.tile(jnp.array([1.0, 0.0]), (ELEMENTS, 1)), jnp.geomspace(0.8, 8.0, ELEMENTS), jnp.array(1.0))
    return measure.Program(name, batch, inputs)


def measured(rounds: int) -> dict[str, Any]:
    """Seconds by adjoint and end, the step counts of the shortest and the longest element, and fitted exponents."""
    rows = [program(name).compiled() for name in ADJOINTS]
    counts: list[tuple[int, int]] = []
    seconds: dict[str, list[float]] = {name: [] for name in ADJOINTS}
    for end in ENDS:
        for row in rows:
            row.inputs, row.times = (*row.inputs[:2], jnp.array(end)), []
        measure.race(rows, rounds, f"end {end:g}")
        steps = rows[0].result[1]
        counts.append((int(steps.min()), int(steps.max())))
        for row in rows:
            seconds[row.name].append(row.seconds)
    longest = np.log([most for _, most in counts])
    exponents = {name: float(np.polyfit(longest, np.log(times), 1)[0]) for name, times in seconds.items()}
    return {"machine": measure.machine(), "counts": counts, "seconds": seconds, "exponents": exponents}


def report(found: dict[str, Any]) -> str:
    """The table and the aim, as Markdown."""
    head = ("steps of the shortest", "of the longest", *(f"{name}, ms" for name in ADJOINTS))
    rows = [
        (str(least), str(most), *(f"{times[i] * 1e3:.1f}" for times in found["seconds"].values()))
        for i, (least, most) in enumerate(found["counts"])
    ]
    lines = ["# Time of a batch against its longest solve", "", found["machine"], "", *table(head, rows), ""]
    lines += [f"{name}: time grows as steps^{p:.2f}" for name, p in found["exponents"].items()]
    ours = found["exponents"]["AdaptiveCheckpointAdjoint()"]
    return "\n".join([*lines, "", f"Aim: exponent of ours <= 1.1: {'met' if ours <= 1.1 else 'not met'}."]) + "\n"


def plot(found: dict[str, Any], file: Path) -> None:
    """Time against the longest element's steps, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    longest = [most for _, most in found["counts"]]
    for name, times in found["seconds"].items():
        axes.loglog(longest, times, "o-", label=f"{name}, exponent {found['exponents'][name]:.2f}")
    axes.set(xlabel="accepted steps of the longest of 256 solves", ylabel="seconds, forward and backward")
    axes.legend()
    figure.savefig(file, dpi=150)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and write it and the plot to a folder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jax_scaling", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--out", type=Path, default=Path("benchmark-report"), metavar="DIR", help="folder of results")
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    command = " ".join(["python -m benchmarks.jax_scaling", *(sys.argv[1:] if arguments is None else arguments)])
    found = {"command": command, **measured(1 if options.quick else options.rounds)}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "jax_scaling.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (options.out / "jax_scaling.md").write_text(report(found), encoding="utf-8")
    plot(found, options.out / "jax_scaling.png")
    print(report(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
