"""Where a host's own gradient is known to be wrong: problems with a closed form, run by the host and by us."""

import math
from dataclasses import dataclass

STEPS, OUTPUTS, END, RATE = 198, 100, 2.0, 0.7
"""dy/dt = -RATE y by Euler's method in STEPS steps over [0, END], the squares of OUTPUTS summed: one each two steps."""

TOLERANCE, WEIGHT, SPAN = 1e-10, 0.5, (1.0, 2.0)
"""dy/dt = WEIGHT t y by dopri5 over SPAN, the field reading t as a number."""


def _sum_of_squares_by_rate() -> float:
    h = END / STEPS
    return sum(-4 * j * h * (1 - RATE * h) ** (4 * j - 1) for j in range(OUTPUTS))


@dataclass(frozen=True)
class Fault:
    """A problem on which the host's method `peer` is wrong; `right` is the gradient, to a relative `limit`."""

    backend: str
    solver: str
    peer: str
    right: float
    limit: float
    note: str
    rtol: float = 0.0


FAULTS = {
    "constant_steps": Fault(
        "jax",
        "euler",
        "recursive_default",
        _sum_of_squares_by_rate(),
        1e-12,
        "loses outputs at the ends of steps taken again: docs/host-issues/equinox-checkpointed-loop.md",
    ),
    "time_as_number": Fault(
        "torch",
        "dopri5",
        "backprop",
        (SPAN[1] ** 2 - SPAN[0] ** 2) / 2 * math.exp(WEIGHT * (SPAN[1] ** 2 - SPAN[0] ** 2) / 2),
        10 * TOLERANCE,
        "differentiates its guess of the first step: docs/host-issues/torchdiffeq-first-step.md",
        TOLERANCE,
    ),
}
