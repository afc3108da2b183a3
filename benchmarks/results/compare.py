"""Two runs of the same measurements: how far apart are the ratios that both hold, and do the ways keep their order?"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.results import text
from benchmarks.results.ratios import Place, Ratio, ratios
from benchmarks.results.read import Results

Pairs = dict[Place, dict[str, tuple[float, float]]]


def compared(first: Results, second: Results) -> dict[str, Any]:
    """The comparison as plain data. Errors are left out: both runs compute the same numbers."""
    pairs = _pairs(ratios(first), ratios(second))
    runs = [_origin(run) for run in (first, second)]
    groups = [_group(*group, pairs) for group in dict.fromkeys(place[:2] for place in pairs)]
    return {"runs": runs, "close": text.CLOSE, "groups": groups, "beyond": _beyond(pairs)}


def _origin(run: Results) -> dict[str, list[str]]:
    """The days of its files, and the machines they note, less what is part of another: some know the system alone."""
    files = list(run.environments())
    noted = sorted({machine for _, _, machine, _ in files if machine})
    machines = [one for one in noted if not any(one in other for other in noted if other != one)]
    return {"days": sorted({day for _, days, *_ in files for day in days}), "machines": machines}


def _pairs(first: Sequence[Ratio], second: Sequence[Ratio]) -> Pairs:
    """By place and way the two values, where both runs have them."""
    values = {(ratio.place, ratio.way): ratio.value for ratio in second}
    pairs: Pairs = {}
    for ratio in first:
        if ratio.kind != "error" and (ratio.place, ratio.way) in values:
            pairs.setdefault(ratio.place, {})[ratio.way] = ratio.value, values[ratio.place, ratio.way]
    return pairs


def _apart(one: float, other: float) -> float:
    return max(one, other) / min(one, other)


def _is_base(pair: tuple[float, float]) -> bool:
    return pair == (1, 1)


def _group(source: str, kind: str, pairs: Pairs) -> dict[str, Any]:
    problems = [ways for place, ways in pairs.items() if place[:2] == (source, kind)]
    found = [_apart(*pair) for ways in problems for pair in ways.values() if not _is_base(pair)] or [1.0]
    orders = [order for ways in problems for order in itertools.combinations(ways.values(), 2)]
    swapped = [(a, b) for a, b in orders if (a[0] - b[0]) * (a[1] - b[1]) < 0]
    clear = [(a, b) for a, b in swapped if max(_apart(a[0], b[0]), _apart(a[1], b[1])) > text.CLOSE]
    return {
        "source": source,
        "kind": kind,
        "ratios": len(found),
        "median": statistics.median(found) - 1,
        "most": max(found) - 1,
        "close": sum(x <= text.CLOSE for x in found) / len(found),
        "orders": len(orders),
        "swapped": len(swapped),
        "clearly swapped": len(clear),
    }


def _beyond(pairs: Pairs) -> list[dict[str, Any]]:
    rows = [
        dict(zip(("source", "kind", "problem", "way", "first", "second"), (*place, way, *pair), strict=True))
        for place, ways in pairs.items()
        for way, pair in ways.items()
        if _apart(*pair) > text.CLOSE
    ]
    return sorted(rows, key=lambda row: -_apart(row["first"], row["second"]))


def report(found: dict[str, Any], most: int | None = None) -> Iterator[str]:
    """The comparison as Markdown; of the rows beyond only the ``most`` furthest."""
    first, second = (
        f"of {', '.join(run['days'])} on {'; '.join(run['machines']) or 'a machine that is not noted'}"
        for run in found["runs"]
    )
    close = text.per_cent(found["close"] - 1)
    yield (
        f"The first run is {first}, the second {second}. Compared are ratios to the host's back-propagation or "
        "default, not seconds; the difference of two is the larger over the smaller, less 1. Swapped: pairs of ways on "
        f"one problem whose order differs between the runs; clearly, if either run has them more than {close} apart."
    )
    head = ("measured by", "of", "ratios", "difference, median", "most", f"within {close}")
    yield from text.table((*head, "pairs", "swapped", "clearly"), map(_cells, found["groups"]))
    if not found["beyond"]:
        yield f"No ratio differs by more than {close}."
        return
    shown = found["beyond"][:most]
    left = f", the {len(shown)} furthest" if len(shown) < len(found["beyond"]) else ""
    yield f"Beyond {close}: {len(found['beyond'])} ratios{left}:"
    head = ("measured by", "of", "problem", "way", "first", "second")
    columns = ("source", "kind", "problem", "way")
    yield from text.table(
        head,
        ((*(row[c] for c in columns), text.figure(row["first"]), text.figure(row["second"])) for row in shown),
    )


def _cells(group: dict[str, Any]) -> tuple[str, ...]:
    shares = (text.per_cent(group[name]) for name in ("median", "most", "close"))
    counts = (str(group[name]) for name in ("orders", "swapped", "clearly swapped"))
    return group["source"], group["kind"], str(group["ratios"]), *shares, *counts
