"""Every measured time, memory and error over that of the host's own back-propagation, or its default, in one form."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal

from benchmarks.peers import HOST, OURS
from benchmarks.results import curves
from benchmarks.results.read import SOURCES, Results

Kind = Literal["time", "memory", "error"]
RECURSIVE, TUNED, ADAPTIVE = "RecursiveCheckpointAdjoint()", "its best setting", "AdaptiveCheckpointAdjoint()"
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
        """The code that measured it: of the papers, the experiment's."""
        script = SOURCES[self.source].script
        return f"{script}/{self.problem.partition(',')[0]}.py" if self.source == "papers" else script


def ratios(results: Results) -> list[Ratio]:
    """All that a folder holds, by the order of its sources."""
    return [ratio for name, read in _READERS.items() if results.has(name) for ratio in read(results)]


def _over(source: str, kind: Kind, problem: str, found: dict[str, float], base: str, ours: str) -> Iterator[Ratio]:
    """Of what was found by way, where the base was found."""
    if found.get(base, 0) > 0:
        for way, value in found.items():
            side: Any = "ours" if way == ours else "variant" if _is_ours(way) else "peer"
            if value > 0:
                yield Ratio(source, kind, problem, way, value / found[base], side)


def _is_ours(way: str) -> bool:
    return way.startswith((OURS, "aca", "quadrature", "its steps held", ADAPTIVE[:-1], "ACA", "Quadrature", "Seminorm"))


def _torch_speed(results: Results) -> Iterator[Ratio]:
    found = results.data("torch_speed")
    columns: list[tuple[str, Kind, str]] = [("speeds", "time", "ratio"), ("speeds", "error", "error")]
    for table, kind, column in [*columns, ("memories", "memory", "rss")]:
        rows = [row for row in found[table] if not row["without"]]
        for setup in dict.fromkeys(row["setup"] for row in rows):
            ways = {row["method"]: row[column] for row in rows if row["setup"] == setup}
            yield from _over("torch_speed", kind, setup, ways, HOST, OURS)


def _sde_speed(results: Results) -> Iterator[Ratio]:
    kinds: dict[Kind, str] = {"time": "seconds", "memory": "held"}
    for row in results.data("sde_speed")["rows"]:
        problem = f"{row['sde_type']} {row['method']}{', dt told to bm' * row['known_dt']}"
        for kind, column in kinds.items():
            ways = {way: figures[column] for way, figures in row["ways"].items()}
            yield from _over("sde_speed", kind, problem, ways, "back-propagation", "aca")


def _jax_speed(results: Results) -> Iterator[Ratio]:
    for row in results.data("jax_speed")["rows"]:
        times = {RECURSIVE: row["over_default"], TUNED: row["over_best"], ADAPTIVE: 1.0}
        yield from _over("jax_speed", "time", row["case"], times, RECURSIVE, ADAPTIVE)
        memory = {RECURSIVE: row["memory_default"], ADAPTIVE: row["memory"]}
        yield from _over("jax_speed", "memory", row["case"], memory, RECURSIVE, ADAPTIVE)


def _jax_memory(results: Results) -> Iterator[Ratio]:
    for setup in results.data("jax_memory")["setups"]:
        for k in dict.fromkeys(row["checkpoints"] for row in setup["methods"]):
            rows = [row for row in setup["methods"] if row["checkpoints"] == k]
            base = next(row["method"] for row in rows if not row["ours"])
            ours = next(row["method"] for row in rows if row["ours"])
            problem = f"{setup['setup']}, {'default' if k is None else f'checkpoints={k}'}"
            times = {row["method"]: 1 / row["over_host"] for row in rows}
            yield from _over("jax_memory", "time", problem, times, base, ours)
            memory = {row["method"]: row["temporary"] for row in rows}
            yield from _over("jax_memory", "memory", problem, memory, base, ours)


def _jax_scaling(results: Results) -> Iterator[Ratio]:
    found = results.data("jax_scaling")
    for n, (_, longest) in enumerate(found["counts"]):
        times = {way: seconds[n] for way, seconds in found["seconds"].items()}
        yield from _over("jax_scaling", "time", f"{longest} steps", times, RECURSIVE, ADAPTIVE)


def _papers(results: Results) -> Iterator[Ratio]:
    columns: list[tuple[str, Kind, str, tuple[str, ...]]] = [
        ("toy", "error", "relative, α", ("solver", "α", "T")),
        ("van_der_pol", "error", "gradient error", ("form", "rtol")),
        ("three_body", "time", "seconds", ("times", "seed")),
        ("digits", "time", "seconds an epoch", ("seed",)),
        ("latent_ode", "time", "ms a step", ("seed",)),
    ]
    for experiment, kind, column, keys in columns:
        groups: dict[str, dict[str, float]] = {}
        for entry in results.lines("papers"):
            for row in entry["rows"] if entry["experiment"] == experiment else ():
                problem = ", ".join([experiment, *(f"{key} {row[key]}" for key in keys)])
                if kind != "error" or row["way"] not in _OTHER_SOLVER:
                    groups.setdefault(problem, {})[row["way"]] = row.get(column) or 0
        for problem, ways in groups.items():
            yield from _over("papers", kind, problem, ways, "back-propagation", "ACA")


def _tasks(results: Results) -> Iterator[Ratio]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in results.lines("tasks"):
        if not row["failed"]:
            groups.setdefault(f"{row['task']}, {row['backend']}, rtol {row['rtol']:g}", []).append(row)
    kinds: dict[Kind, str] = {"time": "seconds", "error": "error"}
    for problem, rows in groups.items():
        for kind, column in kinds.items():
            yield from _over("tasks", kind, problem, {row["method"]: row[column] for row in rows}, "default", "aca")


def _curves(results: Results) -> Iterator[Ratio]:
    columns: dict[Kind, str] = {"time": "seconds", "memory": "held", "error": "error"}
    for backend, base in curves.BASE.items():
        for part in ("precision", "scaling"):
            for name, sizes in curves.cells(results, backend, part).items():
                for size, rows in sizes.items():
                    for kind, column in columns.items():
                        ways = {way: row.get(column) or 0 for way, row in rows.items()}
                        yield from _over("curves", kind, f"{backend}, {name} {size:g}", ways, base, curves.OURS)


_READERS: dict[str, Callable[[Results], Iterator[Ratio]]] = {
    "torch_speed": _torch_speed,
    "sde_speed": _sde_speed,
    "jax_speed": _jax_speed,
    "jax_memory": _jax_memory,
    "jax_scaling": _jax_scaling,
    "curves": _curves,
    "papers": _papers,
    "tasks": _tasks,
}
