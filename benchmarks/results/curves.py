"""The section on work-precision and scaling."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.curves import fits
from benchmarks.curves.table import ERRORS
from benchmarks.results import text
from benchmarks.results.read import Results

BASE = {"torch": "back-propagation", "jax": "RecursiveCheckpoint"}
OURS, PLOTS = "steptape ACA", "curves-*.png"
_BYTES = {"torch": "those allocated between the passes", "jax": "XLA's temporary memory over both passes"}
Cells = dict[str, dict[float, dict[str, dict[str, Any]]]]


def cells(results: Results, backend: str, part: str) -> Cells:
    """By problem or axis, tolerance or size, and way: the rows."""
    found: Cells = {}
    for entry in results.lines("curves"):
        if (entry["backend"], entry["part"]) == (backend, part):
            rows = {row["way"]: row for row in entry["rows"]}
            found.setdefault(entry["name"], {})[entry["size"]] = rows
    return found


def precision(results: Results) -> Iterator[str]:
    """Time at equal error, a table a framework."""
    for backend, base in BASE.items():
        problems = cells(results, backend, "precision")
        if not problems:
            yield f"None in {backend} yet: `python -m benchmarks.curves --only precision --backend {backend}`."
            continue
        errors = " / ".join(f"{error:g}" for error in ERRORS)
        yield (
            f"In {backend}: time of forward and backward pass at which the gradient's error falls to {errors}, over "
            f"that of {base}, interpolated between tolerances; least median first."
        )
        ways = {way: [_times(found, way, base) for found in problems.values()] for way in _ways(problems)}
        order = sorted(ways, key=lambda way: _median(ways[way]))
        yield from text.table(("", *problems), ((way, *map(_both, ways[way])) for way in order))


def _ways(found: Cells) -> list[str]:
    return list(dict.fromkeys(way for sizes in found.values() for rows in sizes.values() for way in rows))


def _times(found: dict[float, dict[str, dict[str, Any]]], way: str, base: str) -> list[float | str]:
    """For each error the ratio, or why there is none."""

    def curve(name: str) -> list[tuple[float, float]]:
        rows = [found[size].get(name, {}) for size in sorted(found, reverse=True)]
        return [(row["error"], row["seconds"]) for row in rows if row.get("error") is not None]

    return [_ratio(fits.at_error(curve(way), error), fits.at_error(curve(base), error)) for error in ERRORS]


def _ratio(mine: float | str, theirs: float | str) -> float | str:
    if isinstance(mine, str):
        return mine
    return f"{mine * 1e3:.3g} ms (the host: {theirs})" if isinstance(theirs, str) else mine / theirs


def _median(ratios: Sequence[Sequence[float | str]]) -> float:
    return statistics.median([x for each in ratios for x in each if not isinstance(x, str)] or [float("inf")])


def _both(ratios: Sequence[float | str]) -> str:
    return " / ".join(dict.fromkeys(x if isinstance(x, str) else f"{x:.2f}" for x in ratios))


def scaling(results: Results) -> Iterator[str]:
    """Exponents of time and memory, a table a framework."""
    for backend in BASE:
        axes = cells(results, backend, "scaling")
        if not axes:
            yield f"None in {backend} yet: `python -m benchmarks.curves --only scaling --backend {backend}`."
            continue
        yield (
            f"In {backend}: exponents of time / bytes held over the last {fits.UPPER} sizes at most, up to the size in "
            f"brackets, the largest that time and memory allowed. Bytes are {_BYTES[backend]}."
        )
        rows = ((way, *(_growth(sizes, way) for sizes in axes.values())) for way in _ways(axes))
        yield from text.table(("", *axes), rows)


def _growth(sizes: dict[float, dict[str, dict[str, Any]]], way: str) -> str:
    measured = {size: sizes[size][way] for size in sorted(sizes) if "seconds" in sizes[size].get(way, {})}
    if not measured:
        return ""
    fitted = (fits.exponent(list(measured), [row[c] for row in measured.values()]) for c in ("seconds", "held"))
    exponents = " / ".join("" if fit is None else f"{fit[0]:.2f}".replace("-0.00", "0.00") for fit in fitted)
    return f"{exponents} ({max(measured):,.0f})"
