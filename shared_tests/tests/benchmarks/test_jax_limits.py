"""What is said of diffrax's adjoints can be trusted: no verdict of ours is wrong, and a wrong gradient is called so."""

import importlib
from pathlib import Path

import equinox as eqx
import jax
import pytest

from steptape_helpers.jax_solves import x64

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks" / "papers").exists(), reason="runs from a checkout")


@pytest.fixture
def tries(monkeypatch):
    """The module that tries the cases."""
    monkeypatch.syspath_prepend(ROOT)
    with x64():
        yield importlib.import_module("benchmarks.papers.jax_limits")


# Those that say the most in little time: all of them take minutes, and `python -m benchmarks papers` measures them.
@pytest.mark.by_default(every=3)
@pytest.mark.parametrize(
    "case",
    [
        "several outputs",
        "gradient in ts",
        "parameter in a closure",
        "complex state",
        "reverse over reverse",
        "forward mode",
        "max_steps=None",
    ],
)
def test_steptape_gives_no_wrong_gradient_where_it_is_tried(tries, case):
    assert tries.tried(tries.ADJOINTS["steptape AdaptiveCheckpointAdjoint"](), case) == ("yes", "")


@pytest.mark.parametrize("case", ["reverse over reverse", "forward mode", "max_steps=None"])
def test_what_steptape_refuses_is_called_refused(tries, case):
    verdict, why = tries.tried(tries.ADJOINTS["steptape QuadratureAdjoint"](), case)
    assert verdict == "refused"
    assert why


@pytest.mark.parametrize("case", ["several outputs", "gradient in ts"])
def test_a_wrong_gradient_is_called_wrong(tries, monkeypatch, case):
    solve = tries._solve
    monkeypatch.setattr(tries, "_solve", lambda *args, **kwargs: _scaled_backward(solve(*args, **kwargs)))
    assert tries.tried(tries.ADJOINTS["DirectAdjoint"](), case)[0].startswith("wrong: off by 0.0")


def _scaled_backward(solution):
    def scaled(x):
        return 1.01 * x - 0.01 * jax.lax.stop_gradient(x) if eqx.is_inexact_array(x) else x

    return jax.tree.map(scaled, solution)


def test_every_adjoint_has_a_cell(tries):
    scope = importlib.import_module("benchmarks.measurements").Scope()
    assert list(tries.cells(scope)) == [f"jax_limits/{name}" for name in tries.ADJOINTS]
