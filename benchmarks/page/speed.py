"""The figures of time and memory: torch, SDEs, JAX."""

import math
import statistics
from collections.abc import Callable, Iterable

import numpy as np

from benchmarks.envelope import Results, Row, Rows, by_way, grouped
from benchmarks.page import text
from benchmarks.ways import BACKPROP, DEFAULT, REPLAY


def by_setup(setups: dict[str, dict[str, Row]], cell: Callable[[Row], str], ways: Iterable[str] | None = None) -> Rows:
    """A row a way, a column a set-up."""
    return [
        {"": f"`{way}`", **{name: cell(rows[way]) if way in rows else "" for name, rows in setups.items()}}
        for way in ways or _ways(setups)
    ]


def _ways(setups: dict[str, dict[str, Row]], column: str = "") -> list[str]:
    """All that there are, those with the least in a column on the first set-up first."""
    first = next(iter(setups.values()))
    ways = list(dict.fromkeys(way for rows in setups.values() for way in rows))
    return sorted(ways, key=lambda way: first[way][column] if way in first else math.inf) if column else ways


def torch_times(results: Results) -> Rows:
    """Ratios, and the error on the first set-up."""
    setups = by_way(results.rows("torch_speed", "torch"), "{cell}")
    first, ways = next(iter(setups.values())), _ways(setups, "ratio")
    found = by_setup(setups, lambda row: f"{row['ratio']:.2f}", ways)
    errors = (f"{first[way]['error']:.1e}" if way in first else "" for way in ways)
    return [{**row, "error": error} for row, error in zip(found, errors, strict=True)]


def torch_memory(results: Results) -> Rows:
    setups = by_way(results.rows("torch_memory", "torch"), "{setup}")

    def cell(row: Row) -> str:
        return f"{text.figure(row['held'] / row['state'])} / {row['rss'] / 2**20:.0f}"

    return by_setup(setups, cell, _ways(setups, "rss"))


def setups(results: Results, measurement: str, name: str) -> Rows:
    return [
        {
            "set-up": name,
            "solve": next(iter(rows.values()))["problem"],
            "accepted steps": str(max(row["accepted"] for row in rows.values())),
        }
        for name, rows in by_way(results.rows(measurement, "torch"), name).items()
    ]


def sde(results: Results) -> Rows:
    """A row a method, where the Brownian object is not told the step."""
    found = []
    for rows in grouped([row for row in results.rows("sde_speed", "torch") if not row["known_dt"]], "{cell}").values():
        base = next(row["seconds"] for row in rows if row["way"] == BACKPROP)
        cells = {row["way"]: f"{row['seconds'] / base:.2f} / {text.figure(row['held'] / 2**20)}" for row in rows}
        found.append({"method": "{sde_type} `{method}`, {noise}".format(**rows[0]), **cells})
    return found


def jax(results: Results) -> Rows:
    """The cases by size and by whether tries are rejected, and by solver."""
    groups: dict[str, Rows] = {}
    for row in results.rows("jax_speed", "jax"):
        size, solver, *rest = row["case"].split(", ")
        for name in (f"{size}{', pulses' * ('pulses' in rest)}", solver, "all"):
            groups.setdefault(name, []).append(row)
    order = sorted(groups, key=lambda name: (name == "all", "," not in name and name[0].isupper()))
    return [
        {
            "": name,
            "cases": str(len(groups[name])),
            f"than `{DEFAULT}`": text.mean([row["over_default"] for row in groups[name]]),
            "than its best setting": text.mean([row["over_best"] for row in groups[name]]),
            "compiling": f"{statistics.median(row['compiling'] for row in groups[name]):.2f}",
            "memory": f"{statistics.median(row['memory'] / row['memory_default'] for row in groups[name]):.2f}",
        }
        for name in order
    ]


def jax_memory(results: Results) -> Rows:
    """Temporary memory and time by number of checkpoints."""

    def cell(row: Row) -> str:
        return f"{row['temporary'] / 1024:.0f} / {row['seconds'] * 1e3:.0f} / {row['over_host']:.2f}"

    return by_setup(by_way(results.rows("jax_memory", "jax"), "{setup}"), cell)


def jax_memory_setups(results: Results) -> Rows:
    return [
        {"set-up": name, "solve": rows[0]["text"], **{kind: str(rows[0][kind]) for kind in ("accepted", "rejected")}}
        for name, rows in results.cells("jax_memory", "jax").items()
    ]


def batch(results: Results) -> dict[int, dict[str, float]]:
    """By steps of the longest solve, the seconds by way."""
    found = by_way(results.rows("jax_scaling", "jax"), "{longest}").items()
    return {int(longest): {way: row["seconds"] for way, row in rows.items()} for longest, rows in found}


def jax_scaling(results: Results) -> Rows:
    """How a batch's time grows with its longest solve."""
    return [
        {
            "steps of the longest": str(longest),
            **{f"`{way}`": f"{found * 1e3:.1f}" for way, found in seconds.items()},
            "times faster": f"{seconds[DEFAULT] / seconds[REPLAY]:.2f}",
        }
        for longest, seconds in batch(results).items()
    ]


def growth(results: Results) -> Rows:
    """Exponents p of time = c · steps^p."""
    found, rows = batch(results), []
    for way in (DEFAULT, REPLAY):
        power = np.polyfit(np.log(list(found)), np.log([seconds[way] for seconds in found.values()]), 1)[0]
        rows.append({"": f"`{way}`", "time grows as": f"steps^{power:.2f}"})
    return rows


def jax_max_steps(results: Results) -> Rows:
    """Time and memory of the same steps by their limit."""

    def cell(row: Row) -> str:
        return f"{row['seconds'] * 1e3:.2f} / {row['temporary'] / 2**20:.3g}"

    found = by_way(results.rows("jax_max_steps", "jax"), "{batch}, {max_steps}").items()
    return [
        {"batch, `max_steps`": name, **{f"`{way}`": cell(row) for way, row in rows.items()}} for name, rows in found
    ]
