"""Runs a case of a fault with diffrax: constant steps with outputs at their ends."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp

from steptape.jax import AdaptiveCheckpointAdjoint
from steptape.shared_tests.backends.backend_jax import versions
from steptape.shared_tests.backends.backends import Case, Run
from steptape.shared_tests.problems.host_faults import END, OUTPUTS, RATE, STEPS

__all__ = ["run", "versions"]

_ADJOINTS = {"aca": AdaptiveCheckpointAdjoint, "recursive_default": diffrax.RecursiveCheckpointAdjoint}


def run(case: Case) -> Run:
    """Solve forward, differentiate, and return the record of the run."""

    def loss(rate: Any) -> Any:
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, rate: -rate * y),
            diffrax.Euler(),
            t0=0.0,
            t1=END,
            dt0=END / STEPS,
            y0=jnp.array(1.0),
            args=rate,
            saveat=diffrax.SaveAt(ts=jnp.linspace(0.0, END, OUTPUTS)),
            adjoint=_ADJOINTS[case.method](),
        )
        return jnp.sum(solution.ys**2)

    value, by_rate = jax.jit(jax.value_and_grad(loss))(RATE)
    return Run("jax", case, loss=float(value), gradient={"params": [float(by_rate)]})
