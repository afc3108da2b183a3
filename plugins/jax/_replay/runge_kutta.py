"""An explicit Runge-Kutta step made to be differentiated: the host's tableau, and nothing but the solution.

diffrax runs the stages in a checkpointed loop, whose derivative evaluates every stage once more. Unrolled, the same
arithmetic (to rounding) is evaluated once, but XLA then holds the intermediates of all stages, and for each of them a
gradient of the parameters; so there is a loop here too, for who would rather have the memory. The first stage is
evaluated from y instead of being carried over from the step before, so a checkpoint is one state.
"""

import functools
import operator
from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import PyTree

from steptape.jax._tape.rows import allocate, put
from steptape.jax._types import Args, BoolScalar, DenseInfo, Rows, Scalar, ScalarLike, Solver, SolverState, Terms, Y


def _combination(coefficients: np.ndarray, stages: list[Y]) -> Y:
    """The sum of ``coefficients[j] * stages[j]``, leaving out the zeros of the tableau."""
    used = [(float(c), k) for c, k in zip(coefficients, stages, strict=False) if c != 0]
    if not used:
        return jax.tree.map(jnp.zeros_like, stages[0])
    weights, trees = zip(*used, strict=True)

    def add_up(*leaves):
        return functools.reduce(operator.add, (w * x for w, x in zip(weights, leaves, strict=True)))

    return jax.tree.map(add_up, *trees)


def _plus(y: Y, increment: Y) -> Y:
    return jax.tree.map(jnp.add, y, increment)


def is_explicit(solver: diffrax.AbstractSolver) -> bool:
    """Whether ``solver`` is an explicit Runge-Kutta method that takes its steps as diffrax's base class does."""
    cls = type(solver)
    # Not isinstance: diffrax's wrapping solvers pass themselves off as what they wrap.
    if not issubclass(cls, diffrax.AbstractERK) or cls.step is not diffrax.AbstractRungeKutta.step:
        return False
    tableau = cls.tableau
    return isinstance(tableau, diffrax.ButcherTableau) and not tableau.implicit and not tableau.c1


class ReplayedRungeKutta(eqx.Module):
    """What diffrax's loop asks of a solver, for ``solver``'s steps without error estimate and state.

    ``interpolates`` is for solves with output inside a step, which needs the last stage; ``by_stage`` for a derivative
    that holds the intermediates of one evaluation at a time.
    """

    solver: Solver
    interpolates: bool = eqx.field(static=True)
    by_stage: bool = eqx.field(static=True)

    @property
    def interpolation_cls(self) -> Callable:
        """The solver's own, or one that leaves the stages unused."""
        return self.solver.interpolation_cls if self.interpolates else diffrax.LocalLinearInterpolation

    def error_order(self, terms: Terms) -> ScalarLike | None:
        """As the solver's; nothing depends on it."""
        return self.solver.error_order(terms)

    def step(
        self,
        terms: Terms,
        t0: Scalar,
        t1: Scalar,
        y0: Y,
        args: Args,
        solver_state: SolverState,
        made_jump: BoolScalar | bool,
    ) -> tuple[Y, None, DenseInfo, SolverState, PyTree]:
        """One step; ``solver_state`` passes through untouched and there is no error estimate."""
        control = terms.contr(t0, t1)

        def slope(t, y):
            return terms.vf_prod(t, y, args, control)

        step = _by_stage if self.by_stage else _unrolled
        y1, stages = step(self.solver.tableau, slope, t0, t1, y0, self.interpolates)
        dense_info: dict[str, Y | Rows] = {"y0": y0, "y1": y1}
        if self.interpolates:
            dense_info["k"] = stages
        return y1, None, dense_info, solver_state, diffrax.RESULTS.successful


def _unrolled(
    tableau: diffrax.ButcherTableau, slope: Callable, t0: Scalar, t1: Scalar, y0: Y, every: bool
) -> tuple[Y, Rows | None]:
    """The end of a step and its stages, without the last one where only ``every`` stage needs it."""
    stages = [slope(t0, y0)]
    y = y0
    for c, row in zip(tableau.c, tableau.a_lower, strict=True):
        y = _plus(y0, _combination(row, stages))
        if len(stages) == tableau.num_stages - 1 and tableau.ssal and not every:
            break
        t = t1 if c == 1 else t0 + float(c) * (t1 - t0)
        stages.append(slope(t, y))
    y1 = y if tableau.ssal else _plus(y0, _combination(tableau.b_sol, stages))
    return y1, jax.tree.map(lambda *leaves: jnp.stack(leaves), *stages) if every else None


def _by_stage(
    tableau: diffrax.ButcherTableau, slope: Callable, t0: Scalar, t1: Scalar, y0: Y, every: bool
) -> tuple[Y, Rows | None]:
    """As ``_unrolled``, in a loop, whose derivative evaluates each stage again, by itself."""
    count = tableau.num_stages - (tableau.ssal and not every)
    weights = np.zeros((count, count))
    for i, row in enumerate(tableau.a_lower[: count - 1], start=1):
        weights[i, :i] = row
    slope = jax.checkpoint(slope, prevent_cse=False)

    def combination(row, stages):
        return jax.tree.map(lambda k: jnp.tensordot(row.astype(k.dtype), k, axes=1), stages)

    def stage(stages, at):
        i, c, row = at
        t = jnp.where(c == 1, t1, t0 + c.astype(t0.dtype) * (t1 - t0))
        return put(stages, i, slope(t, _plus(y0, combination(row, stages)))), None

    stages = allocate(count, y0)
    at = (jnp.arange(count), jnp.append(0.0, tableau.c[: count - 1]), jnp.asarray(weights))
    stages, _ = lax.scan(stage, stages, at)
    return _plus(y0, combination(jnp.asarray(tableau.b_sol[:count]), stages)), stages
