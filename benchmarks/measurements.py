"""What there is to measure: by name, the question, the code for each framework, and whether there is a second pass.

A measurement's module has ``cells(scope)``: by name, functions that measure a cell and return its rows.
"""

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
    """One question. ``modules``: by framework, each in a process of its own; ``script``: its code, told on the page.

    ``again``: measured in a second pass, since its figures are times and no ratios within a round, or ratios that
    do not repeat by themselves. ``usual``: whether it is measured where none is named.
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


def _file(question: str, *modules: str, script: str = "", again: bool = False) -> Measurement:
    """Measured by modules of these names: in JAX where they begin with it, else in PyTorch."""
    by_framework = {"jax" if name.startswith("jax") else "torch": name for name in modules}
    return Measurement(question, f"benchmarks/{script or modules[0]}.py", by_framework, again)


_TASKS = {"torch": "tasks.torch_models", "jax": "tasks.jax_models"}
MEASUREMENTS = {
    "torch_speed": _file("time and error of every way to a gradient in PyTorch", "torch_speed", again=True),
    "torch_memory": _file("memory of every way to a gradient in PyTorch", "torch_memory"),
    "sde_speed": _file("time and memory of gradients through torchsde", "sde_speed", again=True),
    "tradeoff": _file("time against memory at equal gradient in both frameworks", "torch_tradeoff", "jax_tradeoff"),
    "training": _file(
        "models trained to the end by every way in both frameworks", "torch_training", "jax_training", script="training"
    ),
    "jax_libraries": _file("fits and posteriors by optimistix, blackjax and numpyro, by each adjoint", "jax_libraries"),
    "faults": _file("where the hosts' default gradients are wrong", "torch_faults", "jax_faults", script="faults"),
    "jax_speed": _file("time of gradients through diffrax", "jax_speed"),
    "jax_memory": _file("time at equal memory in diffrax", "jax_memory"),
    "jax_scaling": _file("a batch of solves of unequal lengths in diffrax", "jax_scaling"),
    "jax_max_steps": _file("what steps cost that are not taken, in diffrax", "jax_max_steps"),
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
