"""The figures of the trainings: loss, time, evaluations and memory by way, and the plot of loss against time."""

import statistics
from collections.abc import Iterable
from typing import Any

import numpy as np

from benchmarks.envelope import Results, Row, Rows, grouped
from benchmarks.page import text
from benchmarks.page.panels import legend, panels, ticks
from benchmarks.ways import ADAPTIVE, OURS, RECURSIVE

MODELS = {**dict.fromkeys(("latent ODE", "flow", "latent SDE"), "torch"), "neural CDE": "jax"}
# By what a way's name has in it, the first of them; Okabe and Ito's colours.
_ROLES = (
    ("uadrature", "quadrature", "#D55E00"),
    ("eminorm", "the host's adjoint, seminorm", "#888888"),
    ("graphs", "the replay, graphs kept", "#009E73"),
    ("checkpoints=", "the replay, told how much to hold", "#56B4E9"),
    ("memory:", "the replay, told how much to hold", "#56B4E9"),
    (OURS, "the replay", "#0072B2"),
    (ADAPTIVE, "the replay", "#0072B2"),
    (RECURSIVE, "diffrax's default", "#CC79A7"),
    ("_adjoint", "the host's adjoint", "#E69F00"),
    ("Backsolve", "the host's adjoint", "#E69F00"),
    ("", "back-propagation", "#000000"),
)
_EXACT = ("the replay", "the replay, graphs kept", "the replay, told how much to hold")
_CONTINUOUS = ("the host's adjoint", "the host's adjoint, seminorm", "quadrature")


def _role(way: str) -> tuple[str, str]:
    return next((role, colour) for part, role, colour in _ROLES if part in way)


def _by_way(results: Results, model: str) -> dict[str, Rows]:
    return grouped([row for row in results.rows("training", MODELS[model]) if row["model"] == model], "{way}")


def table(results: Results, model: str) -> Rows:
    return [_row(way, rows) for way, rows in _by_way(results, model).items()]


def _row(way: str, rows: Rows) -> dict[str, str]:
    failed = next((row["failed"] for row in rows if "failed" in row), "")
    compiling = statistics.median(row["compiling"] for row in rows)
    peak = max((row["peak"] for row in rows if "peak" in row), default=0)
    return {
        "": f"`{way}`",
        rows[0]["measure"]: failed or text.spread([row["loss"] for row in rows]),
        "seconds": text.spread([row["seconds"] for row in rows])
        + (f", {compiling:.1f} of them compiling" if compiling else ""),
        "evaluations a gradient": text.figure(statistics.mean(row["evaluations"] for row in rows)),
        "peak, MiB": text.figure(peak / 2**20) if peak else "",
        "losses apart": _most(row["apart"] for row in rows),
    }


def _most(differences: Iterable[float]) -> str:
    return f"{max(differences):.0e}".replace("0e+00", "0")


def models(results: Results) -> Rows:
    """What is trained, and what became of the ways: the exact ones beside the host's adjoints and the quadrature."""
    found = []
    for model, ways in ((model, _by_way(results, model)) for model in MODELS):
        if ways:
            base = next(iter(ways.values()))
            exact = _most(row["apart"] for way, rows in ways.items() for row in rows if _role(way)[0] in _EXACT)
            others = (_against(way, rows, base) for way, rows in ways.items() if _role(way)[0] in _CONTINUOUS)
            row = {"model": model, "what is trained": f"{base[0]['text']}; {base[0]['steps']} steps"}
            row["losses of the replays apart from back-propagation's"] = f"at most {exact}"
            row["continuous adjoints: the last loss over back-propagation's"] = "; ".join(others)
            found.append(row)
    return found


def _against(way: str, rows: Rows, base: Rows) -> str:
    if any("failed" in row for row in rows):
        return f"`{way}` **fails**"
    changes = [row["loss"] / other["loss"] for row, other in zip(rows, base, strict=True)]
    worse = len(changes) > 1 and min(changes) > 1 + 0.01
    return f"`{way}` {text.spread(changes, text.change)}" + (", **worse in every seed**" if worse else "")


def drawn(results: Results) -> Any:
    """A panel a model: the median of the seeds, and between their least and most."""
    found = {model: ways for model in MODELS if (ways := _by_way(results, model))}
    lines = -(-len(found) // 2)
    figure, axes = panels(lines, 2, 10, 3.4 * lines)
    for axis, (model, ways) in zip(axes.flat, found.items(), strict=False):
        for way, rows in ways.items():
            _line(axis, way, rows)
        axis.set(title=model, xlabel="processor seconds", ylabel="held-out loss", xscale="log", yscale="log")
        for side in (axis.xaxis, axis.yaxis):
            ticks(side, 1, 2, 3, 5, 7)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    legend(figure, 4)
    return figure


def _line(axis: Any, way: str, rows: list[Row]) -> None:
    role, colour = _role(way)
    # Without the point at no time, which a logarithmic axis has no place for.
    curves = np.array([row["curve"][1:] for row in rows if "failed" not in row])
    if curves.size:
        seconds, losses = np.median(curves[..., 0], 0), curves[..., 1]
        style: dict[str, Any] = {"linewidth": 2.4, "zorder": 3} if role in _EXACT else {"linewidth": 1.2}
        axis.plot(seconds, np.median(losses, 0), color=colour, label=role, **style)
        axis.fill_between(seconds, losses.min(0), losses.max(0), color=colour, alpha=0.08, linewidth=0)
