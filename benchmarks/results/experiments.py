"""The sections on the papers: ACA's experiments, the seminorm's tasks, Hu's theorem, the cost model, peers' limits."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.results import text
from benchmarks.results.claims import experiment_claims, without_figures
from benchmarks.results.promises import TASKS, task_ratios
from benchmarks.results.read import Results

_HEAD = ("claimed", "measured here", "why they differ, or agree")
Rows = list[dict[str, Any]]


def _on(name: str) -> Callable[[Callable[[Results, Rows], Iterator[str]]], Callable[[Results], Iterator[str]]]:
    """A section on one of the papers' experiments, from its rows; without them, which command makes them."""

    def decorated(section: Callable[[Results, Rows], Iterator[str]]) -> Callable[[Results], Iterator[str]]:
        @functools.wraps(section)
        def write(results: Results) -> Iterator[str]:
            rows = results.experiment(name)
            return iter([experiment_claims(results, name)[0].measured]) if rows is None else section(results, rows)

        return write

    return decorated


@_on("toy")
def toy(results: Results, rows: Rows) -> Iterator[str]:
    """In words; the plot has the figures."""
    yield "dz/dt = αz with L = z(T)²: the error of the gradient against its closed form."


@_on("van_der_pol")
def van_der_pol(results: Results, rows: Rows) -> Iterator[str]:
    """In words; the plot has the figures."""
    yield (
        "Van der Pol's equation, of which the reverse solve amplifies what the forward one contracted: errors of the "
        "gradient against back-propagation at 1e-12."
    )


def training(results: Results) -> Iterator[str]:
    """What a step or an epoch costs, where the paper trains: over ACA's."""
    columns = {"three_body": "seconds", "digits": "seconds an epoch", "latent_ode": "ms a step"}
    scores = {"three_body": "worst mass error", "digits": "test error, %", "latent_ode": "test MSE"}
    cells = []
    for name, column in columns.items():
        rows = results.experiment(name) or []
        rows = [row for row in rows if row.get("times", 50) == 50]
        ways = list(dict.fromkeys(row["way"] for row in rows))
        times = {way: statistics.median(row[column] for row in rows if row["way"] == way) for way in ways}
        for way in sorted(ways, key=times.__getitem__):
            found = [row[scores[name]] for row in rows if row["way"] == way]
            cells.append((name, way, f"{times[way] / times['ACA']:.2f}", f"{scores[name]} {text.spread(found)}"))
    yield "Training, fastest first:"
    yield from text.table(("experiment", "way", "time over ACA's", "outcome, median (least to most) of seeds"), cells)
    found = [(name, *claim[1:3]) for name in columns for claim in without_figures(results, name)]
    if found:
        yield "Where we have no figure of the paper's to compare with:"
        yield from text.table(("experiment", *_HEAD[1:]), found)


def tasks(results: Results) -> Iterator[str]:
    """A table a framework: each comparison by task."""
    for backend in ("torch", "jax"):
        found = {pair: task_ratios(results, backend, *pair) for pair in TASKS.values()}
        names = list(dict.fromkeys(task for ratios in found.values() for task, _ in ratios))
        if not names:
            yield f"None in {backend} yet: `python -m benchmarks.tasks --backend {backend}`."
            continue
        yield f"In {backend}, changes in backward evaluations / time / gradient error, medians over the tolerances:"
        rows = []
        for task in [*names, "all"]:
            chosen = ([r for (name, _), r in ratios.items() if task in (name, "all")] for ratios in found.values())
            rows.append((task, *map(_medians, chosen)))
        yield from text.table(("task", *(f"{one} over {other}" for one, other in TASKS.values())), rows)


def _medians(ratios: list[tuple[float, ...]]) -> str:
    return " / ".join(text.change(statistics.median(column)) for column in zip(*ratios, strict=True))


@_on("schemes")
def theorem(results: Results, rows: Rows) -> Iterator[str]:
    """Each scheme's own adjoint, and the continuous ones by the same scheme and by the best of the others."""
    yield (
        "An adjoint is back-propagation if and only if it has the scheme of the solve. Relative difference of the "
        "gradient from torchdiffeq's back-propagation, largest over all step sizes for the discrete adjoint of the "
        "same scheme, at the smallest step for continuous adjoints:"
    )
    smallest = min(row["step size"] for row in rows)
    cells = []
    for scheme in dict.fromkeys(row["solve"] for row in rows):
        mine = [row for row in rows if row["solve"] == scheme]
        last = {row["adjoint"]: row["difference"] for row in mine if row["step size"] == smallest}
        own = max(row["difference"] for row in mine if not row["adjoint"].startswith("continuous"))
        same = last[f"continuous, {scheme}"]
        others = min(x for name, x in last.items() if name.startswith("continuous") and name != f"continuous, {scheme}")
        cells.append((scheme, f"{own:.0e}", f"{same:.1e}", f"{others:.1e}"))
    head = ("solved by", "its own discrete adjoint", "continuous, the same scheme", "continuous, the best other scheme")
    yield from text.table(head, cells)


@_on("cost_model")
def cost_model(results: Results, rows: Rows) -> Iterator[str]:
    """The paper's formulas beside the counts."""
    yield "Counted over what the ACA paper's formulas say, a figure for each field and solver; 1 is agreement."
    yield from text.table(_HEAD, (claim[:3] for claim in experiment_claims(results, "cost_model")))


@_on("limits")
def limits(results: Results, rows: Rows) -> Iterator[str]:
    """The verdicts on the ways in torch."""
    yield (
        "Each way to a gradient, tried on a tiny case with a closed form. Wrong: a number came back that is not the "
        "gradient, or none where there is one. No: there is no argument to ask for it."
    )
    yield from _verdicts(rows)
    yield from text.table(_HEAD, (claim[:3] for claim in experiment_claims(results, "limits")))


@_on("jax_limits")
def jax_limits(results: Results, rows: Rows) -> Iterator[str]:
    """The verdicts on diffrax's adjoints."""
    yield "diffrax's adjoints, tried likewise:"
    yield from _verdicts(rows)


def _verdicts(rows: Rows) -> Iterator[str]:
    cases = [name for name in rows[0] if name not in ("peer", "why")]
    return text.table(("", *cases), ((row["peer"], *(row.get(case, "") for case in cases)) for row in rows))
