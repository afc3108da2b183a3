"""The figures of time and memory: torch, SDEs, JAX."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

import numpy as np

from benchmarks.envelope import Results, Row, Rows
from benchmarks.page import text
from benchmarks.page.ratios import grouped
from benchmarks.ways import BACKPROP, DEFAULT, REPLAY


def torch_times(results: Results) -> Rows:
    """A row a way, those with the least on the first set-up first."""
    setups = _setups(results)
    return [
        {
            "": f"`{way}`",
            **{setup: f"{rows[way]['ratio']:.2f}" if way in rows else "" for setup, rows in setups.items()},
            "error": f"{_first(setups)[way]['error']:.1e}" if way in _first(setups) else "",
        }
        for way in _ordered(setups, "ratio")
    ]


def torch_setups(results: Results) -> Rows:
    """What is solved for the times."""
    return _described(_setups(results))


def torch_memory(results: Results) -> Rows:
    """A row a way, those with the least on the first set-up first."""
    setups = _memories(results)

    def cell(row: Row | None) -> str:
        return f"{text.figure(row['held'] / row['state'])} / {row['rss'] / 2**20:.0f}" if row else ""

    ways = _ordered(setups, "rss")
    return [{"": f"`{way}`", **{name: cell(rows.get(way)) for name, rows in setups.items()}} for way in ways]


def memory_setups(results: Results) -> Rows:
    """What is solved for the memory."""
    return _described(_memories(results))


def _setups(results: Results) -> dict[str, dict[str, Row]]:
    """By set-up and way."""
    found = results.cells("torch_speed", "torch")
    return {name: {row["way"]: row for row in rows if "without" not in row} for name, rows in found.items()}


def _memories(results: Results) -> dict[str, dict[str, Row]]:
    groups = grouped(results.rows("torch_memory", "torch"), lambda row: row["setup"])
    return {name: {row["way"]: row for row in rows} for name, rows in groups.items()}


def _first(setups: dict[str, dict[str, Row]]) -> dict[str, Row]:
    return next(iter(setups.values()))


def _ordered(setups: dict[str, dict[str, Row]], column: str) -> list[str]:
    first, ways = _first(setups), dict.fromkeys(way for rows in setups.values() for way in rows)
    return sorted(ways, key=lambda way: first[way][column] if way in first else math.inf)


def _described(setups: dict[str, dict[str, Row]]) -> Rows:
    return [
        {
            "set-up": name,
            "solve": next(iter(rows.values()))["problem"],
            "accepted steps": str(max(row["accepted"] for row in rows.values())),
        }
        for name, rows in setups.items()
    ]


def sde(results: Results) -> Rows:
    """A row a method, where the Brownian object is not told the step."""
    rows = [row for row in results.rows("sde_speed", "torch") if not row["known_dt"]]
    groups = grouped(rows, lambda row: f"{row['sde_type']} `{row['method']}`, {row['noise']}")
    return [{"method": name, **_sde_cells(found)} for name, found in groups.items()]


def _sde_cells(rows: Rows) -> dict[str, str]:
    base = next(row["seconds"] for row in rows if row["way"] == BACKPROP)
    return {row["way"]: f"{row['seconds'] / base:.2f} / {text.figure(row['held'] / 2**20)}" for row in rows}


def jax(results: Results) -> Rows:
    """The cases by size and by whether tries are rejected, and by solver."""
    groups: dict[str, Rows] = {}
    for row in results.rows("jax_speed", "jax"):
        size, solver, *rest = row["case"].split(", ")
        for name in (f"{size}{', pulses' * ('pulses' in rest)}", solver, "all"):
            groups.setdefault(name, []).append(row)
    order = sorted(groups, key=lambda name: (name == "all", "," not in name and name[0].isupper()))
    return [{"": name, "cases": str(len(groups[name])), **_jax_cells(groups[name])} for name in order]


def _jax_cells(rows: Rows) -> dict[str, str]:
    return {
        f"than `{DEFAULT}`": text.mean([row["over_default"] for row in rows]),
        "than its best setting": text.mean([row["over_best"] for row in rows]),
        "compiling": f"{statistics.median(row['compiling'] for row in rows):.2f}",
        "memory": f"{statistics.median(row['memory'] / row['memory_default'] for row in rows):.2f}",
    }


def jax_memory(results: Results) -> Rows:
    """Temporary memory and time by number of checkpoints."""
    setups = results.cells("jax_memory", "jax")

    def cell(setup: str, way: str) -> str:
        row = next((row for row in setups[setup] if row["way"] == way), None)
        return f"{row['temporary'] / 1024:.0f} / {row['seconds'] * 1e3:.0f} / {row['over_host']:.2f}" if row else ""

    ways = dict.fromkeys(row["way"] for rows in setups.values() for row in rows)
    return [{"": f"`{way}`", **{setup: cell(setup, way) for setup in setups}} for way in ways]


def jax_memory_setups(results: Results) -> Rows:
    """What is solved for it."""
    return [
        {"set-up": name, "solve": rows[0]["text"], **{kind: str(rows[0][kind]) for kind in ("accepted", "rejected")}}
        for name, rows in results.cells("jax_memory", "jax").items()
    ]


def _batch(results: Results) -> Iterator[tuple[int, dict[str, float]]]:
    """By steps of the longest solve, the seconds by way."""
    for longest, rows in grouped(results.rows("jax_scaling", "jax"), lambda row: row["longest"]).items():
        yield int(longest), {row["way"]: row["seconds"] for row in rows}


def jax_scaling(results: Results) -> Rows:
    """How a batch's time grows with its longest solve."""
    return [
        {
            "steps of the longest": str(longest),
            **{f"`{way}`": f"{found * 1e3:.1f}" for way, found in seconds.items()},
            "times faster": f"{seconds[DEFAULT] / seconds[REPLAY]:.2f}",
        }
        for longest, seconds in _batch(results)
    ]


def growth(results: Results) -> Rows:
    """Exponents p of time = c · steps^p."""
    found = list(_batch(results))
    longest = np.log([most for most, _ in found])
    exponents = {way: np.polyfit(longest, np.log([s[way] for _, s in found]), 1)[0] for way in found[0][1]}
    return [{"": f"`{way}`", "time grows as": f"steps^{p:.2f}"} for way, p in exponents.items()]


def batch_ratios(results: Results) -> list[float]:
    """How many times faster the replay is, by length."""
    return [seconds[DEFAULT] / seconds[REPLAY] for _, seconds in _batch(results)]
