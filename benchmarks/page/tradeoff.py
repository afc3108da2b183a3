"""Time against memory of the ways to one gradient: the table, and the plot that opens the page."""

import statistics
from typing import Any

import matplotlib.ticker

from benchmarks.envelope import Results, Row, Rows, by_way, grouped
from benchmarks.page import speed, text
from benchmarks.page.panels import legend, panels, ticks
from benchmarks.ways import ADAPTIVE, COMPILED, DEFAULT, GRAPHS, HOST, HOST_ADJOINT, OURS, REPLAY

# Errors beyond it stand in the plot.
TELLING = 1e-5
_MEMORY = {"torch": "peak", "jax": "held"}
# Okabe and Ito's colours, grey for their yellow, by the order of the ways.
_COLOURS = ("#000000", "#E69F00", "#888888", "#0072B2", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#8C564B")
_LOOKS = tuple(zip(_COLOURS, "osv*PDos^", strict=True))
_TICKS = (0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 8, 12)
# By framework: today's way, ours, and what it is wanted for.
_LEAN = f'{OURS}, checkpoints=8, graph="stage"'
_INSTEAD = (
    ("torch", HOST, GRAPHS, "faster, in the same memory"),
    ("torch", HOST, OURS, "in a fraction of the memory"),
    ("torch", HOST, COMPILED, "faster too, func being small"),
    ("torch", HOST, _LEAN, "in the least memory, func being large"),
    ("torch", HOST_ADJOINT, OURS, "exact, faster"),
    ("torch", HOST_ADJOINT, _LEAN, "exact, in less memory"),
    ("jax", DEFAULT, REPLAY, "faster"),
    ("jax", DEFAULT, f"{ADAPTIVE}(checkpoints=8)", "faster, in the same memory"),
    ("jax", "BacksolveAdjoint()", REPLAY, "exact, faster"),
)
_WRITTEN = {
    GRAPHS: '`adjoint_method="aca", adjoint_options={"memory": "graphs"}`',
    OURS: '`adjoint_method="aca"`',
    COMPILED: '`adjoint_method="aca", adjoint_options={"compile": True}`',
    _LEAN: '`adjoint_method="aca", adjoint_options={"checkpoints": 8, "graph": "stage"}`',
    REPLAY: f"`adjoint={REPLAY}`",
    f"{ADAPTIVE}(checkpoints=8)": f"`adjoint={ADAPTIVE}(checkpoints=8)`",
}
_TEXTS = {
    "torch": ("MiB, the most that both passes hold", "time over back-propagation's"),
    "jax": ("MiB, XLA's temporary memory", "time over the default adjoint's"),
}


def table(results: Results, framework: str) -> Rows:
    """A row a way: time over back-propagation's, memory in MiB and, where it is no rounding, the gradient's error."""
    return speed.by_setup(by_way(results.rows("tradeoff", framework), "{cell}"), _cell)


def _cell(row: Row) -> str:
    memory = " / ".join(text.figure(row[name] / 2**20) for name in ("held", "peak") if name in row)
    exact = row["error"] < (TELLING if "float32" in row["problem"] else 1e-11)
    return f"{row['ratio']:.2f} / {memory}" + ("" if exact else f" / {row['error']:.0e}")


def instead(results: Results) -> Rows:
    """What a call of today's costs, and ours in its place: the range of the ratios over the problems."""
    found: Rows = []
    for framework, today, ours, why in _INSTEAD:
        problems = by_way(results.rows("tradeoff", framework), "{cell}").values()
        pairs = [(ways[today], ways[ours]) for ways in problems if {today, ours} <= ways.keys()]
        if pairs:
            ratios = {
                kind: [new[column] / old[column] for old, new in pairs]
                for kind, column in (("time", "ratio"), ("memory", _MEMORY[framework]))
            }
            found.append(
                {"today": f"`{today}`", "wanted": why, "to write": _WRITTEN[ours]}
                | {f"{kind}, of today's": text.ends(values, 2) for kind, values in ratios.items()}
                | {"today's error": _error(max(old["error"] for old, _ in pairs))}
            )
    return found


def _error(error: float) -> str:
    return f"{error:.0e}" if error > TELLING else f"below {TELLING:g}"


def setups(results: Results, framework: str) -> Rows:
    return [
        {"problem": name, "solve": rows[0]["problem"], "accepted steps": str(rows[0]["accepted"])}
        for name, rows in grouped(results.rows("tradeoff", framework), "{cell}").items()
    ]


def drawn(results: Results, framework: str) -> Any:
    """A panel a problem: a way is a point, or a line of points."""
    problems, memory = grouped(results.rows("tradeoff", framework), "{cell}"), _MEMORY[framework]
    figure, [axes] = panels(1, len(problems), 10, 4.8, sharey=True)
    for axis, (name, rows) in zip(axes, problems.items(), strict=True):
        middle = statistics.geometric_mean(end(row[memory] for row in rows) for end in (min, max)) / 2**20
        for (line, points), look in zip(grouped(rows, "{line}").items(), _LOOKS, strict=False):
            places = [(row, (row[memory] / 2**20, row["ratio"])) for row in points]
            _line(axis, line, look, places, middle, framework == "torch")
        axis.set(title=f"{name}: {rows[0]['accepted']} steps", xlabel=_TEXTS[framework][0], xscale="log", yscale="log")
        ticks(axis.xaxis, 1, 2, 5)
        axis.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axis.set_yticks(_TICKS, [f"{x:g}" for x in _TICKS])
        axis.margins(0.1)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(_TEXTS[framework][1])
    legend(figure, 3)
    return figure


def _line(
    axis: Any, line: str, look: tuple[str, str], points: list[tuple[Row, Any]], middle: float, alone: bool
) -> None:
    colour, marker = look
    # Hollow and large, for ours to be seen where a peer is just there.
    ours = line.startswith((OURS, ADAPTIVE))
    style: dict[str, Any] = {"markersize": 9, "markerfacecolor": "none", "zorder": 2}
    if ours:
        style = {"markersize": 6, "zorder": 3} if len(points) > 1 else {"markersize": 9, "zorder": 4}
    places = zip(*(place for _, place in points), strict=True)
    axis.plot(*places, "-", color=colour, marker=marker, linewidth=1.2, label=line, **style)
    for row, place in points:
        off = row["error"] > TELLING
        # Where peers are lines as well, theirs are to the left of the points.
        left, words = (place[0] > middle, f"error {row['error']:.0e}") if off else (ours == alone, row["point"])
        where: dict[str, Any] = {"xytext": (-7, 2), "ha": "right"} if left else {"xytext": (6, 2)}
        if not off and "/" in words:
            where = {"xytext": (0, 6), "ha": "center"}
        axis.annotate(words, place, textcoords="offset points", fontsize=8, color=colour, **where).set_in_layout(False)
