"""The tables of a merged report: who agrees with whom, and what moved between versions."""

import itertools
from collections.abc import Iterator

from steptape.shared_tests.backends.backends import HOSTS
from steptape.shared_tests.parity.compare import relative_error
from steptape.shared_tests.parity.parity import HEADLINE
from steptape.shared_tests.parity.versions import Merged, Version, hosted
from steptape.shared_tests.report.html import Cell, Table


def tables(merged: Merged) -> list[Table]:
    """Return all that is shown."""
    return [_agreement(merged), _by_version(merged), _reference(merged), _moved(merged), _environment(merged)]


def _agreement(merged: Merged) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (p.one.name, p.other.name, p.cases, p.difference, p.limit, p.place, "yes" if p.agrees else "NO")
        for p in merged.pairs
    ]
    return Table(
        "Each version against each other",
        "Gradients of aca on the same grid or the same Brownian path: the largest relative difference.",
        ("version", "against", "cases", "difference", "allowed", "where", "agree"),
        rows,
    )


def _by_version(merged: Merged) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for version in merged.versions:
        to_host = [relative_error(run["gradient"], oracle["gradient"]) for run, oracle in hosted(version)]
        others = [pair.difference for pair in merged.pairs if version in (pair.one, pair.other)]
        failed = sum(bool(run["failure"]) for key, run in version.runs.items() if key[3] == "aca" and not run["absent"])
        rows.append(
            (
                version.name,
                version.versions["python"],
                len(to_host),
                max(to_host, default=None),
                max(others, default=None),
                failed,
            )
        )
    return Table(
        "Each version against its host",
        "Gradients of aca against the back-propagation of the host itself in the same version, over all runs, and "
        "against the other versions on the same steps.",
        ("version", "Python", "runs", "to the host", "to other versions", "failed"),
        rows,
    )


def reference_rows(merged: Merged) -> list[tuple[Cell, ...]]:
    """Return problem, method, version, error and failure of every run in the setting of the headline."""
    rows: list[tuple[Cell, ...]] = [
        (problem, method, version.name, run["reference_error"], run["failure"])
        for version in merged.versions
        for (grade, problem, solver, method, rtol, *_), run in version.runs.items()
        if grade == "own steps" and (solver, rtol) == HEADLINE and not run["absent"]
    ]
    return sorted(rows, key=lambda row: (str(row[0]), str(row[1])))


def _reference(merged: Merged) -> Table:
    return Table(
        "Against the reference",
        f"Error of the gradient in y0 and params on own steps of {HEADLINE[0]} at {HEADLINE[1]:g}, which is the "
        "solver's own.",
        ("problem", "method", "version", "error", "failure"),
        reference_rows(merged),
    )


def _moved(merged: Merged) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for backend in HOSTS:
        own = [version for version in merged.versions if version.backend == backend]
        rows += [row for old, new in itertools.pairwise(own) for row in _moves(old, new)]
    return Table(
        "What moved between versions",
        "Every run whose outcome differs in the next version: by how much its gradient moved, and what else.",
        ("from", "to", "steps", "problem", "solver", "method", "setting", "gradient", "evaluations", "failure"),
        rows,
    )


def _environment(merged: Merged) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for folder, data in merged.reports:
        numbers = {name: number for found in data["versions"].values() for name, number in found.items()}
        held = sum(check["holds"] for check in data["promises"])
        rows.append(
            (
                str(folder),
                data["made"],
                data["steptape"],
                ", ".join(f"{name} {number}" for name, number in numbers.items()),
                f"{data['machine']['platform']}, {data['machine']['processors']} processors",
                f"{held} of {len(data['promises'])}",
                round(data["seconds"]),
                data["command"],
            )
        )
    return Table(
        "Environment",
        "Where each report comes from, and the command that makes it again.",
        ("report", "made", "steptape", "versions", "machine", "promises held", "seconds", "command"),
        rows,
    )


def _moves(old: Version, new: Version) -> Iterator[tuple[Cell, ...]]:
    for key in [key for key in old.runs if key in new.runs]:
        grade, problem, solver, method, rtol, _, step = key
        before, after = old.runs[key], new.runs[key]
        both = before["gradient"] and after["gradient"]
        difference = relative_error(before["gradient"], after["gradient"]) if both else None
        counts = [run["forward_evaluations"] + run["backward_evaluations"] for run in (before, after)]
        evaluations = f"{counts[0]} to {counts[1]}" if both and counts[0] != counts[1] else ""
        failures = [run["failure"] or "none" for run in (before, after)]
        failure = f"{failures[0]} -> {failures[1]}" if bool(before["failure"]) != bool(after["failure"]) else ""
        if difference or evaluations or failure:
            setting = f"rtol {rtol:g}" if rtol else f"step {step:g}" if step else ""
            yield (old.name, new.name, grade, problem, solver, method, setting, difference, evaluations, failure)
