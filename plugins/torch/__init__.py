"""steptape for PyTorch: exact gradients for torchdiffeq by replaying the accepted steps."""

from steptape.torch._install import Installation as Installation
from steptape.torch._install import install as install
from steptape.torch._odeint import odeint_adjoint as odeint_adjoint
from steptape.torch._stats import Solves as Solves
from steptape.torch._stats import SolveStats as SolveStats
from steptape.torch._stats import record_solves as record_solves
