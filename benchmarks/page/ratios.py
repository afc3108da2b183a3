"""Every measured time, memory and error over that of the host's own back-propagation, or its default, in one form."""

import dataclasses
from collections.abc import Callable, Iterator
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
_OURS = (OURS, "aca", "quadrature", "its steps held", ADAPTIVE, "ACA", "Quadrature", "Seminorm")
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
    return [ratio for read in _READERS for ratio in read(results)]


def _over(source: str, kind: Kind, problem: str, found: dict[str, float], base: str, ours: str) -> Iterator[Ratio]:
    """Of what was found by way, where the base was found."""
    if found.get(base, 0) > 0:
        for way, value in found.items():
            side: Any = "ours" if way == ours else "variant" if way.startswith(_OURS) else "peer"
            if value > 0:
                yield Ratio(source, kind, problem, way, value / found[base], side)


def _by_way(
    source: str, kinds: dict[Kind, str], problems: dict[str, dict[str, Row]], base: str, ours: str
) -> Iterator[Ratio]:
    """Of rows by problem and way, by kind the column."""
    for kind, column in kinds.items():
        for problem, rows in problems.items():
            found = {way: row.get(column) or 0 for way, row in rows.items()}
            yield from _over(source, kind, problem, found, base, ours)


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Rows of a measurement: by kind the column, the problem's name made of the others, the ways that are 1 and ours.

    ``cells``: what the names of its cells begin with; ``where``: which rows are told.
    """

    source: str
    framework: str
    kinds: dict[Kind, str]
    problem: str
    base: str
    ours: str
    cells: str = ""
    where: Callable[[Row], bool] = bool

    def __call__(self, results: Results) -> Iterator[Ratio]:
        rows = [row for row in results.rows(self.source, self.framework) if row["cell"].startswith(self.cells)]
        problems = by_way([row for row in rows if self.where(row)], self.problem)
        yield from _by_way(self.source, self.kinds, problems, self.base, self.ours)


def _of_paper(name: str, kind: Kind, column: str) -> _Reader:
    experiment = name.partition(",")[0]
    where = (lambda row: row["way"] not in _OTHER_SOLVER) if kind == "error" else bool
    return _Reader("papers", "torch", {kind: column}, name, BACKPROP, "ACA", f"{experiment}/", where)


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


def _is_single(row: Row) -> bool:
    return not row["point"]


_LIMITS: dict[Kind, str] = {"time": "seconds", "memory": "temporary"}
_TRAINING: dict[Kind, str] = {"time": "seconds", "memory": "peak"}
_CURVES: dict[Kind, str] = {"time": "seconds", "memory": "held", "error": "error"}
_READERS: tuple[Callable[[Results], Iterator[Ratio]], ...] = (
    _Reader("torch_speed", "torch", {"time": "ratio", "error": "error"}, "{cell}", HOST, OURS),
    _Reader("torch_memory", "torch", {"memory": "rss"}, "{setup}", HOST, OURS),
    _Reader("tradeoff", "torch", {"time": "ratio", "memory": "peak"}, "torch, {cell}", HOST, OURS, where=_is_single),
    _Reader("tradeoff", "jax", {"time": "ratio", "memory": "held"}, "jax, {cell}", DEFAULT, REPLAY, where=_is_single),
    *(
        _Reader("training", "torch", _TRAINING, f"{model}, {{seed}}", base, OURS, cells=model)
        for model, base in (("latent ODE", HOST), ("flow", HOST), ("latent SDE", "sdeint"))
    ),
    _Reader("training", "jax", _TRAINING, "{model}, {seed}", "DirectAdjoint()", REPLAY),
    _Reader("sde_speed", "torch", {"time": "seconds", "memory": "held"}, "{cell}", BACKPROP, "aca"),
    _jax_speed,
    _jax_memory,
    _Reader("jax_max_steps", "jax", _LIMITS, "{batch}, {max_steps}", DEFAULT, REPLAY),
    _Reader("jax_libraries", "jax", {"time": "seconds"}, "{algorithm}", REPLAY, REPLAY),
    _Reader("jax_scaling", "jax", {"time": "seconds"}, "{longest} steps", DEFAULT, REPLAY),
    *(_Reader("curves", f, _CURVES, f"{f}, {{name}} {{size:g}}", base, "steptape ACA") for f, base in BASE.items()),
    _of_paper("toy, solver {solver}, α {α}, T {T}", "error", "relative, α"),
    _of_paper("van_der_pol, form {form}, rtol {rtol}", "error", "gradient error"),
    _of_paper("three_body, times {times}, seed {seed}", "time", "seconds"),
    _of_paper("digits, seed {seed}", "time", "seconds an epoch"),
    _of_paper("latent_ode, seed {seed}", "time", "ms a step"),
    *(
        _Reader("tasks", f, {"time": "seconds", "error": "error"}, f"{{task}}, {f}, rtol {{rtol:g}}", "default", "aca")
        for f in BASE
    ),
)


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
