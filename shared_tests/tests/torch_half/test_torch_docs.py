"""The torch half's docstrings: examples run, and headings come in one order."""

import pytest

from steptape.torch import (
    compare,
    compare_sde,
    install,
    odeint_adjoint,
    record_solves,
    sdeint_adjoint,
    seminorm,
)
from steptape_helpers.docs import assert_example_runs, assert_headings_in_order

PUBLIC = [odeint_adjoint, sdeint_adjoint, seminorm, install, record_solves, compare, compare_sde]


@pytest.mark.parametrize("function", PUBLIC, ids=lambda function: function.__name__)
def test_an_example_runs(function):
    pytest.importorskip("torchsde")
    assert_example_runs(function)


@pytest.mark.parametrize("function", PUBLIC, ids=lambda function: function.__name__)
def test_headings_come_in_one_order(function):
    assert_headings_in_order(function, "Supports", "Example")
