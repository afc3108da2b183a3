"""Adjoints around another one: one that tells of evaluations and steps, and one that solves far more finely."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from steptape._errors import UnsupportedError
from steptape.compat._diffrax import with_fields
from steptape.jax._types import Controller, Solved, Solver, Terms


class Watched(diffrax.AbstractAdjoint):
    """``inner``, with a call of ``on_evaluation`` in each evaluation of the field, and of ``on_end`` after a solve.

    The latter is told the steps that were tried and those that were accepted.
    """

    inner: diffrax.AbstractAdjoint
    on_evaluation: Callable[[], None] = eqx.field(static=True)
    on_end: Callable[[Any, Any], None] = eqx.field(static=True)

    def loop(self, *, terms: Terms, **solve: Any) -> Solved:
        """Run that of ``inner``; called by ``diffeqsolve``."""
        final, statistics = self.inner.loop(terms=self._watched(terms), **solve)
        jax.debug.callback(self.on_end, final.num_steps, final.num_accepted_steps)
        return final, statistics

    def _watched(self, terms: Terms) -> Terms:
        def of_term(term: Any) -> Any:
            if not isinstance(term, _WITH_FIELD):
                return term
            return eqx.tree_at(lambda x: x.vector_field, term, _Field(term.vector_field, self.on_evaluation))

        return jax.tree.map(of_term, terms, is_leaf=lambda x: isinstance(x, _WITH_FIELD))


_WITH_FIELD = (diffrax.ODETerm, diffrax.ControlTerm)


class _Field(eqx.Module):
    field: Any
    told: Callable[[], None] = eqx.field(static=True)

    def __call__(self, *given: Any) -> Any:
        jax.debug.callback(self.told)
        return self.field(*given)


class Tight(diffrax.AbstractAdjoint):
    """``inner``, of a far finer solve of at most ``most`` steps: of an ODE by Dopri8, of others by the caller's solver.

    Its tolerance is 1e-4 of the caller's, or ``least`` where that is more, or there is none.
    """

    inner: diffrax.AbstractAdjoint
    least: float = eqx.field(static=True)
    most: int = eqx.field(static=True)

    def loop(self, *, terms: Terms, solver: Solver, stepsize_controller: Controller, **solve: Any) -> Solved:
        """Run that of ``inner``; called by ``diffeqsolve``."""
        state, saveat = solve["init_state"], solve["saveat"]
        fixed = saveat.dense or solve["event"] is not None
        if isinstance(solver, diffrax.AbstractERK) and not fixed and solver.term_structure is diffrax.AbstractTerm:
            solver = diffrax.Dopri8()
        solver = self._finer_roots(solver)
        controller = self._finer(stepsize_controller, solver)
        tnext, controller_state = controller.init(
            terms, solve["t0"], solve["t1"], state.y, None, solve["args"], solver.func, solver.error_order(terms)
        )
        tnext = jnp.minimum(tnext, solve["t1"])
        solver_state = solver.init(terms, solve["t0"], tnext, state.y, solve["args"])
        fields = {"tnext": tnext, "controller_state": controller_state, "solver_state": solver_state}
        solve["init_state"] = with_fields(state, **fields)
        if not (saveat.dense or any(getattr(sub, "steps", 0) for sub in _subs(saveat))):
            solve["max_steps"] = self.most
        return self.inner.loop(terms=terms, solver=solver, stepsize_controller=controller, **solve)

    def _finer(self, controller: Controller, solver: Solver) -> Controller:
        if isinstance(controller, diffrax.PIDController):
            return eqx.tree_at(lambda c: (c.rtol, c.atol), controller, replace_fn=self._fraction)
        if hasattr(controller, "controller"):
            return eqx.tree_at(lambda c: c.controller, controller, self._finer(controller.controller, solver))
        if isinstance(solver, diffrax.AbstractAdaptiveSolver) and not isinstance(controller, diffrax.StepTo):
            return diffrax.PIDController(rtol=self.least, atol=0.1 * self.least)
        raise UnsupportedError(f"{type(solver).__name__} with {type(controller).__name__} has no tolerance to tighten")

    def _fraction(self, tolerance: Any) -> Any:
        return jnp.maximum(1e-4 * tolerance, 0.1 * self.least)

    def _finer_roots(self, solver: Solver) -> Solver:
        if not isinstance(solver, diffrax.AbstractImplicitSolver):
            return solver
        return eqx.tree_at(lambda s: (s.root_finder.rtol, s.root_finder.atol), solver, replace_fn=self._fraction)


def _subs(saveat: diffrax.SaveAt) -> list[Any]:
    return jax.tree.leaves(saveat.subs, is_leaf=lambda x: isinstance(x, diffrax.SubSaveAt))
