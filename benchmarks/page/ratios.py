"""Every measured time, memory and error over that of the host's own back-propagation, or its default, in one form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal

from benchmarks.envelope import Results, Row, Rows
from benchmarks.measurements import MEASUREMENTS
from benchmarks.ways import ADAPTIVE, BACKPROP, BASE, DEFAULT, HOST, OURS, REPLAY

Kind = Literal["time", "memory", "error"]
TUNED = "its best setting"
_OTHER_SOLVER = ("through the search", "its steps held")
Place = tuple[str, Kind, str]


@dataclasses.dataclass(frozen=True)
class Ratio:
    """One way on one problem. ``value``: over the way on the same problem that has 1. ``side``: ours is the replay."""

    source: str
    kind: Kind
    problem: str
    way: str
    value: float
    side: Literal["ours", "peer", "variant"] = "peer"

    @property
    def place(self) -> Place:
        """The problem with all that it was compared in."""
        return self.source, self.kind, self.problem

    @property
    def script(self) -> str:
        """The code that measured it, where the measurement has several: of the papers, the experiment's."""
        papers = f"{MEASUREMENTS['papers'].script}/{self.problem.partition(',')[0]}.py"
        return papers if self.source == "papers" else ""


def ratios(results: Results) -> list[Ratio]:
    """All that there are, by measurement."""
    return [ratio for read in _READERS for ratio in read(results)]


def _over(source: str, kind: Kind, problem: str, found: dict[str, float], base: str, ours: str) -> Iterator[Ratio]:
    """Of what was found by way, where the base was found."""
    if found.get(base, 0) > 0:
        for way, value in found.items():
            side: Any = "ours" if way == ours else "variant" if _is_ours(way) else "peer"
            if value > 0:
                yield Ratio(source, kind, problem, way, value / found[base], side)


def _is_ours(way: str) -> bool:
    return way.startswith((OURS, "aca", "quadrature", "its steps held", ADAPTIVE, "ACA", "Quadrature", "Seminorm"))


def grouped(rows: Rows, name: Callable[[Row], str]) -> dict[str, Rows]:
    """The rows by a name that is made of each."""
    groups: dict[str, Rows] = {}
    for row in rows:
        groups.setdefault(name(row), []).append(row)
    return groups


def _by_way(source: str, groups: dict[str, Rows], kinds: dict[Kind, str], base: str, ours: str) -> Iterator[Ratio]:
    """Of rows by problem, each with a way, and by kind the column."""
    for kind, column in kinds.items():
        for problem, rows in groups.items():
            yield from _over(source, kind, problem, {row["way"]: row.get(column) or 0 for row in rows}, base, ours)


def _torch(results: Results) -> Iterator[Ratio]:
    cells = results.cells("torch_speed", "torch").items()
    able = {setup: [row for row in rows if "without" not in row] for setup, rows in cells}
    yield from _by_way("torch_speed", able, {"time": "ratio", "error": "error"}, HOST, OURS)
    held = grouped(results.rows("torch_memory", "torch"), lambda row: row["setup"])
    yield from _by_way("torch_memory", held, {"memory": "rss"}, HOST, OURS)


def _sde_speed(results: Results) -> Iterator[Ratio]:
    groups = grouped(
        results.rows("sde_speed", "torch"),
        lambda row: f"{row['sde_type']} {row['method']}{', dt told to bm' * row['known_dt']}",
    )
    yield from _by_way("sde_speed", groups, {"time": "seconds", "memory": "held"}, BACKPROP, "aca")


def _jax_speed(results: Results) -> Iterator[Ratio]:
    for row in results.rows("jax_speed", "jax"):
        times = {DEFAULT: row["over_default"], TUNED: row["over_best"], REPLAY: 1.0}
        yield from _over("jax_speed", "time", row["case"], times, DEFAULT, REPLAY)
        memory = {DEFAULT: row["memory_default"], REPLAY: row["memory"]}
        yield from _over("jax_speed", "memory", row["case"], memory, DEFAULT, REPLAY)


def _jax_memory(results: Results) -> Iterator[Ratio]:
    def problem(row: Row) -> str:
        k = row["checkpoints"]
        return f"{row['setup']}, {'default' if k is None else f'checkpoints={k}'}"

    for name, rows in grouped(results.rows("jax_memory", "jax"), problem).items():
        base = next(row["way"] for row in rows if not row["ours"])
        ours = next(row["way"] for row in rows if row["ours"])
        times = {row["way"]: 1 / row["over_host"] for row in rows}
        yield from _over("jax_memory", "time", name, times, base, ours)
        yield from _by_way("jax_memory", {name: rows}, {"memory": "temporary"}, base, ours)


def _jax_scaling(results: Results) -> Iterator[Ratio]:
    groups = grouped(results.rows("jax_scaling", "jax"), lambda row: f"{row['longest']} steps")
    yield from _by_way("jax_scaling", groups, {"time": "seconds"}, DEFAULT, REPLAY)


def _papers(results: Results) -> Iterator[Ratio]:
    columns: list[tuple[str, Kind, str, tuple[str, ...]]] = [
        ("toy", "error", "relative, α", ("solver", "α", "T")),
        ("van_der_pol", "error", "gradient error", ("form", "rtol")),
        ("three_body", "time", "seconds", ("times", "seed")),
        ("digits", "time", "seconds an epoch", ("seed",)),
        ("latent_ode", "time", "ms a step", ("seed",)),
    ]
    cells = results.cells("papers", "torch").items()
    for experiment, kind, column, keys in columns:
        rows = [row for cell, found in cells for row in found if cell.startswith(f"{experiment}/")]
        rows = [row for row in rows if kind != "error" or row["way"] not in _OTHER_SOLVER]
        groups = grouped(rows, lambda row: ", ".join([experiment, *(f"{key} {row[key]}" for key in keys)]))  # noqa: B023
        yield from _by_way("papers", groups, {kind: column}, BACKPROP, "ACA")


def _tasks(results: Results) -> Iterator[Ratio]:
    for framework in BASE:
        rows = results.rows("tasks", framework)
        groups = grouped(rows, lambda row: f"{row['task']}, {framework}, rtol {row['rtol']:g}")  # noqa: B023
        yield from _by_way("tasks", groups, {"time": "seconds", "error": "error"}, "default", "aca")


def _curves(results: Results) -> Iterator[Ratio]:
    kinds: dict[Kind, str] = {"time": "seconds", "memory": "held", "error": "error"}
    for framework, base in BASE.items():
        rows = results.rows("curves", framework)
        groups = grouped(rows, lambda row: f"{framework}, {row['name']} {row['size']:g}")  # noqa: B023
        yield from _by_way("curves", groups, kinds, base, "steptape ACA")


_READERS = (_torch, _sde_speed, _jax_speed, _jax_memory, _jax_scaling, _curves, _papers, _tasks)
