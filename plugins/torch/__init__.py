"""steptape for PyTorch: exact gradients for torchdiffeq and torchsde by replaying the accepted steps."""

import importlib
from typing import TYPE_CHECKING, Any

from steptape._compare.comparison import Comparison as Comparison
from steptape._doors import Installation as Installation
from steptape.torch._compare.ode import compare as compare
from steptape.torch._install import install as install
from steptape.torch._odeint import odeint_adjoint as odeint_adjoint
from steptape.torch._seminorm import Seminorm as Seminorm
from steptape.torch._seminorm import seminorm as seminorm
from steptape.torch._stats import Solves as Solves
from steptape.torch._stats import SolveStats as SolveStats
from steptape.torch._stats import record_solves as record_solves

if TYPE_CHECKING:
    from steptape.torch._compare.sde import compare_sde as compare_sde
    from steptape.torch._sdeint import sdeint_adjoint as sdeint_adjoint

_OF_SDES = {"sdeint_adjoint": "_sdeint", "compare_sde": "_compare.sde"}


if not TYPE_CHECKING:  # which would take any name for one of ours

    def __getattr__(name: str) -> Any:
        """What is for SDEs on first use, so that all else works without torchsde."""
        if name not in _OF_SDES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f"{__name__}.{_OF_SDES[name]}"), name)
        globals()[name] = found
        return found
