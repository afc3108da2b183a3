"""steptape for PyTorch: exact gradients for torchdiffeq and torchsde by replaying the accepted steps."""

from typing import TYPE_CHECKING, Any

from steptape._doors import Installation as Installation
from steptape.torch._install import install as install
from steptape.torch._odeint import odeint_adjoint as odeint_adjoint
from steptape.torch._seminorm import Seminorm as Seminorm
from steptape.torch._seminorm import seminorm as seminorm
from steptape.torch._stats import Solves as Solves
from steptape.torch._stats import SolveStats as SolveStats
from steptape.torch._stats import record_solves as record_solves

if TYPE_CHECKING:
    from steptape.torch._sdeint import sdeint_adjoint as sdeint_adjoint


def __getattr__(name: str) -> Any:
    """``sdeint_adjoint`` on first use, so that all else works without torchsde."""
    if name != "sdeint_adjoint":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from steptape.torch._sdeint import sdeint_adjoint

    globals()[name] = sdeint_adjoint
    return sdeint_adjoint
