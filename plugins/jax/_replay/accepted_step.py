"""A step of diffrax's loop that is known to be accepted: the same arithmetic without the search for its size."""

import dataclasses
from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from steptape.compat._diffrax import grows_freely, steps_adjoin, with_fields
from steptape.jax._autodiff.converted import Converted, converted
from steptape.jax._replay.host_loops import Loops
from steptape.jax._replay.runge_kutta import ReplayedRungeKutta, is_explicit
from steptape.jax._tape.tape import Times
from steptape.jax._types import Args, Controller, HostArguments, LoopState, Mask, Scalar, Solver, Terms


class AcceptedStep(eqx.Module):
    """A step of diffrax's loop that is known to be accepted, to be replayed.

    ``step(times, state)`` is the loop's body without the search, and ``kept`` is true for the leaves of a state that
    it reads. ``advance`` does as ``step``, of explicit methods for ``y`` alone, in a form that is never transposed and
    knows forward mode. ``rescales``: rejected tries may have shrunk a step. ``adjoining``: each step begins where the
    one before it ended. ``times_exact``: ``step`` knows how all times move; else it takes them from the tape, and will
    not do where they move.
    """

    step: Callable[[Times, LoopState], LoopState] | None
    advance: Callable[[Times, LoopState], LoopState] | None
    kept: Mask
    rescales: bool
    adjoining: bool
    times_exact: bool


def _at(value: Scalar, path: Scalar) -> Scalar:
    """``value``, exactly, with the derivative of ``path``."""
    return lax.stop_gradient(value) + (path - lax.stop_gradient(path))


class _AcceptingController(diffrax.AbstractStepSizeController):
    """Accept, and propose the step that was proposed: the growth is a constant, as in diffrax's PID controller.

    The controller state is ``Times``, with which any other controller's steps are taken too, if no time moves.
    """

    t1: Scalar

    def wrap(self, direction):
        """Nothing depends on the direction: the times are diffrax's own."""
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        """Never the first step's controller: a replay begins where the solve began."""
        raise NotImplementedError

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        """Accept the step from ``t0`` to ``t1``."""
        _, begun, proposed = controller_state
        growth = lax.stop_gradient((proposed - t1) / (t1 - t0))
        tnext = _at(proposed, t1 + growth * (t1 - t0))
        # A step cut off at the end moves with the end: hand the cut to diffrax, whose derivative it is.
        tnext = jnp.where(proposed >= self.t1, jnp.inf, tnext)
        return True, _at(begun, t1), tnext, False, controller_state, diffrax.RESULTS.successful


def _rejections(state: LoopState, taken: Scalar) -> LoopState:
    """Shrink the step of ``state`` from the one that was proposed to the one that was taken."""
    shrink = lax.stop_gradient((taken - state.tprev) / (state.tnext - state.tprev))
    path = state.tprev + shrink * (state.tnext - state.tprev)
    return with_fields(state, tnext=jnp.where(taken == state.tnext, state.tnext, _at(taken, path)))


def _subs(saveat: diffrax.SaveAt) -> list[diffrax.SubSaveAt]:
    return jax.tree.leaves(saveat.subs, is_leaf=lambda s: isinstance(s, diffrax.SubSaveAt))


