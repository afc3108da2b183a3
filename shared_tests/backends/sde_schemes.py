"""Which SDE is solved with which scheme, and at which strong order that scheme should converge."""

import importlib.util
from dataclasses import dataclass

from steptape.shared_tests.problems.sde_problems import SdeProblem

STEPS = (1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128)
"""The step sizes of every scheme; all output times are multiples, and all are multiples of a cell of the path."""


@dataclass(frozen=True)
class Scheme:
    """One scheme with its name in both hosts, which do the same arithmetic on a diffusion that depends on no time.

    On one that does, they differ in Euler-Heun: torchsde takes the second diffusion at the end of the step, diffrax at
    its start. `order` is the strong order where the noise commutes; for reversible Heun, hosts promise 1/2 there.
    """

    name: str
    torch_name: str
    jax_name: str
    ito: bool
    order: float

    def solves(self, problem: SdeProblem) -> bool:
        """Whether both hosts have this scheme for the noise of a problem.

        torchsde takes Milstein's scheme for scalar noise, too, but multiplies Dg by g from the left, which is another
        scheme, and of no order, where Dg is not symmetric.
        """
        return problem.noise in ("diagonal", "additive") or self.torch_name != "milstein"

    def order_for(self, problem: SdeProblem) -> float:
        """Return the strong order on a problem."""
        if problem.noise == "additive":
            return 1.0
        return self.order if problem.commutes else 0.5


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("euler", "euler", "Euler", ito=True, order=0.5),
        Scheme("milstein", "milstein", "ItoMilstein", ito=True, order=1.0),
        Scheme("strat_milstein", "milstein", "StratonovichMilstein", ito=False, order=1.0),
        Scheme("heun", "heun", "Heun", ito=False, order=1.0),
        Scheme("midpoint", "midpoint", "Midpoint", ito=False, order=1.0),
        Scheme("euler_heun", "euler_heun", "EulerHeun", ito=False, order=1.0),
        Scheme("reversible_heun", "reversible_heun", "ReversibleHeun", ito=False, order=1.0),
    )
}


def solves_sdes(backend: str) -> bool:
    """Whether the backend's host for SDEs is installed; torchdiffeq comes without one."""
    return backend != "torch" or importlib.util.find_spec("torchsde") is not None
