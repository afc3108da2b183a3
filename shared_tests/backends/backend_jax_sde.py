"""Runs a case with diffrax on a given Brownian path: ACA and the host's own back-propagation.

Switches JAX to float64 on import.
"""

import functools
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax

from steptape.shared_tests.backends.backend_jax import make_adjoint
from steptape.shared_tests.backends.backend_jax import versions as versions
from steptape.shared_tests.backends.backends import Case, Run
from steptape.shared_tests.backends.sde_schemes import SCHEMES, STEPS
from steptape.shared_tests.problems.sde_paths import path_values, per_path
from steptape.shared_tests.problems.sde_problems import OUTPUT_TIMES, SDE_PROBLEMS


class GridBrownian(diffrax.AbstractBrownianPath):
    """A Brownian path given by its values at equidistant times from 0 to 1, linear between them.

    `values` has shape (points, channels).
    """

    values: jax.Array = eqx.field(kw_only=True)
    t0 = 0.0
    t1 = 1.0
    levy_area: Any = eqx.field(default=diffrax.BrownianIncrement, static=True)

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True, use_levy: bool = False) -> Any:
        """Return W(t1) - W(t0), or W(t0)."""
        if t1 is None:
            return self._at(t0)
        increment = self._at(t1) - self._at(t0)
        return diffrax.BrownianIncrement(dt=t1 - t0, W=increment) if use_levy else increment

    def _at(self, t: Any) -> Any:
        cells = self.values.shape[0] - 1
        place = t * cells
        cell = jnp.clip(jnp.floor(place).astype(int), 0, cells - 1)
        low, high = self.values[cell], self.values[cell + 1]
        return low + (place - cell) * (high - low)


def run(case: Case) -> Run:
    """Solve forward, differentiate, and return the record of the run."""
    problem = SDE_PROBLEMS[case.problem]
    inputs = [jnp.asarray(x) for x in (per_path(problem.y0), per_path(problem.params), path_values(problem.channels))]
    (loss, ys), gradient = _compiled(case.problem, case.method, case.solver)(*inputs, case.step)
    return Run(
        "jax",
        case,
        loss=float(loss),
        ys=ys.reshape(len(ys), -1).tolist(),
        gradient=dict(zip(("y0", "params"), (part.ravel().tolist() for part in gradient), strict=True)),
    )


@functools.cache
def _compiled(problem: str, method: str, scheme: str) -> Callable[..., Any]:
    """Return the compiled loss, outputs and gradient; one compilation serves every step size."""
    adjoint, solver = make_adjoint(method), getattr(diffrax, SCHEMES[scheme].jax_name)()
    solve = functools.partial(_solve, problem=problem, solver=solver, adjoint=adjoint)

    def loss(y0: Any, params: Any, values: Any, step: Any) -> Any:
        ys = jax.vmap(solve, in_axes=(0, 0, 0, None), out_axes=1)(y0, params, values, step)
        return SDE_PROBLEMS[problem].loss(ys), ys

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))


def _solve(y0: Any, params: Any, values: Any, step: Any, *, problem: str, solver: Any, adjoint: Any) -> Any:
    """Return the states of one path, shape (outputs, dim)."""
    sde = SDE_PROBLEMS[problem]

    def diffusion(t: Any, y: Any, params: Any) -> Any:
        g = sde.diffusion(t, y, params)
        return lineax.DiagonalLinearOperator(g) if sde.noise == "diagonal" else g

    noise = diffrax.ControlTerm(diffusion, GridBrownian(values=values))
    terms: Any = diffrax.MultiTerm(diffrax.ODETerm(sde.drift), noise)
    return diffrax.diffeqsolve(
        terms,
        solver,
        t0=0.0,
        t1=1.0,
        dt0=step,
        y0=y0,
        args=params,
        saveat=diffrax.SaveAt(ts=OUTPUT_TIMES),
        adjoint=adjoint,
        max_steps=round(1 / min(STEPS)),
    ).ys
