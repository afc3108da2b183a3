"""An explicit Runge-Kutta step made to be differentiated: the host's tableau, unrolled, and nothing but the solution.

diffrax runs the stages in a checkpointed loop, whose derivative evaluates every stage once more. Unrolled, the same
arithmetic (to rounding) is evaluated once. The first stage is evaluated from y instead of being carried over from the
step before, so a checkpoint is one state.
"""

import functools
import operator
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np


def _combination(coefficients: np.ndarray, stages: list) -> Any:
    """The sum of ``coefficients[j] * stages[j]``, leaving out the zeros of the tableau."""
    used = [(float(c), k) for c, k in zip(coefficients, stages, strict=False) if c != 0]
    if not used:
        return jax.tree.map(jnp.zeros_like, stages[0])
    weights, trees = zip(*used, strict=True)

    def add_up(*leaves):
        return functools.reduce(operator.add, (w * x for w, x in zip(weights, leaves, strict=True)))

    return jax.tree.map(add_up, *trees)


def _plus(y: Any, increment: Any) -> Any:
    return jax.tree.map(jnp.add, y, increment)


def can_unroll(solver: diffrax.AbstractSolver) -> bool:
    """Whether ``solver`` is an explicit Runge-Kutta method that takes its steps as diffrax's base class does."""
    cls = type(solver)
    # Not isinstance: diffrax's wrapping solvers pass themselves off as what they wrap.
    if not issubclass(cls, diffrax.AbstractERK) or cls.step is not diffrax.AbstractRungeKutta.step:
        return False
    tableau = cls.tableau
    return isinstance(tableau, diffrax.ButcherTableau) and not tableau.implicit and not tableau.c1


class UnrolledERK(eqx.Module):
    """What diffrax's loop asks of a solver, for ``solver``'s steps without stage loop, error estimate and state.

    ``interpolates`` is for solves with output inside a step, which needs the last stage.
    """

    solver: Any
    interpolates: bool = eqx.field(static=True)

    @property
    def interpolation_cls(self):
        """The solver's own, or one that leaves the stages unused."""
        return self.solver.interpolation_cls if self.interpolates else diffrax.LocalLinearInterpolation

    def error_order(self, terms):
        """As the solver's; nothing depends on it."""
        return self.solver.error_order(terms)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """One step; ``solver_state`` passes through untouched and there is no error estimate."""
        tableau = self.solver.tableau
        control = terms.contr(t0, t1)
        stages = [terms.vf_prod(t0, y0, args, control)]
        y = y0
        for c, row in zip(tableau.c, tableau.a_lower, strict=True):
            y = _plus(y0, _combination(row, stages))
            if len(stages) == tableau.num_stages - 1 and tableau.ssal and not self.interpolates:
                break
            t = t1 if c == 1 else t0 + float(c) * (t1 - t0)
            stages.append(terms.vf_prod(t, y, args, control))
        y1 = y if tableau.ssal else _plus(y0, _combination(tableau.b_sol, stages))
        dense_info = {"y0": y0, "y1": y1}
        if self.interpolates:
            dense_info["k"] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *stages)
        return y1, None, dense_info, solver_state, diffrax.RESULTS.successful
