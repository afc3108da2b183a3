"""What there is to measure: by name, the question, the code for each framework, and whether there is a second pass.

A measurement's module has ``cells(scope)``: by name, functions that measure a cell and return its rows.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.envelope import Rows

Cells = dict[str, Callable[[], Rows]]


@dataclasses.dataclass(frozen=True)
class Scope:
    """How much is measured. ``paper``: nets and batches of the paper's sizes.

    ``done``: the rows of the cells so far, of the pass at hand. ``folder``: for what cells and frameworks share.
    """

    quick: bool = False
    paper: bool = False
    done: Mapping[str, Rows] = dataclasses.field(default_factory=dict)
    folder: Path = Path()


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One question. ``script``: its code. ``modules``: by framework, each in a process of its own.

    ``again``: measured in a second pass, since its figures are times and no ratios within a round. ``usual``: whether
    it is measured where none is named.
    """

    question: str
    script: str
    modules: dict[str, str]
    again: bool = False
    usual: bool = True
    paper: bool = False

    def cells(self, framework: str, scope: Scope) -> Cells:
        """The cells in a framework, which this imports."""
        module = importlib.import_module(f"benchmarks.{self.modules[framework]}")
        return module.cells(dataclasses.replace(scope, paper=self.paper))


_TASKS = {"torch": "tasks.torch_models", "jax": "tasks.jax_models"}
MEASUREMENTS = {
    "torch_speed": Measurement(
        "time and error of every way to a gradient in PyTorch", "benchmarks/torch_speed.py", {"torch": "torch_speed"}
    ),
    "torch_memory": Measurement(
        "memory of every way to a gradient in PyTorch", "benchmarks/torch_memory.py", {"torch": "torch_memory"}
    ),
    "sde_speed": Measurement(
        "time and memory of gradients through torchsde", "benchmarks/sde_speed.py", {"torch": "sde_speed"}, again=True
    ),
    "tradeoff": Measurement(
        "time against memory at equal gradient in both frameworks",
        "benchmarks/torch_tradeoff.py",
        {"torch": "torch_tradeoff", "jax": "jax_tradeoff"},
    ),
    "training": Measurement(
        "models trained to the end by every way in both frameworks",
        "benchmarks/training.py",
        {"torch": "torch_training", "jax": "jax_training"},
    ),
    "faults": Measurement(
        "where the hosts' default gradients are wrong",
        "benchmarks/faults.py",
        {"torch": "torch_faults", "jax": "jax_faults"},
    ),
    "jax_speed": Measurement("time of gradients through diffrax", "benchmarks/jax_speed.py", {"jax": "jax_speed"}),
    "jax_memory": Measurement("time at equal memory in diffrax", "benchmarks/jax_memory.py", {"jax": "jax_memory"}),
    "jax_scaling": Measurement(
        "a batch of solves of unequal lengths in diffrax", "benchmarks/jax_scaling.py", {"jax": "jax_scaling"}
    ),
    "jax_max_steps": Measurement(
        "what steps cost that are not taken, in diffrax", "benchmarks/jax_max_steps.py", {"jax": "jax_max_steps"}
    ),
    "jax_libraries": Measurement(
        "fits and posteriors by optimistix, blackjax and numpyro, by each adjoint",
        "benchmarks/jax_libraries.py",
        {"jax": "jax_libraries"},
    ),
    "curves": Measurement(
        "work-precision and scaling in both frameworks",
        "benchmarks/curves",
        {"torch": "curves.torch_side", "jax": "curves.jax_side"},
        again=True,
    ),
    "papers": Measurement(
        "the ACA paper's experiments, Hu's theorem, the cost model, the peers' limits",
        "benchmarks/papers",
        {"torch": "papers.experiments", "jax": "papers.jax_limits"},
    ),
    "tasks": Measurement("the seminorm paper's tasks in both frameworks", "benchmarks/tasks", _TASKS, again=True),
    "tasks_paper": Measurement(
        "the same with nets and batches of the paper's sizes", "benchmarks/tasks", _TASKS, usual=False, paper=True
    ),
    "parity": Measurement(
        "the promises on gradients, judged in both frameworks", "shared_tests/parity/promises.py", {"both": "parity"}
    ),
}
