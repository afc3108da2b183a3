"""The torch half's docstrings: examples run, and headings come in one order."""

import doctest
import inspect
import re

import pytest

from steptape.torch import install, odeint_adjoint, record_solves, sdeint_adjoint, seminorm

HEADINGS = ["Args", "Returns", "Yields", "Exact", "Approximate", "Memory", "Supports", "Raises", "Source", "Example"]
PUBLIC = [odeint_adjoint, sdeint_adjoint, seminorm, install, record_solves]


@pytest.mark.parametrize("function", PUBLIC, ids=lambda function: function.__name__)
def test_an_example_runs(function):
    pytest.importorskip("torchsde")
    (example,) = doctest.DocTestFinder(recurse=False).find(function, function.__name__)
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


@pytest.mark.parametrize("function", PUBLIC, ids=lambda function: function.__name__)
def test_headings_come_in_one_order(function):
    found = re.findall(r"^(\w+):$", inspect.getdoc(function), re.MULTILINE)
    assert found == [heading for heading in HEADINGS if heading in found]
    assert {"Supports", "Example"} <= set(found)
