"""The continuous adjoint as Hu has it: an ODE for a(t) alone, and an integral for the parameters' gradient."""

import dataclasses
import functools
import operator
from typing import Any, final

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from steptape._errors import OptionError, UnsupportedError
from steptape.compat._diffrax import loop as host_loop
from steptape.compat._equinox import while_loop
from steptape.jax._backward import HostSteps, Outputs, Pullback, StageSteps, Trajectory, solve_backward
from steptape.jax._erk import is_explicit
from steptape.jax._field import closed_ode, rate, undifferentiated

_CALL = "`diffeqsolve(..., adjoint=QuadratureAdjoint(...))`"
_WAY_OUT = "Pass `adjoint=steptape.jax.AdaptiveCheckpointAdjoint()`, which is exact."
_OVERRIDES = ("solver", "stepsize_controller", "dt0", "max_steps")


@final
class QuadratureAdjoint(diffrax.AbstractAdjoint):
    """The continuous adjoint without its faults: one ODE for a(t) alone, and quadrature. Pass it as ``adjoint=``.

    The backward pass solves da/dt = -(∂f/∂y)ᵀ a adaptively, with y(t) read from the dense output of the forward solve
    instead of being integrated in reverse, which diverges for many fields. The gradient in the parameters θ is the
    integral of aᵀ ∂f/∂θ, taken inside each accepted step; no parameter is in the ODE, or in its error estimate. The
    backward solve takes the solver and the step size controller of the forward solve, with its tolerances, limits and
    norm. It begins with the forward solve's last step size, does not depend on the scale of the loss, and goes on with
    the step size it had from one output to the next. The solution is diffrax's, bit for bit.

    Arguments:
        nodes: the quadrature. ``None``, the default: the stages of the step, with the weights of the method, which
            evaluates nothing again and has the order of the solver; n: Gauss-Legendre with n nodes on the dense output
            of each backward step, one more evaluation of the field at n times together. For solvers other than
            explicit Runge-Kutta methods ``None`` is as many nodes as half their order.
        overrides: what the backward solve is not to inherit: ``solver``, ``stepsize_controller``, ``dt0`` (unit of
            ``t``) or ``max_steps``.

    Approximate:
        The gradient is that of the exact solution, up to the tolerances of both solves; for smooth problems it is as
        near to it as that of the discrete solution, which ``AdaptiveCheckpointAdjoint`` gives. It has one for ``y0``,
        ``args``, ``terms``, what the field closes over, ``t0``, ``t1`` and ``SaveAt(ts=...)``. The exact solution does
        not depend on ``dt0`` or on a ``solver_state`` passed on: their gradient is zero.

    Memory:
        ``max_steps`` rows of the solver's dense output while differentiated, for a Runge-Kutta method of s stages s + 2
        states each, whether they are used or not: choose ``max_steps`` with care. The backward solve holds s copies of
        a and three of the parameters' gradient.

    Supports:
        - Problems: ODEs given by one ``ODETerm``; pytree states of real numbers; time running either way.
        - Solvers: those that take one term and whose dense output is as good as their steps.
        - Controllers: any but ``StepTo``, also ``ConstantStepSize``.
        - Output: ``SaveAt`` with ``t0``, ``t1`` and ``ts``. No events.
        - Transforms: ``jit``, ``vmap``, and reverse mode, once. Forward mode raises JAX's ``TypeError``.

    Raises:
        steptape.OptionError: for arguments other than these.
        steptape.UnsupportedError: when the solve is differentiated, not when it runs, for all that is not supported.
        RuntimeError: equinox's, if the backward solve fails; with ``throw=False`` its gradient is NaN instead.

    Source:
        Hu, arXiv 2402.15141, first point.
    """

    nodes: int | None = eqx.field(static=True)
    overrides: dict[str, Any]

    def __init__(self, nodes: int | None = None, **overrides: Any) -> None:
        if nodes is not None and (isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 1):
            raise OptionError(
                f"QuadratureAdjoint(nodes={nodes!r}): must be a positive number of Gauss-Legendre nodes, or None for "
                "the solver's own stages."
            )
        unknown = sorted(set(overrides) - set(_OVERRIDES))
        if unknown:
            raise OptionError(f"QuadratureAdjoint({unknown[0]}=...): must be one of nodes, {', '.join(_OVERRIDES)}.")
        solver = overrides.get("solver")
        if isinstance(solver, diffrax.AbstractImplicitSolver):
            raise OptionError(
                f"QuadratureAdjoint(solver={type(solver).__name__}(...)): the tolerances of an implicit solver's root "
                "finder are known for the forward solve's alone. Use it there, or pass an explicit one."
            )
        self.nodes = nodes
        self.overrides = overrides

    def loop(self, *, terms: Any, args: Any, t0: Any, t1: Any, **solve: Any) -> Any:
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
            solve[name] = _stopped(solve[name])
        gradientless = (solve["solver"], solve["stepsize_controller"], self.overrides)
        solve["solver"], solve["stepsize_controller"], overrides = undifferentiated(
            gradientless,
            why=f"{_CALL} has no gradient for a solver or a step size controller. Pass "
            "`adjoint=steptape.jax.AdaptiveCheckpointAdjoint()`.",
        )
        final, stats = _solve((state.y, args, terms, times), _Call(solve, overrides, self.nodes, refusal))
        moving, fixed = eqx.partition(final, eqx.is_inexact_array)
        return eqx.combine(moving, _still(fixed)), stats

    def _refusal(
        self, terms: Any, *, solver, stepsize_controller, max_steps, saveat, event, init_state, **_
    ) -> str | None:
        """Why this solve cannot be differentiated, if so; the solve itself is diffrax's in any case."""
        sub = saveat.subs
        why = None
        if max_steps is None:
            return (
                f"{_CALL} with `max_steps=None`: JAX must know how many steps the dense output is to hold. {_WAY_OUT}"
            )
        if saveat.dense or not isinstance(sub, diffrax.SubSaveAt):
            why = f"`saveat=SaveAt({'dense=True' if saveat.dense else 'subs=...'})`"
        elif sub.steps:
            why = "`saveat=SaveAt(steps=...)`"
        elif sub.fn is not diffrax.SubSaveAt(t1=True).fn:
            why = "`saveat=SaveAt(fn=...)`"
        elif saveat.solver_state or saveat.controller_state:
            why = "`saveat=SaveAt(solver_state=True)` or `SaveAt(controller_state=True)`"
        elif event is not None:
            why = "`event=...`"
        elif terms is None:
            why = "terms other than one `ODETerm`"
        elif any(jnp.iscomplexobj(x) for x in jax.tree.leaves(init_state.y)):
            why = "a complex state"
        elif _interpolates_badly(solver, terms):
            why = f"`solver={type(solver).__name__}(...)`, whose dense output is of lower order than its steps,"
        elif isinstance(self.overrides.get("stepsize_controller", stepsize_controller), diffrax.StepTo):
            why = "`stepsize_controller=StepTo(...)`, and no other one as `QuadratureAdjoint(stepsize_controller=...)`,"
        return why and f"{_CALL} with {why} has no continuous adjoint here. {_WAY_OUT}"


