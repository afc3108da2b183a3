"""What the README says of steptape, beside what was measured."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from benchmarks.peers import HOST, HOST_ADJOINT, OURS
from benchmarks.results import readme, text
from benchmarks.results.ratios import ADAPTIVE, RECURSIVE
from benchmarks.results.read import SOURCES, Results
from steptape.shared_tests.parity.promises import EQUALS_HOST

RANDOM = ", random weights"


class Claim(NamedTuple):
    """``verdict``: whether what was measured is the same, or why it differs. ``script``: what measures it."""

    claimed: str
    measured: str
    verdict: str
    script: str


def claims(results: Results) -> Iterator[Claim]:
    """One a promise."""
    for promise in (*_words(), *_speed(), *_diffrax(), *_tasks()):
        claimed = ": ".join(filter(None, (promise.what, promise.figures)))
        script = SOURCES[promise.source].script
        found = promise.measure(results) if results.has(promise.source) else None
        if isinstance(found, tuple):
            yield Claim(claimed, *found, script)
        elif found:
            yield Claim(claimed, found, readme.verdict(promise.figures, found), script)
        else:
            yield Claim(claimed, text.missing(promise.source), "", script)


class Promise(NamedTuple):
    """A promise of the README. ``measure``: what was found; with a verdict of its own where no figures are compared."""

    source: str
    what: str
    figures: str
    measure: Callable[[Results], str | tuple[str, str] | None]


def _speed() -> Iterator[Promise]:
    rows = {"small": "dim 16, width 64", "100 outputs": "the same with 100 output", "large": "dim 64, width 256"}
    for setup, start in rows.items():
        name, over, adjoint = readme.cells(start)
        figures = f"{over}; `odeint_adjoint`'s over ours {adjoint}"
        measure = functools.partial(_times, setup=setup)
        yield Promise("torch_speed", f"torchdiffeq, {name}: time over back-propagation", figures, measure)
    said = readme.sentence("Between the passes it holds").removeprefix("Between the passes it holds ")
    yield Promise("torch_speed", "Between the passes back-propagation holds", said, _held)


def _times(results: Results, setup: str) -> str | None:
    rows = {(r["setup"], r["method"]): r["ratio"] for r in results.data("torch_speed")["speeds"] if not r["without"]}
    if (setup, OURS) not in rows:
        return None
    adjoint = [
        rows[name, HOST_ADJOINT] / rows[name, OURS]
        for name in (setup, setup + RANDOM)
        if (name, HOST_ADJOINT) in rows and (name, OURS) in rows
    ]
    return f"{rows[setup, OURS]:.2f}; `odeint_adjoint`'s over ours {_range(adjoint)}"


def _range(values: Sequence[float]) -> str:
    ends = [f"{x:.1f}" for x in (min(values), max(values))] if values else ["fails"]
    return " to ".join(dict.fromkeys(ends))


def _held(results: Results) -> str | None:
    rows = [r for r in results.data("torch_speed")["memories"] if r["setup"] == "404 evaluations" and not r["without"]]
    held = {row["method"]: row["held"] / row["state"] for row in rows}
    accepted = max((row["accepted"] for row in rows), default=0)
    if not {HOST, OURS, f"{OURS}, checkpoints=8"} <= held.keys():
        return None
    return (
        f"{held[HOST]:.0f} states at {accepted} accepted steps, the replay {held[OURS]:.0f}, or "
        f"{held[f'{OURS}, checkpoints=8']:.0f} with `checkpoints=8`"
    )


def _diffrax() -> Iterator[Promise]:
    starts: dict[str, tuple[str, Callable[[Results], str | None]]] = {
        "than `RecursiveCheckpointAdjoint()`": ("jax_speed", lambda results: _mean(results, "over_default")),
        "than its best number of checkpoints": ("jax_speed", lambda results: _mean(results, "over_best")),
        "than the default where a third": ("jax_speed", _rejecting),
        "than the same number of checkpoints": ("jax_memory", _same_checkpoints),
        "a batch of 256 solves": ("jax_scaling", _batch),
    }
    for start, (source, measure) in starts.items():
        name, figures = readme.cells(start)
        yield Promise(source, f"diffrax, times faster, {name}", figures, measure)


def _mean(results: Results, column: str) -> str:
    return text.mean([row[column] for row in results.data("jax_speed")["rows"]])


def _rejecting(results: Results) -> str | None:
    rows = results.data("jax_speed")["rows"]
    found = [row["over_default"] for row in rows if row["rejected"] >= 0.25 * (row["accepted"] + row["rejected"])]
    return f"{statistics.geometric_mean(found):.1f}" if found else None


def _same_checkpoints(results: Results) -> str | None:
    setups = {setup["setup"]: setup["methods"] for setup in results.data("jax_memory")["setups"]}
    rows = [row for row in setups.get("constant", ()) if row["ours"] and "stage" not in row["method"]]
    found = {row["checkpoints"]: row["over_host"] for row in rows}
    return ", ".join(f"{over:.1f}" for k, over in found.items() if k is not None) or None


def _batch(results: Results) -> str:
    times = results.data("jax_scaling")["seconds"]
    return _range([host / ours for host, ours in zip(times[RECURSIVE], times[ADAPTIVE], strict=True)])


TASKS = {
    "seminorm over the host's default": ("seminorm", "default"),
    "quadrature over the seminorm": ("quadrature", "seminorm"),
    "the same, absolute tolerance relaxed": ("quadrature, atol x n", "seminorm"),
    "`aca` over the seminorm": ("aca", "seminorm"),
}
COLUMNS = ("backward", "seconds", "error")


def _tasks() -> Iterator[Promise]:
    for start, pair in TASKS.items():
        name, evaluations, time, error = readme.cells(start)
        figures = f"evaluations {evaluations}, time {time}, error {error}"
        yield Promise("tasks", f"The tasks in torch, {name}", figures, functools.partial(_compared, pair=pair))


def _compared(results: Results, pair: tuple[str, str]) -> str | None:
    found = task_ratios(results, "torch", *pair)
    if not found:
        return None
    evaluations, time, error = zip(*found.values(), strict=True)
    median = text.change(statistics.median(error))
    return f"evaluations {text.changes(evaluations)}, time {text.changes(time)}, error {median}"


def task_ratios(
    results: Results, backend: str, one: str, other: str, columns: Sequence[str] = COLUMNS
) -> dict[tuple[str, float], tuple[float, ...]]:
    """By task and tolerance, one method's backward evaluations, seconds and errors over another's."""
    groups: dict[tuple[str, float], dict[str, dict[str, Any]]] = {}
    for row in results.lines("tasks"):
        if row["backend"] == backend and not row["failed"]:
            groups.setdefault((row["task"], row["rtol"]), {})[row["method"]] = row
    return {
        place: tuple(group[one][column] / group[other][column] for column in columns)
        for place, group in groups.items()
        if {one, other} <= group.keys()
    }


def _words() -> Iterator[Promise]:
    exact, forward = EQUALS_HOST, "forward bit-identical"
    sentences: dict[str, tuple[str, Callable[[Results], tuple[str, str] | None]]] = {
        "The exact gradient of the host's discrete": ("parity", functools.partial(_checks, promise=exact)),
        "Keep your `torchdiffeq": ("parity", functools.partial(_checks, promise=forward)),
        "Every method, kind of noise and Brownian": ("sde_speed", _sdes),
        "What cannot be differentiated exactly": ("papers", _refusals),
        "Nothing is integrated in reverse": ("papers", _stable),
    }
    for start, (source, measure) in sentences.items():
        yield Promise(source, readme.sentence(start), "", measure)


def _checks(results: Results, promise: str) -> tuple[str, str] | None:
    judged = [check for check in results.data("parity")["promises"] if check["promise"].startswith(promise)]
    if not judged:
        return None
    held = sum(check["holds"] for check in judged)
    worst = max(math.inf if check["error"] is None else check["error"] for check in judged)
    limits = dict.fromkeys(f"{end(check['limit'] for check in judged):.1g}" for end in (min, max))
    found = f"{held} of {len(judged)} checks hold, to limits of {' to '.join(limits)}; largest difference {worst:.2g}"
    return found, _judged(held == len(judged))


def _judged(holds: bool) -> str:
    return "holds" if holds else "**does not hold**"


def _sdes(results: Results) -> tuple[str, str]:
    rows = [row["ways"] for row in results.data("sde_speed")["rows"]]
    time = [ways["aca"]["seconds"] / ways["back-propagation"]["seconds"] for ways in rows]
    held = {way: statistics.median(ways[way]["held"] for ways in rows) / 2**20 for way in rows[0]}
    kept = ", ".join(f"{way} {text.figure(mib)} MiB" for way, mib in held.items())
    return f"time over back-propagation {text.spread(time)}; held, median: {kept}", "no figure is claimed"


def _refusals(results: Results) -> tuple[str, str] | None:
    rows = [row for name in ("limits", "jax_limits") for row in results.experiment(name) or ()]
    if not rows:
        return None
    words = [word for row in rows if row["peer"].startswith("steptape") for word, _ in row["why"].values()]
    right, refused, wrong = (sum(word.startswith(kind) for word in words) for kind in ("yes", "refused", "wrong"))
    return f"of {len(words)} cases {right} are right, {refused} refused, {wrong} wrong", _judged(wrong == 0)


def _stable(results: Results) -> tuple[str, str] | None:
    rows = results.experiment("van_der_pol")
    if rows is None:
        return None
    stiff = [row for row in rows if row["form"].startswith("stiff") and row["way"] in ("quadrature", "adjoint")]
    errors = {way: [r.get("gradient error") for r in stiff if r["way"] == way] for way in ("quadrature", "adjoint")}
    words = {way: ", ".join("fails" if x is None else text.figure(x) for x in each) for way, each in errors.items()}
    where = f"stiff van der Pol equation, rtol {stiff[0]['rtol']:g} to {stiff[-1]['rtol']:g}"
    holds = all(x is not None and x < 1 for x in errors["quadrature"])
    return f"relative gradient error, {where}: {'; '.join(map(' '.join, words.items()))}", _judged(holds)
