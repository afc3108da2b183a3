"""The page: what was measured where, the claims, then a section for each measurement."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.results import claims, compare, curves, experiments, plots, speed, text
from benchmarks.results.read import SOURCES, Results

_WAYS = (
    "The ways to a gradient: back-propagation is through the host's own solver. ACA, or the replay, is steptape's and "
    "gives the same gradient: it takes the accepted steps once more. The adjoint is the host's own, the continuous one "
    "solved backward; with the seminorm its integrals gate no step. The quadrature, steptape's, solves backward for "
    "the cotangent alone. Through the search is the ACA paper's naive method: the choice of step sizes is "
    "differentiated as well."
)
REPEATABILITY = "repeatability.json"
_KEPT = 10

# By heading: its parts, each of a source, what writes it, and the plots below it, by pattern and description.
Part = tuple[str, Callable[[Results], Iterator[str]], dict[str, str]]
_TOY = {"papers-toy.png": "Error of the toy problem's gradient over T, by way"}
_VAN_DER_POL = {"papers-van_der_pol.png": "Error of the van der Pol gradient over the tolerance, by way"}
_SCHEMES = {"papers-schemes.png": "Difference from back-propagation over the step size, a panel a scheme"}
_COSTS = {"papers-cost_model.png": "Counted over predicted cost, by way"}
_TASKS = {"tasks.png": "Backward evaluations a gradient, by task, tolerance and adjoint"}
_PRECISION = {"curves-precision-*.png": "Error of the gradient over time, and over memory, a panel a problem"}
_GROWTH = {"curves-scaling-*.png": "Time and memory over the number of steps, of states and of parameters"}
_SCALING = {"jax_scaling.png": "Time of a batch over the steps of its longest solve"}
SECTIONS: dict[str, Sequence[Part]] = {
    "Time and memory: torch": [("torch_speed", speed.torch, {})],
    "Time and memory: JAX": [("jax_speed", speed.jax, {}), ("jax_memory", speed.jax_memory, {})],
    "Time and memory: SDEs": [("sde_speed", speed.sde, {})],
    "Work-precision and scaling": [
        ("curves", curves.precision, _PRECISION),
        ("curves", curves.scaling, _GROWTH),
        ("jax_scaling", speed.jax_scaling, _SCALING),
    ],
    "The ACA paper's experiments": [
        ("papers", experiments.toy, _TOY),
        ("papers", experiments.van_der_pol, _VAN_DER_POL),
        ("papers", experiments.training, {}),
    ],
    "Seminorm and quadrature": [("tasks", experiments.tasks, _TASKS)],
    "Hu's theorem": [("papers", experiments.theorem, _SCHEMES)],
    "The cost model": [("papers", experiments.cost_model, _COSTS)],
    "What the peers can and cannot do": [("papers", experiments.limits, {}), ("papers", experiments.jax_limits, {})],
}


def write(results: Results, docs: Path) -> Path:
    """Write the page and the plots that it shows, and return it."""
    lines = [*_head(results), "## Claims", "", *claims.section(results)]
    for title, parts in SECTIONS.items():
        lines += [f"## {title}", "", *_section(results, parts, docs)]
    lines += ["## Repeatability", "", *_repeatability(docs / REPEATABILITY)]
    file = docs / "results.md"
    file.write_text(_tidy(lines), encoding="utf-8")
    return file


def _head(results: Results) -> Iterator[str]:
    yield from ("# Results", "")
    yield (
        "Every measured figure here is read from the files that the commands below leave, by "
        "`python -m benchmarks.results`; none is typed. Times are processor time on one thread, medians of interleaved "
        "rounds."
    )
    if again := results.again():
        yield (
            f"There were two passes of {', '.join(f'`{name}`' for name in again)}: a way's time is that of the pass in "
            "which it took less, for what else the machine does only adds to it."
        )
    yield from ("", _WAYS)
    cells = (
        (f"`{command}`", ", ".join(days), *(part or "not noted" for part in noted))
        for command, days, *noted in results.environments()
    )
    yield from text.table(("command", "day", "machine", "versions"), cells)
    for name in SOURCES:
        if not results.has(name):
            yield f"- {text.missing(name)}"
    yield ""


def _section(results: Results, parts: Sequence[Part], docs: Path) -> Iterator[str]:
    for name, part, images in parts:
        if results.has(name):
            yield from (*part(results), "")
            for pattern, what in images.items():
                for image in sorted(results.folder.glob(pattern)):
                    yield from plots.shown(image, docs, what)
    sources = list(dict.fromkeys(name for name, _, _ in parts))
    for name in sources:
        if not results.has(name):
            yield from (text.missing(name), "")
    yield from (f"The code: {', '.join(text.link(SOURCES[name].script) for name in sources)}.", "")


def _repeatability(file: Path) -> Iterator[str]:
    if not file.exists():
        yield (
            "Not measured yet: run the commands twice, into two folders, then "
            "`python -m benchmarks.results --compare FIRST SECOND --save`."
        )
        return
    yield from compare.report(json.loads(file.read_text(encoding="utf-8")), most=_KEPT)


def _tidy(lines: Sequence[str]) -> str:
    """One empty line where there are several."""
    kept = [line for line, before in zip(lines, ["", *lines], strict=False) if line or before]
    return "\n".join(kept).rstrip() + "\n"
