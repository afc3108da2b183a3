"""torchdiffeq's private names, each with the reason steptape needs it."""

from importlib.metadata import version

from steptape._errors import UnsupportedHostVersion

_WAY_OUT = "Install a supported one with: pip install 'torchdiffeq>=0.2.4'"

try:
    from torchdiffeq._impl import fixed_grid

    # The parameters odeint_adjoint differentiates, also inside a DataParallel replica.
    from torchdiffeq._impl.adjoint import find_parameters as find_parameters

    # On which side of a discontinuity in t the host evaluates func.
    from torchdiffeq._impl.misc import Perturb as Perturb

    # The host's normal form of a call: flat state, increasing t, wrapped func, defaults filled in.
    from torchdiffeq._impl.misc import _check_inputs as check_inputs
    from torchdiffeq._impl.misc import _flat_to_shape as flat_to_shape

    # The loops that leave the tape, and the tables they step with.
    from torchdiffeq._impl.odeint import SOLVERS as SOLVERS
    from torchdiffeq._impl.rk_common import RKAdaptiveStepsizeODESolver as AdaptiveRungeKutta
    from torchdiffeq._impl.solvers import FixedGridODESolver as FixedGrid
except ImportError as error:
    raise UnsupportedHostVersion(
        f"steptape.torch cannot use the installed torchdiffeq ({error}). {_WAY_OUT}"
    ) from error

if "callback_accept_step" not in AdaptiveRungeKutta.valid_callbacks():
    raise UnsupportedHostVersion(
        f"torchdiffeq {version('torchdiffeq')} has no step callbacks: its accepted steps cannot be taped. {_WAY_OUT}"
    )

FIXED_GRID_NAMES = {
    getattr(fixed_grid, name): name.lower()
    for name in ("Euler", "Midpoint", "Heun2", "Heun3", "RK4")
    if hasattr(fixed_grid, name)
}


def steps_by_tableau(solver_class: type) -> bool:
    """Whether an adaptive solver of the host steps and interpolates by its tableau alone, with nothing overridden."""
    own = ("integrate", "_advance", "_before_integrate", "_adaptive_step", "_interp_fit")
    return issubclass(solver_class, AdaptiveRungeKutta) and all(
        getattr(solver_class, name) is getattr(AdaptiveRungeKutta, name) for name in own
    )