def build_accepted_step(
    loops: Loops,
    *,
    terms: Terms,
    args: Args,
    solver: Solver,
    stepsize_controller: Controller,
    event: diffrax.Event | None,
    saveat: diffrax.SaveAt,
    t1: Scalar,
    init_state: LoopState,
    passed_solver_state: bool,
    by_stage: bool,
) -> AcceptedStep | None:
    """Build the step that replays the accepted ones of this solve; ``None`` if only its tries can be replayed."""
    controller = type(stepsize_controller)
    searches = controller not in (diffrax.ConstantStepSize, diffrax.StepTo)
    adjoining = not searches or (controller is diffrax.PIDController and steps_adjoin(stepsize_controller))
    times_exact = not searches or (controller is diffrax.PIDController and grows_freely(stepsize_controller))
    if event is not None and event.root_finder is not None:
        # Its root is sought in the last try, which need not have been accepted.
        return None
    subs = _subs(saveat)
    interpolates = saveat.dense or any(sub.ts is not None for sub in subs)
    carries_stages = passed_solver_state or saveat.solver_state
    explicit = is_explicit(solver) and not carries_stages
    example = jax.tree.map(jnp.array, init_state)
    times = Times(example.tnext, example.tnext, example.tnext)
    start = with_fields(init_state, controller_state=times) if searches else init_state
    if not times_exact:
        start = with_fields(start, made_jump=example.made_jump)
    replayed = ReplayedRungeKutta(solver, interpolates, by_stage) if explicit else solver
    solve: HostArguments = {
        "terms": terms,
        "args": args,
        "stepsize_controller": _AcceptingController(t1) if searches else stepsize_controller,
        "saveat": saveat,
        "t1": t1,
        "event": None,
        "progress_meter": diffrax.NoProgressMeter(),
        "init_state": start,
    }

    def accepted(body: Callable) -> Converted:
        def step(times: Times, state: LoopState) -> LoopState:
            if not searches:
                return _without_event(body(state), state)
            before = _rejections(state, times.taken)
            after = body(with_fields(before, controller_state=times))
            after = with_fields(after, controller_state=state.controller_state, made_jump=state.made_jump)
            return _without_event(after, state)

        return converted(step, times, example)

    step = accepted(loops.body(kind="checkpointed", solver=replayed, **solve))
    if explicit:
        advance = converted(_advance(solver, terms, args), times, example)
    else:
        advance = accepted(loops.body(solver=solver, **solve))
    kept = _kept(example, subs, controller_state=not searches, solver_state=not explicit)
    kept = with_fields(kept, made_jump=not (explicit or times_exact))
    if not searches:
        kept = jax.tree.map(lambda k, same: k and not same, kept, step.unchanged(example))
    return AcceptedStep(step, advance, kept, rescales=searches, adjoining=adjoining, times_exact=times_exact)


def _without_event(after: LoopState, state: LoopState) -> LoopState:
    """``after``, with what ``state`` says of an event: it ends the loop, and no derivative depends on more of it."""
    names = [field.name for field in dataclasses.fields(state) if field.name.startswith("event_")]
    told = {name: jax.tree.map(lax.stop_gradient, getattr(state, name)) for name in names}
    return with_fields(after, **told)


def _advance(solver: Solver, terms: Terms, args: Args) -> Callable[[Times, LoopState], LoopState]:
    """The step for ``y`` alone, not to be differentiated: in a loop over the stages, which compiles fastest."""
    replayed = ReplayedRungeKutta(solver, interpolates=False, by_stage=True)

    def advance(times: Times, state: LoopState) -> LoopState:
        y, *_ = replayed.step(terms, state.tprev, times.taken, state.y, args, None, False)
        return with_fields(state, y=y)

    return advance


def _kept(state: LoopState, subs: list[diffrax.SubSaveAt], *, controller_state: bool, solver_state: bool) -> Mask:
    """Mark the leaves that an accepted step reads."""
    everything = jax.tree.map(lambda _: True, state)
    nothing = jax.tree.map(lambda _: False, state)
    kept = with_fields(nothing, y=everything.y, tprev=True, tnext=True)
    if controller_state:
        kept = with_fields(kept, controller_state=everything.controller_state)
    if solver_state:
        kept = with_fields(kept, solver_state=everything.solver_state)
    if state.dense_save_index is not None:
        kept = with_fields(kept, dense_save_index=True)
    if any(sub.steps > 1 for sub in subs):
        kept = with_fields(kept, num_accepted_steps=True)
    if any(sub.ts is not None or sub.steps for sub in subs):
        # Where the next outputs go; all else in there is the outputs themselves.
        kept = with_fields(kept, save_state=jax.tree.map(lambda x: x.ndim == 0, state.save_state))
    return kept
