"""The figures of the papers' experiments, Hu's theorem, the cost model and the peers' limits."""

import statistics

from benchmarks.envelope import Results, Rows
from benchmarks.page import text
from benchmarks.papers import experiments

DIFFER = "why they differ, or agree"
NO_FIGURE = "no figure at hand"
# By experiment that trains: the columns of its time and of its outcome.
_TRAINED = {
    "three_body": ("seconds", "worst mass error"),
    "digits": ("seconds an epoch", "test error, %"),
    "latent_ode": ("ms a step", "test MSE"),
}


def rows(results: Results, name: str) -> Rows:
    """Those of an experiment, none if it is not complete."""
    return experiments.found(results, name) or []


def _claims(results: Results, name: str) -> list[tuple[str, str, str]]:
    found = rows(results, name)
    return experiments.module(name).claims(found) if found else []


def training(results: Results) -> Rows:
    """What a step or an epoch costs, where a paper trains: over ACA's."""
    cells = []
    for name, (column, score) in _TRAINED.items():
        found = [row for row in rows(results, name) if row.get("times", 50) == 50]
        ways = list(dict.fromkeys(row["way"] for row in found))
        times = {way: statistics.median(row[column] for row in found if row["way"] == way) for way in ways}
        for way in sorted(ways, key=times.__getitem__):
            outcome = text.spread([row[score] for row in found if row["way"] == way])
            cell = {"experiment": name, "way": way, "time over ACA's": f"{times[way] / times['ACA']:.2f}"}
            cells.append({**cell, "outcome, median (least to most) of seeds": f"{score} {outcome}"})
    return cells


def without_figures(results: Results) -> Rows:
    """What was found where a paper gives no figure."""
    return [
        {"experiment": name, "measured here": measured, DIFFER: why}
        for name in _TRAINED
        for claimed, measured, why in _claims(results, name)
        if claimed.startswith(NO_FIGURE)
    ]


def with_figures(results: Results, name: str) -> list[tuple[str, str, str]]:
    """What a paper claims, what was found, and why they differ."""
    return [claim for claim in _claims(results, name) if not claim[0].startswith(NO_FIGURE)]


def theorem(results: Results) -> Rows:
    """Each scheme's own adjoint, and the continuous ones by the same scheme and by the best of the others."""
    found, cells = rows(results, "schemes"), []
    for scheme in dict.fromkeys(row["solve"] for row in found):
        mine = [row for row in found if row["solve"] == scheme]
        smallest = min(row["step size"] for row in mine)
        last = {row["adjoint"]: row["difference"] for row in mine if row["step size"] == smallest}
        own = max(row["difference"] for row in mine if not row["adjoint"].startswith("continuous"))
        same = last.pop(f"continuous, {scheme}")
        others = min(x for name, x in last.items() if name.startswith("continuous"))
        cell = {"solved by": scheme, "its own discrete adjoint": f"{own:.0e}"}
        cell |= {"continuous, the same scheme": f"{same:.1e}", "continuous, the best other scheme": f"{others:.1e}"}
        cells.append(cell)
    return cells


def claims(results: Results, name: str) -> Rows:
    """What is claimed beside what was found, for a section of its own."""
    return [dict(zip(("claimed", "measured here", DIFFER), claim, strict=True)) for claim in _claims(results, name)]


def verdicts(results: Results, name: str) -> Rows:
    """A row a peer, by case what became of it."""
    found = rows(results, name)
    cases = [case for case in found[0] if case not in ("peer", "why")] if found else []
    return [{"": row["peer"], **{case: row.get(case, "") for case in cases}} for row in found]
