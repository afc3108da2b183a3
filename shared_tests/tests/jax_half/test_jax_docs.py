"""The JAX half's docstrings: examples run, and headings come in one order."""

import doctest
import inspect
import re

import pytest

import steptape.jax

ADJOINTS = [
    steptape.jax.AdaptiveCheckpointAdjoint,
    steptape.jax.QuadratureAdjoint,
    steptape.jax.SeminormAdjoint,
]
HEADINGS = ["Args", "Returns", "Exact", "Approximate", "Memory", "Supports", "Raises", "Source", "Example"]


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_an_adjoint_s_example_runs(adjoint):
    (example,) = doctest.DocTestFinder(recurse=False).find(adjoint, adjoint.__name__)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_an_adjoint_s_headings_come_in_one_order(adjoint):
    found = re.findall(r"^(\w+):$", inspect.getdoc(adjoint), re.MULTILINE)
    assert found == [heading for heading in HEADINGS if heading in found]
    assert {"Args", "Memory", "Supports", "Raises", "Source", "Example"} <= set(found)
