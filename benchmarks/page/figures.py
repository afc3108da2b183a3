"""The figures: tables of texts by measurement and name, reduced from the results or kept from earlier ones."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import envelope
from benchmarks.envelope import Entry, Results, Rows
from benchmarks.page import claims, curves, faults, libraries, papers, ratios, readme, speed, tasks, tradeoff, training
from benchmarks.ways import BASE

Reduce = Callable[[Results], Rows]


def _each(reduce: Callable[..., Rows], name: str) -> dict[str, Reduce]:
    return {f"{name}, {framework}": functools.partial(reduce, framework=framework) for framework in BASE}


FIGURES: dict[str, dict[str, Reduce]] = {
    "tradeoff": {
        "readme": tradeoff.instead,
        **_each(tradeoff.table, "times and memory"),
        **_each(tradeoff.setups, "problems"),
    },
    "torch_speed": {
        "times": speed.torch_times,
        "set-ups": functools.partial(speed.setups, measurement="torch_speed", name="{cell}"),
    },
    "torch_memory": {
        "memory": speed.torch_memory,
        "set-ups": functools.partial(speed.setups, measurement="torch_memory", name="{setup}"),
        "promises": claims.held,
    },
    "sde_speed": {"times": speed.sde, "promises": claims.sdes},
    "training": {
        "models": training.models,
        **{model: functools.partial(training.table, model=model) for model in training.MODELS},
    },
    "faults": {"table": faults.table},
    "jax_speed": {"times": speed.jax, "readme": readme.jax_speed},
    "jax_memory": {
        "checkpoints": speed.jax_memory,
        "set-ups": speed.jax_memory_setups,
        "papers": claims.reversible,
        "readme": readme.jax_memory,
    },
    "jax_scaling": {"batch": speed.jax_scaling, "growth": speed.growth, "readme": readme.jax_scaling},
    "jax_max_steps": {"limits": speed.jax_max_steps},
    "jax_libraries": {"times": libraries.table},
    "curves": {**_each(curves.precision, "precision"), **_each(curves.scaling, "scaling")},
    "papers": {
        "papers": claims.of_papers,
        "promises": claims.refusals,
        "training": papers.training,
        "without a figure": papers.without_figures,
        "theorem": papers.theorem,
        "cost model": functools.partial(papers.claims, name="cost_model"),
        "limits": functools.partial(papers.verdicts, name="limits"),
        "claims on limits": functools.partial(papers.claims, name="limits"),
        "limits, jax": functools.partial(papers.verdicts, name="jax_limits"),
    },
    "tasks": {**_each(tasks.changes, "changes"), "papers": claims.of_tasks, "readme": readme.adjoints},
    "parity": {"promises": claims.parity},
}


def reduced(results: Results) -> list[Entry]:
    """All figures of the measurements that there are results of, but for those of which nothing is there."""
    found = []
    for measurement, reductions in FIGURES.items():
        if measured := [e for e in results.entries if e["measurement"] == measurement]:
            named = {"measurement": measurement, **envelope.origin(measured)}
            figures = {cell: rows for cell, reduce in reductions.items() if (rows := reduce(results))}
            # Empty where no peer is better any more: it replaces one that was kept.
            figures["better"] = ratios.better(results, measurement)
            found += [{**named, "cell": cell, "rows": rows} for cell, rows in figures.items()]
    return found


def replaced(kept: Sequence[Entry], new: Sequence[Entry]) -> list[Entry]:
    """The kept figures with those of the same names replaced, and the others added."""
    by_name = {(figure["measurement"], figure["cell"]): figure for figure in (*kept, *new)}
    return list(by_name.values())


def rows(figures: Sequence[Entry], measurement: str, cell: str) -> list[dict[str, Any]]:
    """Those of one figure, none if it is missing."""
    names = measurement, cell
    return next((figure["rows"] for figure in figures if (figure["measurement"], figure["cell"]) == names), [])
