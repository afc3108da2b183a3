"""The trainings: exact ways train as back-propagation does, and the page says where another way ends worse."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks" / "page").exists(), reason="runs from a checkout")
# Frameworks do not share a process.
TORCH = """
import json, sys
from benchmarks import machine, torch_training as here, training
from benchmarks.measurements import Scope
from benchmarks.peers import METHODS, ours

machine.prepare("torch")
solves = {"odeint": METHODS["odeint"].solve, "replay": ours(), "graphs": ours(memory="graphs")}
models = lambda seed: {way: here._moons(solve, seed) for way, solve in solves.items()}
plans = {"flow": training.Plan("", "nats", models, 100, 0.02), "latent SDE": here.PLANS["latent SDE"]}
print(json.dumps([row for measure in training.cells(plans, Scope(quick=True)).values() for row in measure()]))
"""
JAX = """
import json
from benchmarks import machine, jax_training as here
from benchmarks.measurements import Scope

machine.prepare("jax")
for way in set(here.ADJOINTS) - {"DirectAdjoint()", "AdaptiveCheckpointAdjoint()", "BacksolveAdjoint()"}:
    del here.ADJOINTS[way]
[measure] = here.cells(Scope(quick=True)).values()
print(json.dumps(measure()))
"""


@pytest.fixture
def load(monkeypatch):
    """A module of ``benchmarks``, by its name."""
    for module in ("tabulate", "matplotlib", "torchdiffeq"):
        pytest.importorskip(module)
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def trained(script):
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    rows = json.loads(run.stdout.splitlines()[-1])
    assert all(len(row["curve"]) == 3 and row["peak"] > 0 and "failed" not in row for row in rows)
    return {(row["model"], row["way"]): row for row in rows}


def test_in_torch_the_exact_ways_train_as_back_propagation_does():
    for module in ("torchdiffeq", "torchsde", "scipy"):
        pytest.importorskip(module)
    rows = trained(TORCH)
    for (model, way), row in rows.items():
        assert row["apart"] < 1e-12 or (model, way) == ("latent SDE", "sdeint_adjoint")
    assert rows["latent SDE", "sdeint_adjoint"]["apart"] > 1e-6
    assert rows["flow", "graphs"]["evaluations"] < 0.6 * rows["flow", "replay"]["evaluations"]
    assert rows["flow", "replay"]["peak"] < 0.5 * rows["flow", "odeint"]["peak"]


@pytest.mark.full
def test_in_jax_the_exact_ways_train_as_back_propagation_does():
    for module in ("diffrax", "scipy"):
        pytest.importorskip(module)
    rows = {way: row for (_, way), row in trained(JAX).items()}
    assert rows["AdaptiveCheckpointAdjoint()"]["apart"] < 1e-12
    assert rows["BacksolveAdjoint()"]["apart"] > 1e-9
    assert all(row["compiling"] > 0 for row in rows.values())


def row(way, seed, loss, seconds, **others):
    place = {"model": "flow", "text": "two moons", "measure": "nats", "seed": seed, "steps": 9, "way": way}
    curve = [[0.0, 3.0], [seconds / 2, 2.5], [seconds, loss]]
    made = {
        "seconds": seconds,
        "compiling": 0,
        "evaluations": 40,
        "loss": loss,
        "curve": curve,
        "apart": 0,
        "peak": 2**20,
    }
    return {**place, **made, **others}


def test_a_way_that_ends_worse_in_every_seed_is_named_and_one_that_fails(load, tmp_path):
    envelope = load("envelope")
    rows = [row("odeint", seed, 2.0 + seed, 4.0) for seed in (0, 1)]
    rows += [row("steptape", seed, 2.0 + seed, 5.0 + seed, apart=2e-14) for seed in (0, 1)]
    rows += [row("odeint_adjoint", seed, 2.2 + seed, 9.0) for seed in (0, 1)]
    rows += [row("steptape, quadrature", seed, (2.2, 2.9)[seed], 9.0) for seed in (0, 1)]
    rows += [row("odeint_adjoint, seminorm", seed, 2.5, 9.0, failed="step 3: no") for seed in (0, 1)]
    results = envelope.Results([envelope.entry("training", "flow", "torch", 1, rows)])
    figures = load("page.figures").reduced(results)
    load("page.plots").draw(results, tmp_path)
    page = load("page.sections").write(figures, tmp_path).read_text(encoding="utf-8")
    assert "| `steptape` | 2.5 (2 to 3) | 5.5 (5 to 6) | 40 | 1 | 2e-14 |" in page
    assert "| at most 2e-14 | `odeint_adjoint` +8 % (+7 % to +10 %), **worse in every seed**; " in page
    assert "`steptape, quadrature` +3 % (-3 % to +10 %); `odeint_adjoint, seminorm` **fails** |" in page
    assert "step 3: no" in page
    assert (tmp_path / "training.svg").exists()
    assert "](training.svg)" in page


def test_where_a_peer_is_better_every_row_says_why(load):
    why = load("page.why")
    for figure in load("envelope").read(ROOT / "docs" / "figures.jsonl"):
        for found in figure["rows"] if figure["cell"] == "better" else ():
            assert why.why(found), (figure["measurement"], found)
