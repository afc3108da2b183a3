"""Every measured time, memory and error over that of the host's own back-propagation, or its default, in one form."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

from benchmarks.envelope import Results, Row, Rows, by_way
from benchmarks.measurements import MEASUREMENTS
from benchmarks.page import text
from benchmarks.ways import ADAPTIVE, BACKPROP, BASE, DEFAULT, HOST, OURS, REPLAY

Kind = Literal["time", "memory", "error"]
_NAMES = {("tasks", "default"): "adjoint", ("tasks", "seminorm"): "adjoint, seminorm"}
KINDS, MARGIN = ("time", "memory", "error"), 0.01
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


def _by_way(
    source: str, kinds: dict[Kind, str], problems: dict[str, dict[str, Row]], base: str, ours: str
) -> Iterator[Ratio]:
    """Of rows by problem and way, by kind the column."""
    for kind, column in kinds.items():
        for problem, rows in problems.items():
            found = {way: row.get(column) or 0 for way, row in rows.items()}
            yield from _over(source, kind, problem, found, base, ours)


def _torch(results: Results) -> Iterator[Ratio]:
    speed = by_way(results.rows("torch_speed", "torch"), "{cell}")
    yield from _by_way("torch_speed", {"time": "ratio", "error": "error"}, speed, HOST, OURS)
    memory = by_way(results.rows("torch_memory", "torch"), "{setup}")
    yield from _by_way("torch_memory", {"memory": "rss"}, memory, HOST, OURS)


def _sde_speed(results: Results) -> Iterator[Ratio]:
    problems = by_way(results.rows("sde_speed", "torch"), "{cell}")
    yield from _by_way("sde_speed", {"time": "seconds", "memory": "held"}, problems, BACKPROP, "aca")


def _jax_speed(results: Results) -> Iterator[Ratio]:
    for row in results.rows("jax_speed", "jax"):
        times = {DEFAULT: row["over_default"], TUNED: row["over_best"], REPLAY: 1.0}
        yield from _over("jax_speed", "time", row["case"], times, DEFAULT, REPLAY)
        memory = {DEFAULT: row["memory_default"], REPLAY: row["memory"]}
        yield from _over("jax_speed", "memory", row["case"], memory, DEFAULT, REPLAY)


def _jax_memory(results: Results) -> Iterator[Ratio]:
    for name, rows in by_way(results.rows("jax_memory", "jax"), "{setup}, checkpoints={checkpoints}").items():
        problem = name.replace("checkpoints=None", "default")
        base, ours = (next(way for way, row in rows.items() if row["ours"] == ours) for ours in (False, True))
        times = {way: 1 / row["over_host"] for way, row in rows.items()}
        yield from _over("jax_memory", "time", problem, times, base, ours)
        yield from _by_way("jax_memory", {"memory": "temporary"}, {problem: rows}, base, ours)


def _jax_scaling(results: Results) -> Iterator[Ratio]:
    problems = by_way(results.rows("jax_scaling", "jax"), "{longest} steps")
    yield from _by_way("jax_scaling", {"time": "seconds"}, problems, DEFAULT, REPLAY)


def _papers(results: Results) -> Iterator[Ratio]:
    columns: list[tuple[str, Kind, str]] = [
        ("toy, solver {solver}, α {α}, T {T}", "error", "relative, α"),
        ("van_der_pol, form {form}, rtol {rtol}", "error", "gradient error"),
        ("three_body, times {times}, seed {seed}", "time", "seconds"),
        ("digits, seed {seed}", "time", "seconds an epoch"),
        ("latent_ode, seed {seed}", "time", "ms a step"),
    ]
    for name, kind, column in columns:
        experiment = f"{name.partition(',')[0]}/"
        rows = [row for row in results.rows("papers", "torch") if row["cell"].startswith(experiment)]
        rows = [row for row in rows if kind != "error" or row["way"] not in _OTHER_SOLVER]
        yield from _by_way("papers", {kind: column}, by_way(rows, name), BACKPROP, "ACA")


def _tasks(results: Results) -> Iterator[Ratio]:
    for framework in BASE:
        problems = by_way(results.rows("tasks", framework), f"{{task}}, {framework}, rtol {{rtol:g}}")
        yield from _by_way("tasks", {"time": "seconds", "error": "error"}, problems, "default", "aca")


def _curves(results: Results) -> Iterator[Ratio]:
    kinds: dict[Kind, str] = {"time": "seconds", "memory": "held", "error": "error"}
    for framework, base in BASE.items():
        problems = by_way(results.rows("curves", framework), f"{framework}, {{name}} {{size:g}}")
        yield from _by_way("curves", kinds, problems, base, "steptape ACA")


def _jax_max_steps(results: Results) -> Iterator[Ratio]:
    limits = by_way(results.rows("jax_max_steps", "jax"), "{batch}, {max_steps}")
    yield from _by_way("jax_max_steps", {"time": "seconds", "memory": "temporary"}, limits, DEFAULT, REPLAY)


_READERS = (_torch, _sde_speed, _jax_speed, _jax_memory, _jax_scaling, _jax_max_steps, _curves, _papers, _tasks)


def better(results: Results, measurement: str) -> Rows:
    """Where a peer takes less than the replay: a row a peer and kind; ``least``: what they are ordered by."""
    found = [ratio for ratio in ratios(results) if ratio.source == measurement]
    ours = {ratio.place: ratio.value for ratio in found if ratio.side == "ours"}
    groups: dict[tuple[str, str, str], list[float]] = {}
    for ratio in found:
        if ratio.side == "peer" and ratio.place in ours:
            name = _NAMES.get((ratio.source, ratio.way), ratio.way)
            groups.setdefault((ratio.kind, name, ratio.script), []).append(ratio.value / ours[ratio.place])
    rows = []
    for (kind, name, script), quotients in groups.items():
        below = [x for x in quotients if x < 1 - MARGIN]
        if below:
            row = {"less of": kind, "peer": name, "in": f"{len(below)} of {len(quotients)}"}
            row["takes of ours, median (least to most) of these"] = text.spread(below)
            rows.append({**row, "script": script, "least": min(below)} if script else {**row, "least": min(below)})
    return rows
