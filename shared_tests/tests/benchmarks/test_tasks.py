"""The benchmark's models: both frameworks have the same vector fields, and the same gradient in the same order."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[3]
NEEDED = ("torchcde", "diffrax", "scipy")
# Frameworks do not share a process, and this one imports neither.
SCRIPT = """
import sys
import numpy as np
from benchmarks.machine import prepare
from benchmarks.tasks.data import TASKS

prepare("{backend}")
from benchmarks.tasks.{backend}_models import Model


def slopes(model, weights, state):
    if "{backend}" == "jax":
        found = model.field()(0.3, state, weights)
    else:
        import torch

        state = tuple(map(torch.tensor, state)) if isinstance(state, tuple) else torch.tensor(state)
        with torch.no_grad():
            found = model.modules(weights)[0](torch.tensor(0.3, dtype=torch.float64), state)
    return found if isinstance(found, tuple) else (found,)


found = {{}}
for name in sys.argv[2:]:
    task = TASKS[name](False)
    state = np.random.default_rng(0).normal(size=(task.batch, task.dim))
    state = (state[:, :-1], state[:, -1]) if task.kind == "cnf" else state
    for i, slope in enumerate(slopes(Model(task, "aca"), task.weights(), state)):
        found[f"{{name}} {{i}}"] = np.asarray(slope)
task = TASKS["cde"](False)
gradient = Model(task, "aca").gradient(task.weights(), next(task.batches(1)), (1e-5, 1e-8))
np.savez(sys.argv[1], gradient=gradient.vector, loss=gradient.loss, **found)
"""


@pytest.mark.skipif(not (ROOT / "benchmarks" / "tasks").exists(), reason="runs from a checkout")
@pytest.mark.skipif(not all(map(find_spec, NEEDED)), reason=f"needs {', '.join(NEEDED)}")
@pytest.mark.full
def test_the_frameworks_train_the_same_models(tmp_path):
    names = ["cde", "cnf-moons", "symplectic", *(["cnf-digits"] if find_spec("sklearn") else [])]
    found = {}
    for backend in ("torch", "jax"):
        file = tmp_path / f"{backend}.npz"
        command = [sys.executable, "-c", SCRIPT.format(backend=backend), str(file), *names]
        subprocess.run(command, cwd=ROOT, check=True)
        found[backend] = np.load(file)
    assert set(found["torch"].files) == set(found["jax"].files)
    assert len(found["torch"].files) >= 6
    for name in found["torch"].files:
        # Each framework solves with its own steps.
        bound = 1e-3 if name in ("gradient", "loss") else 1e-12
        scale = np.abs(found["torch"][name]).max()
        np.testing.assert_allclose(found["jax"][name] / scale, found["torch"][name] / scale, rtol=0, atol=bound)
