"""The JAX half's docstrings: examples run, and headings come in one order."""

import pytest

import steptape.jax
from steptape_helpers.docs import assert_example_runs, assert_headings_in_order

ADJOINTS = [
    steptape.jax.AdaptiveCheckpointAdjoint,
    steptape.jax.QuadratureAdjoint,
    steptape.jax.SeminormAdjoint,
]


@pytest.mark.parametrize("function", [steptape.jax.install, steptape.jax.compare], ids=lambda x: x.__name__)
def test_a_function_s_example_runs(function):
    assert_example_runs(function)
    assert_headings_in_order(function, "Args", "Returns", "Supports", "Raises", "Example")


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_an_adjoint_s_example_runs(adjoint):
    assert_example_runs(adjoint)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_an_adjoint_s_headings_come_in_one_order(adjoint):
    assert_headings_in_order(adjoint, "Args", "Memory", "Supports", "Raises", "Source", "Example")
