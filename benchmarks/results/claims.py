"""The table of claims: where a peer is better, what the README promises, what the papers say."""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Iterator, Sequence

from benchmarks.papers.table import EXPERIMENTS
from benchmarks.results import text
from benchmarks.results.promises import Claim, claims, task_ratios
from benchmarks.results.ratios import Ratio, ratios
from benchmarks.results.read import SOURCES, Results

HEAD = ("claimed", "measured here", "the same, or why not", "measured by")
# Their claims are in the sections of their own.
_ELSEWHERE = ("cost_model", "limits", "jax_limits")
_ACA, _SEMINORM, _HU = (
    f"[{name}](https://arxiv.org/abs/{paper})"
    for name, paper in (("ACA", "2006.02493"), ("Seminorm", "2009.09457"), ("Hu", "2402.15141"))
)
_NAMES = {("tasks", "default"): "adjoint", ("tasks", "seminorm"): "adjoint, seminorm"}
_KINDS, _MARGIN = ("time", "memory", "error"), 0.01
_NO_FIGURE = "no figure at hand"


def section(results: Results) -> Iterator[str]:
    """All three tables."""
    yield from ("### Where a peer is better", "", *better(results))
    yield "### What the README says"
    yield from text.table(HEAD, map(_cells, claims(results)))
    yield "### What the papers say"
    yield from text.table(HEAD, map(_cells, _papers(results)))


def _cells(claim: Claim) -> tuple[str, ...]:
    return (*claim[:3], text.link(claim.script))


def better(results: Results) -> Iterator[str]:
    """By measurement and peer: on how many problems it takes less than the replay, and how much."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for ratio, quotient in _quotients(ratios(results)):
        name = _NAMES.get((ratio.source, ratio.way), ratio.way)
        groups.setdefault((ratio.kind, name, ratio.script), []).append(quotient)
    rows = [(*group, [x for x in found if x < 1 - _MARGIN], len(found)) for group, found in groups.items()]
    shown = sorted((row for row in rows if row[3]), key=lambda row: (_KINDS.index(row[0]), min(row[3])))
    if not shown:
        yield "Nowhere in the results at hand."
        return
    yield (
        "What a peer takes, or errs, over what the replay does on the same problem (`aca`, "
        "`AdaptiveCheckpointAdjoint()`, as they come), wherever that is less by more than "
        f"{text.per_cent(_MARGIN)}. Errors are of the gradient, against the ODE's own; the replay's is that of the "
        "discrete solution, which is what it is for."
    )
    head = ("less of", "peer", "in", "takes of ours, median (least to most) of these", "measured by")
    cells = (
        (kind, name, f"{len(below)} of {count}", text.spread(below), text.link(script))
        for kind, name, script, below, count in shown
    )
    yield from text.table(head, cells)


def _quotients(found: Sequence[Ratio]) -> Iterator[tuple[Ratio, float]]:
    """Of each peer's ratio, how much it is of the replay's."""
    ours = {ratio.place: ratio.value for ratio in found if ratio.side == "ours"}
    return ((r, r.value / ours[r.place]) for r in found if r.side == "peer" and r.place in ours)


def _papers(results: Results) -> Iterator[Claim]:
    for name in EXPERIMENTS:
        if name not in _ELSEWHERE:
            what = f"{_HU if name == 'schemes' else _ACA}, {name.replace('_', ' ')}"
            for claim in experiment_claims(results, name):
                if not claim.claimed.startswith(_NO_FIGURE):
                    yield claim._replace(claimed=": ".join(filter(None, (what, claim.claimed))))
    yield from _seminorm(results)
    yield _quadrature(results)
    yield _reversible(results)


def experiment_claims(results: Results, name: str) -> list[Claim]:
    """What a paper says beside what was found, or which command finds it."""
    script = f"benchmarks/papers/{name}.py"
    rows = results.experiment(name)
    if rows is None:
        return [Claim("", f"Not measured yet: `python -m benchmarks.papers --only {name}` makes it.", "", script)]
    found = importlib.import_module(f"benchmarks.papers.{name}").claims(rows)
    return [Claim(claim.claimed, claim.measured, claim.why, script) for claim in found]


def without_figures(results: Results, name: str) -> Iterator[Claim]:
    """What was found where the paper gives no figure."""
    return (claim for claim in experiment_claims(results, name) if claim.claimed.startswith(_NO_FIGURE))


def _seminorm(results: Results) -> Iterator[Claim]:
    claimed, accuracy = (
        f"{_SEMINORM}: backward evaluations, median -40 %, best -62 %",
        f"{_SEMINORM}: no loss of accuracy",
    )
    script, found = SOURCES["tasks"].script, task_ratios(results, "torch", "seminorm", "default")
    if not found:
        yield Claim(claimed, text.missing("tasks"), "", script)
        yield Claim(accuracy, text.missing("tasks"), "", script)
        return
    best = "; ".join(filter(None, (_saved(results, backend) for backend in ("torch", "jax"))))
    shares = {task: [ratio[0] for (name, _), ratio in found.items() if name == task] for task, _ in found}
    tasks = ", ".join(f"{task} {text.change(statistics.median(values))}" for task, values in shares.items())
    why = f"In torch by task: {tasks}. It saves the steps that the parameters' channels gate; the task sets how many."
    yield Claim(claimed, best, why, script)
    errors = text.changes([ratio[2] for ratio in found.values()])
    losses = text.changes([x for (x,) in task_ratios(results, "torch", "seminorm", "default", ("loss",)).values()])
    why = "In torch. Errors are of the first gradient, losses of the last batch of a short training."
    yield Claim(accuracy, f"error of the gradient {errors}; loss after the training {losses}", why, script)


def _saved(results: Results, backend: str) -> str:
    found = [x for (x,) in task_ratios(results, backend, "seminorm", "default", ("backward",)).values()]
    if not found:
        return ""
    return f"{backend}: median {text.change(statistics.median(found))}, best {text.change(min(found))}"


def _quadrature(results: Results) -> Claim:
    claimed = (
        f"{_HU}: the gradient in the parameters is an integral along the trajectory, not an ODE, and wants a quadrature"
    )
    script, found = SOURCES["tasks"].script, task_ratios(results, "torch", "quadrature", "seminorm")
    if not found:
        return Claim(claimed, text.missing("tasks"), "", script)
    names = ("backward evaluations", "time", "gradient error")
    columns = zip(names, zip(*found.values(), strict=True), strict=True)
    measured = ", ".join(f"{name} {text.changes(values)}" for name, values in columns)
    why = "The paper has no figure for it. No parameter gates a step of the backward solve, for the cotangent alone."
    return Claim(claimed, f"over the seminorm: {measured}", why, script)


def _reversible(results: Results) -> Claim:
    claimed = (
        "[Reversible solvers](https://arxiv.org/abs/2410.11648): 2.0 to 3.4 times faster than diffrax's "
        "recursive checkpointing with 31 to 44 checkpoints on about 430 to 1000 steps"
    )
    script, found = SOURCES["jax_memory"].script, {ratio.place[2]: ratio.value for ratio in _replays(results)}
    over = found.get("constant, checkpoints=44")
    if over is None:
        return Claim(claimed, text.missing("jax_memory"), "", script)
    ours = f"not measured here; the replay, with 44 checkpoints on 1000 steps, {1 / over:.1f} times"
    return Claim(claimed, ours, "They keep no steps, and are solvers of their own; the replay takes any.", script)


def _replays(results: Results) -> Iterator[Ratio]:
    return (r for r in ratios(results) if (r.source, r.kind, r.side) == ("jax_memory", "time", "ours"))
