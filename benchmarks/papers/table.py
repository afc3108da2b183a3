"""The report: for each experiment what its paper claims beside what was found, the rows, and a plot."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure

from benchmarks.markdown import table
from benchmarks.measure import machine, version
from benchmarks.papers.ways import Row

EXPERIMENTS = (
    "toy",
    "van_der_pol",
    "three_body",
    "digits",
    "latent_ode",
    "schemes",
    "cost_model",
    "limits",
    "jax_limits",
)
# By experiment: its rows, and the processor time that they took.
Results = dict[str, tuple[list[Row], list[float]]]


def write(results: Results, command: str, file: Path) -> Path:
    """Write the Markdown, and the plots beside it."""
    lines = ["# The papers' experiments, repeated small", "", f"`{command}`", ""]
    packages = {name: version(name) for name in ("jax", "diffrax")}
    lines += [f"- {name}: {value}" for name, value in {**machine(), **packages}.items()]
    lines += ["", "Times are processor time on one thread.", ""]
    for name, (rows, seconds) in results.items():
        lines += [*_experiment(name, rows, seconds[0], file), ""]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def _experiment(name: str, rows: Sequence[Row], seconds: float, file: Path) -> Iterator[str]:
    module = importlib.import_module(f"benchmarks.papers.{name}")
    yield from (f"## {name}", "", *(module.__doc__ or "").strip().splitlines(), "", f"Processor time: {seconds:.0f} s.")
    claims = module.claims(rows)
    if claims:
        yield from ("", *table(("claimed", "measured here", "why they differ, or agree"), claims))
    yield from ("", *table(*_cells(getattr(module, "shown", list)(rows))), "")
    plot = file.with_name(f"{file.stem}-{name}.png")
    figure = matplotlib.figure.Figure(figsize=getattr(module, "SIZE", (11, 4)), layout="constrained")
    module.draw(rows, figure)
    figure.savefig(plot, dpi=120)
    yield f"![{name}]({plot.name})"


def _cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    head = list(dict.fromkeys(name for row in rows for name in row))
    return head, [[_text(row.get(name)) for name in head] for row in rows]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
