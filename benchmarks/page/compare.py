"""Two runs of the same measurements: how far apart are the ratios that both hold, and do the ways keep their order?"""

import itertools
import statistics
from collections.abc import Sequence

from benchmarks import envelope
from benchmarks.envelope import Entry, Results, Row, Rows
from benchmarks.page import text
from benchmarks.page.ratios import Place, Ratio, ratios

Pairs = dict[Place, dict[str, tuple[float, float]]]
NAME = "repeatability"


def compared(first: Results, second: Results) -> list[Entry]:
    """The comparison as figures. Errors are left out: both runs compute the same numbers."""
    pairs = _pairs(ratios(first), ratios(second))
    origins = [envelope.origin(run.entries) for run in (first, second)]
    cells = {
        "runs": [{"day": origin["day"], "machine": origin["machine"]} for origin in origins],
        "groups": [_group(*group, pairs) for group in dict.fromkeys(place[:2] for place in pairs)],
        "beyond": _beyond(pairs),
    }
    both = envelope.origin([*first.entries, *second.entries])
    return [{"measurement": NAME, "cell": cell, **both, "rows": rows} for cell, rows in cells.items()]


def joined(kept: Sequence[Entry], new: Sequence[Entry]) -> list[Entry]:
    """A comparison, and what an earlier one found of other measurements."""
    before = {figure["cell"]: figure for figure in kept if figure["measurement"] == NAME}
    if not before:
        return [*new]
    again = {row["measurement"] for figure in new if figure["cell"] == "groups" for row in figure["rows"]}
    found = []
    for figure in new:
        earlier, rows = before[figure["cell"]], figure["rows"]
        if figure["cell"] == "runs":
            pairs = zip(earlier["rows"], rows, strict=True)
            rows = [{name: envelope.joined((a[name], b[name])) for name in b} for a, b in pairs]
        else:
            rows = [*rows, *(row for row in earlier["rows"] if row["measurement"] not in again)]
        if figure["cell"] == "beyond":
            rows = sorted(rows, key=lambda row: -_apart(row["first"], row["second"]))
        found.append({**figure, **envelope.origin([earlier, figure]), "rows": rows})
    return found


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


def _group(source: str, kind: str, pairs: Pairs) -> Row:
    problems = [ways.values() for place, ways in pairs.items() if place[:2] == (source, kind)]
    # A pair of 1 is that of the way that the others are compared with.
    found = [_apart(*pair) for ways in problems for pair in ways if pair != (1, 1)] or [1.0]
    orders = [order for ways in problems for order in itertools.combinations(ways, 2)]
    swapped = [(a, b) for a, b in orders if (a[0] - b[0]) * (a[1] - b[1]) < 0]
    clear = [(a, b) for a, b in swapped if max(_apart(a[0], b[0]), _apart(a[1], b[1])) > text.CLOSE]
    shares = {"median": statistics.median(found) - 1, "most": max(found) - 1}
    shares["close"] = sum(x <= text.CLOSE for x in found) / len(found)
    counts = {"orders": len(orders), "swapped": len(swapped), "clearly swapped": len(clear)}
    return {"measurement": source, "kind": kind, "ratios": len(found), **shares, **counts}


def _beyond(pairs: Pairs) -> Rows:
    columns = ("measurement", "kind", "problem", "way", "first", "second")
    found = [(*place, way, *pair) for place, ways in pairs.items() for way, pair in ways.items()]
    found = [cells for cells in found if _apart(*cells[-2:]) > text.CLOSE]
    return [dict(zip(columns, cells, strict=True)) for cells in sorted(found, key=lambda cells: -_apart(*cells[-2:]))]


def report(runs: Rows, groups: Rows, beyond: Rows, most: int | None = None) -> str:
    """The comparison as Markdown; of the rows beyond only the ``most`` furthest."""
    first, second = (f"of {run['day']} on {run['machine'] or 'a machine that is not noted'}" for run in runs)
    close = text.per_cent(text.CLOSE - 1)
    names = {
        "median": "difference, median",
        "close": f"within {close}",
        "orders": "pairs",
        "clearly swapped": "clearly",
    }
    shares = ("median", "most", "close")
    groups = [{**group, **{name: text.per_cent(group[name]) for name in shares}} for group in groups]
    parts = [
        f"The first run is {first}, the second {second}. Compared are ratios to the host's back-propagation or "
        "default, not seconds; the difference of two is the larger over the smaller, less 1. Swapped: pairs of ways on "
        f"one problem whose order differs between the runs; clearly, if either run has them more than {close} apart.",
        text.table([_named(group, names) for group in groups]),
    ]
    shown = [{**row, **{name: text.figure(row[name]) for name in ("first", "second")}} for row in beyond[:most]]
    if shown:
        left = f", the {len(shown)} furthest" if len(shown) < len(beyond) else ""
        parts += [f"Beyond {close}: {len(beyond)} ratios{left}:", text.table([_named(row) for row in shown])]
    return "\n\n".join(parts if shown else [*parts, f"No ratio differs by more than {close}."])


def _named(row: Row, names: dict[str, str] | None = None) -> Row:
    names = {"measurement": "measured by", "kind": "of", **(names or {})}
    return {names.get(name, name): value for name, value in row.items()}
