"""steptape for PyTorch: exact gradients for torchdiffeq by replaying the accepted steps."""

from steptape.torch._odeint import odeint_adjoint as odeint_adjoint
