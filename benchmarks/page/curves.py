"""The figures of work-precision and scaling."""

import math
import statistics
from collections.abc import Sequence

import numpy as np

from benchmarks.envelope import Results, Row, Rows
from benchmarks.ways import BASE

ERRORS = (1e-5, 1e-7)
UPPER = 3
# By problem or axis, tolerance or size, and way: the rows.
Cells = dict[str, dict[float, dict[str, Row]]]


def cells(results: Results, framework: str, part: str) -> Cells:
    found: Cells = {}
    for rows in results.cells("curves", framework).values():
        if rows and rows[0]["part"] == part:
            found.setdefault(rows[0]["name"], {})[rows[0]["size"]] = {row["way"]: row for row in rows}
    return found


def _ways(found: Cells) -> list[str]:
    return list(dict.fromkeys(way for sizes in found.values() for rows in sizes.values() for way in rows))


def precision(results: Results, framework: str) -> Rows:
    """Time at equal error over that of back-propagation, a row a way, the least median first."""
    problems, base = cells(results, framework, "precision"), BASE[framework]
    ways = {way: [_times(found, way, base) for found in problems.values()] for way in _ways(problems)}

    def median(way: str) -> float:
        return statistics.median([x for each in ways[way] for x in each if not isinstance(x, str)] or [math.inf])

    def cell(ratios: Sequence[float | str]) -> str:
        return " / ".join(dict.fromkeys(x if isinstance(x, str) else f"{x:.2f}" for x in ratios))

    return [
        {"": way, **{name: cell(ratios) for name, ratios in zip(problems, ways[way], strict=True)}}
        for way in sorted(ways, key=median)
    ]


def _times(found: dict[float, dict[str, Row]], way: str, base: str) -> list[float | str]:
    """For each error the ratio, or why there is none."""

    def seconds(name: str, error: float) -> float | str:
        rows = [found[size].get(name, {}) for size in sorted(found, reverse=True)]
        return at_error([(row["error"], row["seconds"]) for row in rows if row.get("error") is not None], error)

    ratios: list[float | str] = []
    for error in ERRORS:
        mine, theirs = seconds(way, error), seconds(base, error)
        if not isinstance(mine, str):
            mine = f"{mine * 1e3:.3g} ms (the host: {theirs})" if isinstance(theirs, str) else mine / theirs
        ratios.append(mine)
    return ratios


def at_error(points: Sequence[tuple[float, float]], error: float) -> float | str:
    """The seconds at which a way reaches an error for good: the logarithm interpolated between two tolerances.

    ``points``: (error, seconds) from the loosest tolerance to the tightest. Where there are no two such, why.
    """
    above = [i for i, (found, _) in enumerate(points) if not found <= error]
    if not above:
        return "reached at every tolerance" if points else "not measured"
    last = above[-1]
    if last == len(points) - 1 or not math.isfinite(points[last][0]):
        return "not reached"
    (e0, s0), (e1, s1) = points[last], points[last + 1]
    share = math.log(e0 / error) / math.log(e0 / e1)
    return math.exp((1 - share) * math.log(s0) + share * math.log(s1))


def scaling(results: Results, framework: str) -> Rows:
    """Exponents of time and memory, a row a way."""
    axes = cells(results, framework, "scaling")
    return [{"": way, **{axis: _growth(sizes, way) for axis, sizes in axes.items()}} for way in _ways(axes)]


def _growth(sizes: dict[float, dict[str, Row]], way: str) -> str:
    measured = {size: sizes[size][way] for size in sorted(sizes) if "seconds" in sizes[size].get(way, {})}
    fitted = [exponent(list(measured), [row[c] for row in measured.values()]) for c in ("seconds", "held")]
    exponents = " / ".join("" if fit is None else f"{fit[0]:.2f}".replace("-0.00", "0.00") for fit in fitted)
    return f"{exponents} ({max(measured):,.0f})" if measured else ""


def exponent(sizes: Sequence[float], values: Sequence[float | None]) -> tuple[float, int] | None:
    """p of value = c size^p by least squares on the logarithms of the last ``UPPER`` points, and their number."""
    points = [(math.log(x), math.log(y)) for x, y in zip(sizes, values, strict=True) if y is not None and y > 0]
    x, y = np.array(points[-UPPER:]).reshape(-1, 2).T
    return (float(np.polyfit(x, y, 1)[0]), len(x)) if len(x) > 1 else None
