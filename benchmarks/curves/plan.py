"""Which cells there are, in order, and which ways are too slow or too large for one; the same for both frameworks."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import timing
from benchmarks.curves import cases
from benchmarks.curves.cases import Case
from benchmarks.envelope import Row, Rows
from benchmarks.measurements import Cells, Scope

# Of a run, beyond which a way is not tried at a larger size.
SECONDS, BYTES = 60.0, 4 * 2**30


@dataclasses.dataclass(frozen=True)
class Framework:
    """What measures the cells: ``precision`` at a tolerance, ``scaling`` on an axis with so many steps of equal size.

    A row has a way, and ``seconds``, ``held`` (bytes), ``error`` and ``evaluations`` (forward, backward), of which the
    last three are None where they are not known; or ``without``, which says why it has none of them.
    """

    tolerances: Sequence[float]
    precision_ways: Sequence[str]
    scaling_ways: Sequence[str]
    precision: Callable[[Case, float, Sequence[str], int], Rows]
    scaling: Callable[[Case, str, int, Sequence[str], int], Rows]


def cells(framework: Framework, scope: Scope) -> Cells:
    """Of both parts; quick: two minutes of it."""
    problems, most, rounds = (("lotka_volterra",), 2, 3) if scope.quick else (tuple(cases.PROBLEMS), 6, 21)
    mlp, found = scope.folder / "curves-mlp.npz", Cells()
    for name, tolerance in itertools.product(problems, framework.tolerances):
        measure = functools.partial(_precision, framework, name, tolerance, rounds, mlp)
        found[f"precision, {name} {tolerance:g}"] = measure
    for axis in cases.AXES[: 2 if scope.quick else None]:
        sizes = axis.sizes[:most]
        for before, size in zip((None, *sizes), sizes, strict=False):
            measure = functools.partial(_scaling, framework, axis, size, before, rounds, scope)
            found[f"scaling, {axis.name} {size:g}"] = measure
    return found


def measured(runs: Mapping[str, Callable[[], Row]], most: int) -> Rows:
    """A row for each way, of at ``most`` so many rounds in some 4 s; a run that takes 8 s is a way's only one."""
    return list(timing.rows(runs, timing.Rounds(most, 4.0, alone=8.0))[0].values())


def _precision(framework: Framework, name: str, tolerance: float, rounds: int, mlp: Path) -> Rows:
    rows = framework.precision(cases.precision(name, mlp), tolerance, framework.precision_ways, rounds)
    return [{"part": "precision", "name": name, "size": tolerance, **row} for row in rows]


def _scaling(framework: Framework, axis: cases.Axis, size: int, before: int | None, rounds: int, scope: Scope) -> Rows:
    smaller = scope.done.get(f"scaling, {axis.name} {before:g}", []) if before else []
    too_large = {row["way"]: why for row in smaller if (why := _too_large(row, size / (before or size)))}
    case, steps = axis.case(size)
    ways = [way for way in framework.scaling_ways if way not in too_large]
    rows = framework.scaling(case, axis.name, steps, ways, rounds)
    rows += [{"way": way, "without": why} for way, why in too_large.items()]
    return [{"part": "scaling", "name": axis.name, "size": size, **row} for row in rows]


def _too_large(row: Row, growth: float) -> str | None:
    """Why a way is not to be measured at a size ``growth`` times that of its row, if so."""
    if "without" in row:
        return row["without"]
    if row["seconds"] * growth > SECONDS:
        return f"not run: about {row['seconds'] * growth:.0f} s, by the size before"
    if row["held"] is not None and row["held"] * growth > BYTES:
        return f"not run: about {row['held'] * growth / 2**30:.1f} GiB, by the size before"
    return None
