"""The experiments by name, each with its framework, and all cells of those in PyTorch."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

from benchmarks.envelope import Results, Rows
from benchmarks.measurements import Cells, Scope

EXPERIMENTS = {
    **dict.fromkeys(("toy", "van_der_pol", "three_body", "digits", "latent_ode"), "torch"),
    **dict.fromkeys(("schemes", "cost_model", "limits"), "torch"),
    "jax_limits": "jax",
}


def module(name: str) -> Any:
    return importlib.import_module(f"benchmarks.papers.{name}")


def cells(scope: Scope) -> Cells:
    return {
        f"{name}/{cell}": functools.partial(_seeded, measure)
        for name, framework in EXPERIMENTS.items()
        if framework == "torch"
        for cell, measure in module(name).run(scope.quick).items()
    }


def _seeded(measure: Callable[[], Rows]) -> Rows:
    import torch

    torch.manual_seed(0)
    return measure()


def found(results: Results, name: str) -> Rows | None:
    """The rows of an experiment, or None where cells of it are missing."""
    there = results.cells("papers", EXPERIMENTS[name])
    # Else it is not imported, nor its framework.
    if not any(cell.startswith(f"{name}/") for cell in there):
        return None
    wanted = [f"{name}/{cell}" for cell in module(name).run(False)]
    return [row for cell in wanted for row in there[cell]] if set(wanted) <= there.keys() else None
