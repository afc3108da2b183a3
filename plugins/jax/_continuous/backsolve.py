"""diffrax's own continuous adjoint, ``BacksolveAdjoint``: what it refuses, and what it has gradients for."""

import diffrax
import equinox as eqx
import jax
from jaxtyping import PyTree

from steptape._errors import UnsupportedError
from steptape.compat._diffrax import with_fields
from steptape.jax._autodiff.activity import pulling_zero_to_zero
from steptape.jax._autodiff.field import closed_ode, closes_over_tracers, is_complex
from steptape.jax._autodiff.refusals import differentiated_once, reverse_mode_only, stopped, undifferentiated
from steptape.jax._types import HostArguments, Solved, Solver, Terms, Y

_CALL = "`diffeqsolve(..., adjoint=SeminormAdjoint(...))`"
_KNOWN_GRADIENTS = (
    f"{_CALL} has gradients for y0, args and terms, and first ones: not for times, the solver or the controller. Pass "
    "`adjoint=steptape.jax.AdaptiveCheckpointAdjoint()`, which has all of them and second derivatives."
)
_FORWARD = (
    f"Forward mode (`jvp`, `jacfwd`, `linearize`) through {_CALL}: it solves the adjoint backward, there is none to go "
    "forward with. Use `adjoint=steptape.jax.AdaptiveCheckpointAdjoint()`, which knows every mode; optimistix's "
    'least-squares solvers take `options={"jac": "bwd"}`.'
)


def backsolve(solve: HostArguments, backward: HostArguments) -> Solved:
    """Solve, with the gradient of ``BacksolveAdjoint(**backward)``."""
    solve = _only_known_gradients(solve)
    state, args, terms = solve.pop("init_state"), solve.pop("args"), solve.pop("terms")
    solve["init_state"] = with_fields(state, y=None)
    return pulling_zero_to_zero((state.y, args, terms), _Backsolve(backward, solve))


def refuse(*, saveat: diffrax.SaveAt, terms: Terms, solver: Solver, event: diffrax.Event | None, y: Y) -> None:
    """Raise for what diffrax's ``BacksolveAdjoint`` refuses."""
    if _holds(terms, diffrax.UnsafeBrownianPath):
        raise UnsupportedError(
            f"{_CALL} with an `UnsafeBrownianPath`: the backward solve would not see its noise. Use "
            "`diffrax.VirtualBrownianTree`."
        )
    why = None
    if saveat.dense:
        why = "`saveat=SaveAt(dense=True)`"
    elif not isinstance(saveat.subs, diffrax.SubSaveAt):
        why = "`saveat=SaveAt(subs=...)`"
    elif saveat.subs.steps:
        why = "`saveat=SaveAt(steps=...)`"
    elif saveat.subs.fn is not diffrax.SubSaveAt(t1=True).fn:
        why = "`saveat=SaveAt(fn=...)`"
    elif event is not None:
        why = "`event=...`"
    elif not jax.tree_util.all_leaves([solver.term_structure]):
        why = f"`solver={type(solver).__name__}(...)`, which takes several terms,"
    elif _holds(terms, diffrax.AbstractBrownianPath) and isinstance(solver, diffrax.AbstractItoSolver):
        why = f"`solver={type(solver).__name__}(...)`, which converges to the Itô solution,"
    elif is_complex(y):
        why = "a complex state"
    if why is not None:
        raise UnsupportedError(
            f"{_CALL} with {why} has no continuous adjoint in diffrax. Pass "
            "`adjoint=steptape.jax.AdaptiveCheckpointAdjoint()`, which is exact."
        )


def _holds(tree: PyTree, kind: type) -> bool:
    return any(isinstance(x, kind) for x in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind)))


def _only_known_gradients(solve: HostArguments) -> HostArguments:
    """The arguments of the solve: what the field closes over gets a gradient, what else is differentiated an error."""
    state = solve["init_state"]
    closed = closed_ode(solve["terms"], state.tprev, state.y, solve["args"])
    terms = closed if closes_over_tracers(closed) else solve["terms"]
    names = ("t0", "t1", "dt0", "saveat", "solver", "stepsize_controller")
    fixed, tprev, tnext = undifferentiated(
        ({name: solve[name] for name in names}, state.tprev, state.tnext), why=_KNOWN_GRADIENTS
    )
    moving = differentiated_once((state.y, solve["args"], terms), why=_KNOWN_GRADIENTS)
    y, args, terms = reverse_mode_only(moving, _FORWARD)
    state = with_fields(state, y=y, tprev=tprev, tnext=tnext)
    for name in ("solver_state", "controller_state"):
        inner, passed = getattr(state, name), solve[f"passed_{name}"]
        still = undifferentiated(inner, why=_KNOWN_GRADIENTS) if passed else stopped(inner)
        state = with_fields(state, **{name: still})
    return {**solve, **fixed, "args": args, "terms": terms, "init_state": state}


class _Backsolve(eqx.Module):
    """diffrax's solve and adjoint, for what it has gradients for."""

    backward: HostArguments
    solve: HostArguments

    def __call__(self, moving: tuple) -> Solved:
        y, args, terms = moving
        state = with_fields(self.solve["init_state"], y=y)
        return diffrax.BacksolveAdjoint(**self.backward).loop(
            **{**self.solve, "init_state": state}, args=args, terms=terms
        )
