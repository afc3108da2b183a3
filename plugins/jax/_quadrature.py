"""The continuous adjoint with quadrature: what is passed to diffrax; a step of it is in ``_continuous.quadrature``."""

from typing import final

import diffrax
import equinox as eqx
from jaxtyping import PyTree

from steptape._errors import OptionError
from steptape.jax._autodiff.field import closed_ode, is_complex
from steptape.jax._autodiff.refusals import stopped, undifferentiated
from steptape.jax._continuous.event import closed_conditions
from steptape.jax._continuous.forward import ForwardSolve
from steptape.jax._continuous.solve import CALL, solve_continuously
from steptape.jax._types import Args, Controller, HostArguments, LoopState, ScalarLike, Solved, Solver, Terms

_WAY_OUT = "Pass `adjoint=steptape.jax.AdaptiveCheckpointAdjoint()`, which is exact."
# What diffrax tells an event's functions of the call, besides terms, t0 and t1.
_TOLD = ("solver", "stepsize_controller", "dt0", "saveat", "max_steps")
_OVERRIDES = ("solver", "stepsize_controller", "dt0", "max_steps")


@final
class QuadratureAdjoint(diffrax.AbstractAdjoint):
    """The continuous adjoint without its faults: one ODE for a(t) alone, and quadrature. Pass it as ``adjoint=``.

    The backward pass solves da/dt = -(∂f/∂y)ᵀ a adaptively, with y(t) read from the dense output of the forward solve
    instead of being integrated in reverse, which diverges for many fields. The gradient in the parameters θ is the
    integral of aᵀ ∂f/∂θ, taken inside each accepted step; no parameter is in the ODE, or in its error estimate. The
    backward solve takes the solver and the step size controller of the forward solve, with its tolerances, limits and
    norm. It begins with the forward solve's last step size, does not depend on the scale of the loss, and goes on with
    the step size it had from one output to the next. None of its steps is longer than the forward ones there, since no
    error norm sees how fast ∂f/∂θ varies: where a term that does is 0, such as b cos(ωt) at b = 0, bound the steps by a
    controller's ``dtmax``. The solution is diffrax's, bit for bit.

    Args:
        nodes: the quadrature. ``None``, the default: the stages of the step, with the weights of the method, which
            evaluates nothing again and has the order of the solver; n: Gauss-Legendre with n nodes on the dense output
            of each backward step, one more evaluation of the field at n times together. For solvers other than
            explicit Runge-Kutta methods ``None`` is as many nodes as half their order.
        checkpoints: hold the dense output of at most so many steps at any moment, and the states before at most so many
            blocks of as many steps; take the steps of a block again, once, for its dense output, and once more for each
            time that its own first state is missing. ``None``: ``2 sqrt(max_steps)``, or 64 if that is more.
        overrides: what the backward solve is not to inherit: ``solver``, ``stepsize_controller``, ``dt0`` (unit of
            ``t``) or ``max_steps``.

    Approximate:
        The gradient is that of the exact solution, up to the tolerances of both solves; for smooth problems it is as
        near to it as that of the discrete solution, which ``AdaptiveCheckpointAdjoint`` gives. It has one for ``y0``,
        ``args``, ``terms``, what the field closes over, ``t0``, ``t1`` and ``SaveAt(ts=...)``. The exact solution does
        not depend on ``dt0`` or on a ``solver_state`` passed on: their gradient is zero.

    Memory:
        ``checkpoints`` rows of the solver's dense output while differentiated, for a Runge-Kutta method of s stages
        s + 2 states each, at most ``checkpoints`` states of the solver, and a few numbers per step of ``max_steps``. A
        solve of no more accepted steps than ``checkpoints`` takes none again, and one of up to their square each at
        most once. The backward solve holds s copies of a and three of the parameters' gradient.

    Supports:
        - Problems: ODEs given by one ``ODETerm``; pytree states of real numbers; time running either way.
        - Solvers: those that take one term and whose dense output is as good as their steps.
        - Controllers: any but ``StepTo``, also ``ConstantStepSize``.
        - Output: ``SaveAt`` with ``t0``, ``t1`` and ``ts``. Events, also with a root finder: the time of the root has a
          gradient, the end of a step has none.
        - Transforms: ``jit``, ``vmap``, and reverse mode, once.

    Raises:
        steptape.OptionError: for arguments other than these.
        steptape.UnsupportedError: when the solve is differentiated, not when it runs, for all that is not supported.
        RuntimeError: equinox's, if the backward solve fails; with ``throw=False`` its gradient is NaN instead.

    Source:
        Hu, arXiv 2402.15141, first point.

    Example:
        >>> import diffrax, jax, steptape.jax
        >>> def end(rate):
        ...     term, controller = diffrax.ODETerm(lambda t, y, rate: -rate * y), diffrax.PIDController(1e-5, 1e-5)
        ...     adjoint = steptape.jax.QuadratureAdjoint()
        ...     return diffrax.diffeqsolve(
        ...         term, diffrax.Tsit5(), 0.0, 1.0, 0.1, 1.0, rate, stepsize_controller=controller, adjoint=adjoint
        ...     ).ys[0]
        >>> print(f"{jax.grad(end)(1.0):.3f}")
        -0.368
    """

    nodes: int | None = eqx.field(static=True)
    checkpoints: int | None = eqx.field(static=True)
    overrides: HostArguments

    def __init__(self, nodes: int | None = None, checkpoints: int | None = None, **overrides: PyTree) -> None:
        if not _is_count(nodes):
            raise OptionError(
                f"QuadratureAdjoint(nodes={nodes!r}): must be a positive number of Gauss-Legendre nodes, or None for "
                "the solver's own stages."
            )
        if not _is_count(checkpoints):
            raise OptionError(
                f"QuadratureAdjoint(checkpoints={checkpoints!r}): must be a positive number of steps, or None for "
                "2 sqrt(max_steps)."
            )
        unknown = sorted(set(overrides) - set(_OVERRIDES))
        if unknown:
            raise OptionError(
                f"QuadratureAdjoint({unknown[0]}=...): must be one of nodes, checkpoints, {', '.join(_OVERRIDES)}."
            )
        solver = overrides.get("solver")
        if isinstance(solver, diffrax.AbstractImplicitSolver):
            raise OptionError(
                f"QuadratureAdjoint(solver={type(solver).__name__}(...)): the tolerances of an implicit solver's root "
                "finder are known for the forward solve's alone. Use it there, or pass an explicit one."
            )
        self.nodes = nodes
        self.checkpoints = checkpoints
        self.overrides = overrides

    def loop(self, *, terms: Terms, args: Args, t0: ScalarLike, t1: ScalarLike, **solve: PyTree) -> Solved:
        """Run diffrax's loop; called by ``diffeqsolve``."""
        del solve["passed_solver_state"], solve["passed_controller_state"]
        state, saveat = solve["init_state"], solve["saveat"]
        closed = closed_ode(terms, state.tprev, state.y, args)
        refusal = self._refusal(closed, **solve)
        terms = terms if closed is None else closed
        times = (t0, t1, getattr(saveat.subs, "ts", None))
        if refusal is not None:
            solve["saveat"] = undifferentiated(saveat, why=refusal)
        for name in ("init_state", "saveat", "dt0"):
            solve[name] = stopped(solve[name])
        gradientless = (solve["solver"], solve["stepsize_controller"], self.overrides)
        solve["solver"], solve["stepsize_controller"], overrides = undifferentiated(
            gradientless,
            why=f"{CALL} has no gradient for a solver or a step size controller. Pass "
            "`adjoint=steptape.jax.AdaptiveCheckpointAdjoint()`.",
        )
        told = {name: solve[name] for name in _TOLD}
        conditions = closed_conditions(solve["event"], state.tprev, state.y, args, terms=terms, t0=t0, t1=t1, **told)
        if conditions is not None:
            solve["event"] = eqx.tree_at(lambda e: e.cond_fn, solve["event"], None)
        forward = ForwardSolve(solve, overrides, self.nodes, self.checkpoints, refusal)
        return solve_continuously((state.y, args, terms, times, conditions), forward)

    def _refusal(
        self,
        terms: Terms | None,
        *,
        solver: Solver,
        stepsize_controller: Controller,
        max_steps: int | None,
        saveat: diffrax.SaveAt,
        init_state: LoopState,
        **_: PyTree,
    ) -> str | None:
        """Why this solve cannot be differentiated, if so; the solve itself is diffrax's in any case."""
        sub = saveat.subs
        why = None
        if max_steps is None:
            return (
                f"{CALL} cannot be differentiated with `max_steps=None`: JAX must know how many steps the dense output "
                "is to hold. Pass `max_steps=...`, or `adjoint=steptape.jax.AdaptiveCheckpointAdjoint(checkpoints=k)`."
            )
        if saveat.dense or not isinstance(sub, diffrax.SubSaveAt):
            why = f"`saveat=SaveAt({'dense=True' if saveat.dense else 'subs=...'})`"
        elif sub.steps:
            why = "`saveat=SaveAt(steps=...)`"
        elif sub.fn is not diffrax.SubSaveAt(t1=True).fn:
            why = "`saveat=SaveAt(fn=...)`"
        elif saveat.solver_state or saveat.controller_state:
            why = "`saveat=SaveAt(solver_state=True)` or `SaveAt(controller_state=True)`"
        elif terms is None:
            why = "terms other than one `ODETerm`"
        elif is_complex(init_state.y):
            why = "a complex state"
        elif _interpolates_badly(solver, terms):
            why = f"`solver={type(solver).__name__}(...)`, whose dense output is of lower order than its steps,"
        elif isinstance(self.overrides.get("stepsize_controller", stepsize_controller), diffrax.StepTo):
            why = "`stepsize_controller=StepTo(...)`, and no other one as `QuadratureAdjoint(stepsize_controller=...)`,"
        return why and f"{CALL} with {why} has no continuous adjoint here. {_WAY_OUT}"


def _is_count(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0)


def _interpolates_badly(solver: Solver, terms: Terms) -> bool:
    linear = solver.interpolation_cls is diffrax.LocalLinearInterpolation
    return linear and (solver.order(terms) or 0) > 2
