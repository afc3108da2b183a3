"""The page: what was measured where, the claims, then a section for each measurement."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import envelope
from benchmarks.envelope import Entry
from benchmarks.measurements import MEASUREMENTS
from benchmarks.page import compare, readme, text
from benchmarks.page.figures import FIGURES, rows
from benchmarks.page.ratios import KINDS, MARGIN
from benchmarks.ways import BASE, HOST

_WAYS = (
    "The ways to a gradient: back-propagation is through the host's own solver. ACA, or the replay, is steptape's and "
    "gives the same gradient: it takes the accepted steps once more. The adjoint is the host's own, the continuous one "
    "solved backward; with the seminorm its integrals gate no step. The quadrature, steptape's, solves backward for "
    "the cotangent alone. Through the search is the ACA paper's naive method: the choice of step sizes is "
    "differentiated as well."
)
_BYTES = {"torch": "those allocated between the passes", "jax": "XLA's temporary memory over both passes"}
_KEPT = 10


@dataclasses.dataclass(frozen=True)
class Part:
    """One figure with the words above it, and the plots below it: by pattern, a description."""

    measurement: str
    cell: str
    words: str = ""
    plots: dict[str, str] = dataclasses.field(default_factory=dict)


_ACA = {
    "papers-toy.png": "Error of the toy problem's gradient over T, by way: dz/dt = αz with L = z(T)²",
    "papers-van_der_pol.png": "Error of the van der Pol gradient over the tolerance, by way",
    "papers-three_body.png": "Loss over the epochs, three bodies",
    "papers-digits.png": "Test error by solver at test time, digits",
    "papers-latent_ode.png": "Test error over the training, latent ODE",
}
_TASKS = {"tasks.png": "Backward evaluations a gradient, by task, tolerance and adjoint"}
SECTIONS: dict[str, Sequence[Part]] = {
    "Time and memory: torch": [
        Part(
            "torch_speed",
            "times",
            f"Time of forward and backward pass over that of torchdiffeq's own back-propagation (`{HOST}`), fastest on "
            "the first set-up first; error of the gradient there, against float64 at 1e-12. Empty: fails or was not "
            "run.",
        ),
        Part("torch_speed", "set-ups"),
        Part(
            "torch_memory",
            "memory",
            "Memory: states held between the passes / peak of the process above its base in MiB, each in a process of "
            "its own, least peak on the first set-up first.",
        ),
        Part("torch_memory", "set-ups"),
    ],
    "Time and memory: JAX": [
        Part(
            "jax_speed",
            "times",
            "Times that a gradient through `diffrax.diffeqsolve` is faster with `AdaptiveCheckpointAdjoint()`, "
            "geometric mean (least to most); its compile time and XLA's temporary memory over the default's, medians. "
            "Pulses: the field is fast for a moment now and then, so that tries are rejected.",
        ),
        Part(
            "jax_memory",
            "checkpoints",
            "XLA's temporary memory in KiB / milliseconds / times faster than diffrax's adjoint with as many "
            "checkpoints:",
        ),
        Part("jax_memory", "set-ups", "Steps accepted and rejected there:"),
    ],
    "Time and memory: SDEs": [
        Part(
            "sde_speed",
            "times",
            "torchsde, fixed steps (300; a quick run: 100), batch 512, a state of 8: time over back-propagation / MiB "
            "held between the passes, on the same Brownian path. The Brownian object is not told the step; the command "
            "measures that as well. For back-propagation `log_ode` differentiates in each step with respect to a new "
            "leaf, for which autograd searches the whole graph so far: its time grows with the square of the steps and "
            "more, at any batch size.",
        )
    ],
    "Work-precision and scaling": [
        *(
            Part(
                "curves",
                f"precision, {framework}",
                f"In {framework}: time of forward and backward pass at which the gradient's error falls to 1e-05 / "
                f"1e-07, over that of {base}, interpolated between tolerances; least median first.",
                {f"curves-precision-{framework}.png": "Error of the gradient over time and memory, a panel a problem"},
            )
            for framework, base in BASE.items()
        ),
        *(
            Part(
                "curves",
                f"scaling, {framework}",
                f"In {framework}: exponents of time / bytes held over the last 3 sizes at most, up to the size in "
                f"brackets, the largest that time and memory allowed. Bytes are {_BYTES[framework]}.",
                {f"curves-scaling-{framework}.png": "Time and memory over numbers of steps, states and parameters"},
            )
            for framework in BASE
        ),
        Part(
            "jax_scaling",
            "batch",
            "A batch of 256 diffrax solves whose step counts differ tenfold, under `vmap`: milliseconds, both passes.",
        ),
        Part("jax_scaling", "growth", "", {"jax_scaling.png": "Time of a batch over the steps of its longest solve"}),
        Part(
            "jax_max_steps",
            "limits",
            "The same steps under a growing `max_steps`, with 16 checkpoints each, alone and for 64 members: "
            "milliseconds of both passes / MiB.",
            {"jax_max_steps.png": "Time and memory over max_steps, alone and in a batch"},
        ),
    ],
    "The ACA paper's experiments": [
        Part("papers", "training", "Training, fastest first:", _ACA),
        Part("papers", "without a figure", "Where we have no figure of the paper's to compare with:"),
    ],
    "Seminorm and quadrature": [
        Part(
            "tasks",
            f"changes, {framework}",
            f"In {framework}, changes in backward evaluations / time / gradient error, medians over the tolerances:",
            _TASKS if framework == "jax" else {},
        )
        for framework in BASE
    ],
    "Hu's theorem": [
        Part(
            "papers",
            "theorem",
            "An adjoint is back-propagation if and only if it has the scheme of the solve. Relative difference of the "
            "gradient from torchdiffeq's back-propagation, largest over all step sizes for the discrete adjoint of the "
            "same scheme, at the smallest step for continuous adjoints:",
            {"papers-schemes.png": "Difference from back-propagation over the step size, a panel a scheme"},
        )
    ],
    "The cost model": [
        Part(
            "papers",
            "cost model",
            "Counted over what the ACA paper's formulas say, a figure for each field and solver; 1 is agreement.",
            {"papers-cost_model.png": "Counted over predicted cost, by way"},
        )
    ],
    "What the peers can and cannot do": [
        Part(
            "papers",
            "limits",
            "Each way to a gradient, tried on a tiny case with a closed form. Wrong: a number came back that is not "
            "the gradient, or none where there is one. No: there is no argument to ask for it.",
        ),
        Part("papers", "claims on limits"),
        Part("papers", "limits, jax", "diffrax's adjoints, tried likewise:"),
    ],
}


def write(figures: Sequence[Entry], folder: Path) -> Path:
    """Write the page into a folder, with the plots that are there, and return it."""
    parts = [*_head(figures), "## Claims", *_claims(figures)]
    for title, each in SECTIONS.items():
        parts += [f"## {title}", *_section(figures, each, folder)]
    parts += ["## Repeatability", _repeatability(figures)]
    file = folder / "results.md"
    file.write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")
    return file


def _missing(measurement: str) -> str:
    return f"Not measured yet: {text.command(measurement)} makes it."


def _head(figures: Sequence[Entry]) -> Iterator[str]:
    yield "# Results"
    again = [name for name in FIGURES if any(f["measurement"] == name and f["pass"] == 2 for f in figures)]
    passes = (
        f" There were two passes of {', '.join(f'`{name}`' for name in again)}: a way's time is that of the pass in "
        "which it took less, for what else the machine does only adds to it."
    )
    yield (
        "Every measured figure here is reduced from the results that the commands below leave; none is typed. Those "
        "in the repository are kept in `docs/figures.jsonl`, where `python -m benchmarks page DIR` takes them to. "
        f"Times are processor time on one thread, medians of interleaved rounds.{passes if again else ''}"
    )
    yield _WAYS
    lines = [_origin(name, [f for f in figures if f["measurement"] == name]) for name in FIGURES]
    if any(lines):
        yield text.table([line for line in lines if line])


def _origin(measurement: str, figures: Sequence[Entry]) -> dict[str, str]:
    if not figures:
        return {}
    origin = envelope.origin(figures)
    versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    return {"command": text.command(measurement), "day": origin["day"]} | {
        "machine": origin["machine"] or "not noted",
        "versions": versions or "not noted",
    }


def _claims(figures: Sequence[Entry]) -> Iterator[str]:
    yield "### Where a peer is better"
    found = _linked(figures, "better", FIGURES)
    found.sort(key=lambda row: (KINDS.index(row["less of"]), row["least"]))
    if found:
        yield (
            "What a peer takes, or errs, over what the replay does on the same problem (`aca`, "
            "`AdaptiveCheckpointAdjoint()`, as they come), wherever that is less by more than "
            f"{text.per_cent(MARGIN)}. Errors are of the gradient, against the ODE's own; the replay's is that of the "
            "discrete solution, which is what it is for."
        )
        yield text.table([{name: value for name, value in row.items() if name != "least"} for row in found])
    else:
        yield "Nowhere in the results at hand."
    yield "### What the README says"
    yield text.table(_linked(figures, "promises", FIGURES))
    for name in readme.TABLES:
        yield readme.table(figures, name)
    yield "### What the papers say"
    yield text.table(_linked(figures, "papers", ("papers", "tasks", "jax_memory")))


def _linked(figures: Sequence[Entry], cell: str, measurements: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of a figure that several measurements have, each with a link to its code."""
    found = [(MEASUREMENTS[name].script, row) for name in measurements for row in rows(figures, name, cell)]
    shown = [(row.get("script", script), row) for script, row in found]
    return [
        {name: value for name, value in row.items() if name != "script"} | {"measured by": text.link(script)}
        for script, row in shown
    ]


def _section(figures: Sequence[Entry], parts: Sequence[Part], folder: Path) -> Iterator[str]:
    for part in parts:
        found = rows(figures, part.measurement, part.cell)
        if found:
            yield part.words
            yield text.table(found)
            for image, what in part.plots.items():
                if (folder / image).exists():
                    yield f"![{what}]({image})"
    measurements = dict.fromkeys(part.measurement for part in parts)
    for name in measurements:
        if not any(rows(figures, part.measurement, part.cell) for part in parts if part.measurement == name):
            yield _missing(name)
    scripts = dict.fromkeys(MEASUREMENTS[name].script for name in measurements)
    yield f"The code: {', '.join(map(text.link, scripts))}."


def _repeatability(figures: Sequence[Entry]) -> str:
    runs, groups, beyond = (rows(figures, compare.NAME, cell) for cell in ("runs", "groups", "beyond"))
    return compare.report(runs, groups, beyond, most=_KEPT) if runs else _missing(compare.NAME)