def _interpolates_badly(solver: Any, terms: Any) -> bool:
    linear = solver.interpolation_cls is diffrax.LocalLinearInterpolation
    return linear and (solver.order(terms) or 0) > 2


@eqx.filter_custom_jvp
def _still(counts: Any) -> Any:
    """``counts``, without the tangent that a custom VJP gives even to an integer."""
    return counts


@_still.def_jvp
def _still_jvp(primals, tangents):
    return primals[0], jax.tree.map(lambda _: None, primals[0])


def _stopped(tree: Any) -> Any:
    return jax.tree.map(lambda x: lax.stop_gradient(x) if eqx.is_inexact_array(x) else x, tree)


class _Call(eqx.Module):
    """What is not differentiated."""

    solve: dict[str, Any]
    overrides: dict[str, Any]
    nodes: int | None = eqx.field(static=True)
    refusal: str | None = eqx.field(static=True)

    def forward(self, y0: Any, args: Any, terms: Any, times: tuple, dense: bool) -> tuple[Any, Any]:
        """diffrax's loop, with its dense output if so told."""
        solve = {name: value for name, value in self.solve.items() if name != "throw"}
        t0, t1, ts = times
        state, saveat = dataclasses.replace(solve.pop("init_state"), y=y0), solve.pop("saveat")
        if ts is not None:
            saveat = eqx.tree_at(lambda s: s.subs.ts, saveat, ts)
        if dense:
            saveat = eqx.tree_at(lambda s: s.dense, saveat, True)
            state = _with_dense_output(state, solve["solver"], terms, args, solve["max_steps"])
        loops = {f"{which}_while_loop": functools.partial(while_loop, kind="lax") for which in ("inner", "outer")}
        return host_loop(terms=terms, args=args, t0=t0, t1=t1, init_state=state, saveat=saveat, **loops, **solve)

    def steps(self, pull: Pullback) -> StageSteps | HostSteps:
        """How the backward solve takes its steps."""
        solver = self.overrides.get("solver", self.solve["solver"])
        if self.nodes is None and is_explicit(solver):
            return StageSteps(pull, solver)
        order = solver.order(diffrax.ODETerm(pull.slope))
        return HostSteps(pull, solver, self.nodes or max(1, (order + 1) // 2))

    def controller(self, direction: Any) -> Any:
        """The controller of the backward solve, in its own direction of time."""
        if "stepsize_controller" in self.overrides:
            return self.overrides["stepsize_controller"].wrap(direction).wrap(-1)
        return self.solve["stepsize_controller"].wrap(-1)


def _with_dense_output(state: Any, solver: Any, terms: Any, args: Any, max_steps: int) -> Any:
    """The loop's first state, with room for the dense output."""
    _, _, info, _, _ = eqx.filter_eval_shape(
        solver.step, terms, state.tprev, state.tnext, state.y, args, state.solver_state, state.made_jump
    )
    infos = jax.tree.map(lambda x: jnp.full((max_steps, *x.shape), jnp.inf, x.dtype), info)
    ts = jnp.full(max_steps + 1, jnp.inf, state.tprev.dtype)
    return dataclasses.replace(state, dense_ts=ts, dense_infos=infos, dense_save_index=0)


@eqx.filter_custom_vjp
def _solve(moving, call):
    return call.forward(*moving, dense=False)


@_solve.def_fwd
def _solve_fwd(perturbed, moving, call):
    if call.refusal is not None:
        return call.forward(*moving, dense=False), None
    final, stats = call.forward(*moving, dense=True)
    trajectory = Trajectory(
        final.dense_ts, final.dense_infos, final.dense_save_index, call.solve["solver"].interpolation_cls
    )
    arrived = final.tprev >= moving[-1][1]
    final = dataclasses.replace(final, dense_ts=None, dense_infos=None, dense_save_index=None)
    return (final, stats), (trajectory, final.save_state.ys, arrived)


@_solve.def_bwd
def _solve_bwd(residuals, cotangents, perturbed, moving, call):
    if call.refusal is not None:
        raise UnsupportedError(call.refusal)
    trajectory, ys, arrived = residuals
    y0, args, terms, times = moving
    saved, sub = cotangents[0].save_state, call.solve["saveat"].subs
    g_ys = jax.tree.map(lambda y, g: jnp.zeros_like(y) if g is None else g, ys, saved.ys)
    start = int(sub.t0)  # What is saved at t0 is y0 itself.
    later, g_later = jax.tree.map(lambda x: x[start:], (ys, g_ys))

    theta, fixed = eqx.partition((terms, args), (perturbed[2], perturbed[1]))
    a, (g_terms, g_args) = _backward(call, Pullback(trajectory, theta, fixed), terms.direction, times, g_later, arrived)
    g_y0 = jax.tree.map(lambda a, g: a + g[0], a, g_ys) if start else a

    rates = jax.vmap(lambda t, y: rate(terms, t, y, args))(_output_times(sub, times), later)
    g_ts = _product(g_later, rates, axis=0) + (0 if saved.ts is None else saved.ts[start:])
    g_t0 = -_product(a, rate(terms, times[0], y0, args)) + (saved.ts[0] if start and saved.ts is not None else 0)
    g_t1 = g_ts[-1] if sub.t1 else jnp.zeros_like(times[1])
    g_times = (g_t0, g_t1, None if times[2] is None else g_ts[: len(times[2])])
    grads = eqx.filter((g_y0, g_args, g_terms, g_times), perturbed)
    return undifferentiated(
        grads,
        why=f"Second derivatives of {_CALL}: the backward pass is an adaptive solve of its own. Use "
        "`adjoint=diffrax.DirectAdjoint()`.",
    )


def _output_times(sub: Any, times: tuple) -> Any:
    """The times of the outputs after t0 itself, shape (outputs,)."""
    _, t1, ts = times
    parts = ([] if ts is None else [ts]) + ([t1[None]] if sub.t1 else [])
    return jnp.concatenate([*parts, jnp.zeros(0, t1.dtype)])


def _product(a: Any, b: Any, axis: int | None = None) -> Any:
    """The inner product of two states, or of each of their rows."""
    sums = jax.tree.map(lambda x, y: jnp.sum(x * y, axis=None if axis is None else tuple(range(1, x.ndim))), a, b)
    return functools.reduce(operator.add, jax.tree.leaves(sums))


def _backward(
    call: _Call, pull: Pullback, direction: Any, times: tuple, cotangents: Any, arrived: Any
) -> tuple[Any, Any]:
    """a(t0) and the gradients of (terms, args), given the cotangents of the outputs after t0, a row for each."""
    t0, t1, _ = times
    ts = _output_times(call.solve["saveat"].subs, times)
    if not len(ts):
        ts, cotangents = t1[None], jax.tree.map(lambda g: jnp.zeros((1, *g.shape[1:]), g.dtype), cotangents)
    # The solve is linear: at this scale its absolute tolerance means the same whatever the loss.
    scale = functools.reduce(jnp.maximum, [jnp.max(jnp.abs(g)) for g in jax.tree.leaves(cotangents)])
    scale = jnp.where(scale == 0, 1, scale)
    outputs = Outputs(ts, jax.tree.map(lambda g: g / scale.astype(g.dtype), cotangents))
    dt0 = call.overrides.get("dt0", pull.trajectory.last_step())
    max_steps = call.overrides.get("max_steps", call.solve["max_steps"])
    tried = arrived & jnp.isfinite(scale)
    a, integral, ok = solve_backward(
        call.steps(pull), call.controller(direction), (t0, t1), outputs, jnp.abs(dt0), max_steps, tried
    )
    found = jax.tree.map(lambda g: jnp.where(ok, g * scale.astype(g.dtype), jnp.nan), (a, integral))
    if call.solve["throw"]:
        words = f"The backward solve of {_CALL} did not reach t0: raise `max_steps` or loosen the tolerances."
        found = eqx.error_if(found, tried & ~ok, words)
    return found
