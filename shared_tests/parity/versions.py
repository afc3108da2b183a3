"""Merges parity reports of any versions and machines into one: who agrees with whom, and what moved between versions.

Gradients of ACA are compared where both were taken on the same steps: ODEs on the same given grid, SDEs on the same
Brownian path. The limits are those of a single report: 1e-12, and 1e-9 for a chaotic problem.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import Version as Number

from steptape._errors import OptionError
from steptape.shared_tests.backends.backends import HOSTS, METHODS, SHARED_SOLVERS
from steptape.shared_tests.parity.compare import relative_error
from steptape.shared_tests.parity.sde_compare import EXACT
from steptape.shared_tests.problems.problems import PROBLEMS

FORMAT = 2
Key = tuple[str, str, str, str, float, str, float]
"""What tells a run from the others of its version: grade, problem, solver, method, tolerance, grid and step."""


@dataclass(frozen=True)
class Version:
    """What one backend did in one report; `name` tells it from the others, `runs` holds plain data."""

    backend: str
    name: str
    versions: dict[str, str]
    runs: dict[Key, dict[str, Any]]

    @property
    def age(self) -> list[Number]:
        """What grows from version to version: that of the host, then that of its framework."""
        return [Number(self.versions.get(name, "0")) for name in (HOSTS[self.backend], self.backend)]


@dataclass(frozen=True)
class Pair:
    """Two versions and the largest difference of their gradients on the same steps, next to what is allowed there."""

    one: Version
    other: Version
    cases: int
    difference: float
    limit: float
    place: str

    @property
    def agrees(self) -> bool:
        """Whether every difference is within its limit."""
        return self.difference <= self.limit


def load(folders: list[Path]) -> list[tuple[Path, dict[str, Any]]]:
    """Return the parity reports in the folders, or in folders right below them, in order of their names.

    Raises:
        OptionError: a folder holds none, or one of another format.
    """
    reports = []
    for folder in folders:
        files = sorted(folder.glob("parity.json")) or sorted(folder.glob("*/parity.json"))
        if not files:
            raise OptionError(
                f"steptape report {folder}: no parity.json there; `steptape parity --out {folder}` makes one"
            )
        for file in files:
            data = json.loads(file.read_text(encoding="utf-8"))
            if data.get("format") != FORMAT:
                raise OptionError(
                    f"steptape report {folder}: {file} is of format {data.get('format')}, not {FORMAT}; make it again "
                    "with the same steptape"
                )
            reports.append((file.parent, data))
    return reports


def versions_of(reports: list[tuple[Path, dict[str, Any]]]) -> list[Version]:
    """Return what each backend did in each report, backend by backend, the oldest host first."""
    names = Counter(_name(*found) for _, data in reports for found in data["versions"].items())
    versions = []
    for folder, data in reports:
        for backend, numbers in data["versions"].items():
            own = [run for run in data["runs"] + data["sde_runs"] if run["backend"] == backend]
            name = _name(backend, numbers)
            name += f" ({folder})" if names[name] > 1 else ""
            versions.append(Version(backend, name, numbers, {_key(run): run for run in own}))
    return sorted(versions, key=lambda version: (list(HOSTS).index(version.backend), version.age))


def _name(backend: str, numbers: dict[str, str]) -> str:
    """Return the versions of the host and of its framework."""
    return ", ".join(f"{name} {numbers[name]}" for name in (HOSTS[backend], "torchsde", backend) if name in numbers)


def _key(run: dict[str, Any]) -> Key:
    case = run["case"]
    grade = "same path" if case["step"] else "same grid" if case["grid"] else "own steps"
    grid = "" if case["step"] else case["grid"]
    return (grade, case["problem"], case["solver"], case["method"], case["rtol"], grid, case["step"])


def compare_pair(one: Version, other: Version) -> Pair | None:
    """Return how far ACA's gradients of two versions differ on the same steps, None where they share no case.

    The case that comes closest to its limit, or exceeds it most, is the one that is named.
    """
    found = []
    for key in one.runs.keys() & other.runs.keys():
        grade, problem, solver, method, *_ = key
        run, counterpart = one.runs[key], other.runs[key]
        foreign = one.backend != other.backend and grade == "same grid" and solver not in SHARED_SOLVERS
        if method == "aca" and grade != "own steps" and not (foreign or run["absent"] or counterpart["absent"]):
            limit = EXACT if grade == "same path" else PROBLEMS[problem].exact
            difference = relative_error(run["gradient"], counterpart["gradient"])
            found.append((difference / limit, difference, limit, f"{problem}, {solver}"))
    if not found:
        return None
    _, difference, limit, place = max(found)
    return Pair(one, other, len(found), difference, limit, place)


@dataclass(frozen=True)
class Merged:
    """Parity reports side by side."""

    reports: list[tuple[Path, dict[str, Any]]]
    versions: list[Version]
    pairs: list[Pair]

    @classmethod
    def of(cls, folders: list[Path]) -> "Merged":
        """Read the reports in the folders and compare each version with each other."""
        reports = load(folders)
        versions = versions_of(reports)
        pairs = [compare_pair(*both) for both in itertools.combinations(versions, 2)]
        return cls(reports, versions, [pair for pair in pairs if pair])

    @property
    def broken(self) -> list[str]:
        """Sentences on what does not hold."""
        promises = [
            f"{folder}: {check['promise']}: {check['backend']}, {check['problem']}, {check['setting']}"
            for folder, data in self.reports
            for check in data["promises"]
            if not check["holds"]
        ]
        apart = [
            f"{pair.one.name} and {pair.other.name} differ by {pair.difference:.1e} on the same steps, {pair.place}"
            for pair in self.pairs
            if not pair.agrees
        ]
        return promises + apart

    @property
    def summary(self) -> str:
        """One sentence."""
        cases = sum(pair.cases for pair in self.pairs)
        worst = max(self.pairs, key=lambda pair: pair.difference / pair.limit, default=None)
        told = f"; the largest difference is {worst.difference:.1e} ({worst.place})" if worst else ""
        agreeing = sum(pair.agrees for pair in self.pairs)
        return (
            f"{len(self.reports)} reports, {len(self.versions)} versions: {agreeing} of {len(self.pairs)} pairs agree "
            f"on the same steps in {cases} comparisons{told}."
        )


def hosted(version: Version) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each run of ACA with that of the host's own back-propagation, where both gave a gradient."""
    oracle = next(method.oracle for method in METHODS[version.backend] if method.oracle)
    for key, run in version.runs.items():
        hosts = version.runs.get((*key[:3], oracle, *key[4:]))
        if key[3] == "aca" and hosts and run["gradient"] and hosts["gradient"]:
            yield run, hosts
