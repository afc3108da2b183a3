"""The backends that the tests are to run on: what STEPTAPE_TEST_BACKENDS names, else all that are installed."""

import importlib.util
import os

HOSTS = {"torch": "torchdiffeq", "sde": "torchsde", "jax": "diffrax"}

_NAMED = os.environ.get("STEPTAPE_TEST_BACKENDS", "").replace(",", " ").split()
ASKED = _NAMED or [name for name, host in HOSTS.items() if importlib.util.find_spec(host)]

BACKENDS = [name for name in ("torch", "jax") if name in ASKED]
"""Those of a parity report."""

SDE_BACKENDS = [name for name in BACKENDS if name != "torch" or "sde" in ASKED]
"""Those of them that solve SDEs."""
