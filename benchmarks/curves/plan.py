"""Which cells there are, in order, and which of them are too large; the same for both frameworks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from benchmarks.curves import cases
from benchmarks.curves.cases import Case
from benchmarks.curves.store import Row, Store

SECONDS = 60.0
BYTES = 4 * 2**30


class Framework(Protocol):
    """What measures the cells.

    A row has a way, and ``seconds``, ``held`` (bytes), ``error`` and ``evaluations`` (forward, backward), of which the
    last three are None where they are not known; or ``without``, which says why it has none of them.
    """

    precision_ways: Sequence[str]
    scaling_ways: Sequence[str]
    tolerances: Sequence[float]

    def machine(self) -> str:
        """The processor and the versions that count."""

    def precision(self, case: Case, tolerance: float, ways: Sequence[str], rounds: int) -> list[Row]:
        """Every way at one tolerance."""

    def scaling(self, case: Case, axis: str, steps: int, ways: Sequence[str], rounds: int) -> list[Row]:
        """Every way, with so many steps of equal size."""


@dataclasses.dataclass(frozen=True)
class Extent:
    """How much is measured."""

    problems: Sequence[str]
    sizes: int
    axes: Sequence[str]
    rounds: int

    @classmethod
    def of(cls, quick: bool) -> Extent:
        """All, or two minutes of it."""
        if quick:
            return cls(("lotka_volterra",), 2, ("steps", "state"), 3)
        return cls(tuple(cases.PROBLEMS), 6, tuple(axis.name for axis in cases.AXES), 21)


def run(framework: Framework, store: Store, parts: Sequence[str], extent: Extent, mlp: Path) -> None:
    """Measure what is not there yet."""
    store.cell("machine", "", 0, lambda: [{"machine": framework.machine()}])
    if "precision" in parts:
        _precision(framework, store, extent, mlp)
    if "scaling" in parts:
        for axis in cases.AXES:
            if axis.name in extent.axes:
                _scaling(framework, store, extent, axis)


def _precision(framework: Framework, store: Store, extent: Extent, mlp: Path) -> None:
    for name in extent.problems:
        case = cases.precision(name, mlp)
        for tolerance in framework.tolerances:
            store.cell("precision", name, tolerance, _measure_at(framework, case, tolerance, extent))


def _measure_at(framework: Framework, case: Case, tolerance: float, extent: Extent) -> Callable[[], list[Row]]:
    return lambda: framework.precision(case, tolerance, framework.precision_ways, extent.rounds)


def _scaling(framework: Framework, store: Store, extent: Extent, axis: cases.Axis) -> None:
    before: dict[str, Row] = {}
    last = axis.sizes[0]
    for size in axis.sizes[: extent.sizes]:
        too_large = {way: why for way in before if (why := too_large_for(before[way], size / last))}
        rows = store.cell("scaling", axis.name, size, _measure_size(framework, axis, size, too_large, extent))
        before, last = {row["way"]: row for row in rows}, size


def _measure_size(
    framework: Framework, axis: cases.Axis, size: int, too_large: dict[str, str], extent: Extent
) -> Callable[[], list[Row]]:
    def measure() -> list[Row]:
        case, steps = axis.case(size)
        ways = [way for way in framework.scaling_ways if way not in too_large]
        skipped = [{"way": way, "without": why} for way, why in too_large.items()]
        return [*framework.scaling(case, axis.name, steps, ways, extent.rounds), *skipped]

    return measure


def too_large_for(row: Row, growth: float) -> str | None:
    """Why a way is not to be measured at a size ``growth`` times that of its row, if so."""
    if "without" in row:
        return row["without"]
    if row["seconds"] * growth > SECONDS:
        return f"not run: about {row['seconds'] * growth:.0f} s, by the size before"
    if row["held"] is not None and row["held"] * growth > BYTES:
        return f"not run: about {row['held'] * growth / 2**30:.1f} GiB, by the size before"
    return None
