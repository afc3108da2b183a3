"""The backends asked for are there; without them the tests of their half would be skipped in silence."""

import importlib

import pytest

from steptape_helpers.asked import ASKED, HOSTS

OURS = {
    "torch": ("steptape.torch", "odeint_adjoint"),
    "sde": ("steptape.torch", "sdeint_adjoint"),
    "jax": ("steptape.jax", "AdaptiveCheckpointAdjoint"),
}


@pytest.mark.parametrize("name", ASKED)
def test_a_backend_asked_for_is_there_with_its_host(name):
    assert name in HOSTS, f"STEPTAPE_TEST_BACKENDS names {name!r}; there are {', '.join(HOSTS)}"
    importlib.import_module(HOSTS[name])
    module, attribute = OURS[name]
    assert callable(getattr(importlib.import_module(module), attribute))
