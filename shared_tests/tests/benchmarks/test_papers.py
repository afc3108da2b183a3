"""The repeated experiments can be trusted: their naive method, their verdicts, their counts and their cells."""

import importlib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks" / "papers").exists(), reason="runs from a checkout")


@pytest.fixture
def papers(monkeypatch):
    """A module of ``benchmarks.papers``, by its name."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"benchmarks.papers.{name}")


def test_the_naive_method_differentiates_its_step_sizes(papers):
    """Its gradient is that of the program, step sizes and all, as differences of it say."""

    def end(y0):
        times = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
        return papers("search").odeint_search(lambda t, y: torch.sin(3 * t) * y - y**3, y0, times, 1e-3, 1e-3)[-1].sum()

    y0, small = torch.tensor([1.2], dtype=torch.float64, requires_grad=True), 1e-6
    (gradient,) = torch.autograd.grad(end(y0), y0)
    difference = (end(y0.detach() + small) - end(y0.detach() - small)) / (2 * small)
    assert abs(gradient - difference) < 1e-6 * abs(difference)


def test_steptape_gives_no_wrong_gradient_where_it_is_tried(papers):
    (row,) = papers("limits").run(True)["steptape ACA"]()
    assert not {case: verdict for case, verdict in row.items() if verdict != "yes" and case not in ("peer", "why")}


@pytest.mark.parametrize("case", ["several outputs", "reverse time", "gradient in t", "second derivatives", "dropout"])
def test_a_wrong_gradient_is_called_wrong(papers, monkeypatch, case):
    limits = papers("limits")
    solved = limits._solved
    monkeypatch.setattr(limits, "_solved", lambda *given: _scaled_backward(solved(*given), 1.01))
    assert limits._try("torchdiffeq odeint", case)[0].startswith("wrong")


def _scaled_backward(x, factor):
    return factor * x - (factor - 1) * x.detach()


def test_the_cost_of_a_replay_is_the_papers(papers):
    """Forward m tries an accepted step, backward one more."""
    row = papers("cost_model")._count("ACA", 2, "dopri5")
    assert row["tries"] > row["N_t"] > 1
    # Beyond the formula: the first slope, the guess of the first step, and the first slope again in the replay. The
    # one that finds what func uses is not counted, since a look leaves a counter as it was.
    assert row["evaluations"] == 6 * (row["tries"] + row["N_t"]) + 3


def test_the_cells_of_all_experiments_are_found_again(papers):
    """What the page asks for are the names under which the cells are in the file."""
    envelope, scope = (importlib.import_module(f"benchmarks.{name}") for name in ("envelope", "measurements"))
    experiments = papers("experiments")
    quick = experiments.cells(scope.Scope(quick=True))
    (row,) = [row for row in quick["toy/dopri5, alpha 0.1, T 5"]() if row["way"] == "ACA"]
    assert 0 < row["relative, α"] < 1e-3
    cells = [cell for cell in experiments.cells(scope.Scope()) if cell.startswith("toy/")]
    entries = [envelope.entry("papers", cell, "torch", 1, [row]) for cell in cells]
    assert experiments.found(envelope.Results(entries), "toy") == [row] * len(cells)
    assert experiments.found(envelope.Results(entries[1:]), "toy") is None
    assert experiments.found(envelope.Results(entries), "schemes") is None
