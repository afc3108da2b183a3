"""torchsde's private names, each with the reason steptape needs it."""

from typing import Any

from steptape.compat._unsupported import unsupported

try:
    from torchsde import sdeint as sdeint
    from torchsde import sdeint_adjoint as sdeint_adjoint
    from torchsde._core.base_sde import ForwardSDE as ForwardSDE  # What the solvers call, made from an SDE.
    from torchsde._core.base_solver import BaseSDESolver  # Its loop over the steps of a solver, see below.
    from torchsde._core.interp import linear_interp as linear_interp  # The outputs between the ends of a step.
    from torchsde._core.methods import select as select  # The solver class of a method's name.

    # What sdeint and sdeint_adjoint do with arguments that they do not have, and with times that need a gradient.
    from torchsde._core.misc import assert_no_grad as assert_no_grad
    from torchsde._core.misc import handle_unused_kwargs as handle_unused_kwargs

    # The host's normal form of a call: wrapped SDE, Brownian object and method filled in; and of its result.
    from torchsde._core.sdeint import check_contract as check_contract
    from torchsde._core.sdeint import parse_return as parse_return

    # The names of methods, and of their options.
    from torchsde.settings import METHOD_OPTIONS
    from torchsde.settings import METHODS as METHODS

    OPTION_NAMES = METHOD_OPTIONS.all()
    # To tell a solver that takes its steps by it from one that does otherwise.
    integrate = BaseSDESolver.integrate
except (ImportError, AttributeError) as error:
    raise unsupported("torchsde", error, "sde") from error

# The modules that hold a function under its name.
HOLDERS = {
    "sdeint_adjoint": ("torchsde", "torchsde._core.adjoint"),
    "sdeint": ("torchsde", "torchsde._core.sdeint"),
}


def sde_under(sde: Any) -> Any:
    """The SDE that a ForwardSDE was made from."""
    return sde._base_sde
