"""The adjoint diffrax users pass to ``diffeqsolve``."""

import functools
from typing import Any, final

import diffrax
import jax
from steptape.compat._diffrax import loop
from steptape.compat._equinox import while_loop
from steptape.jax._known import known_step
from steptape.jax._loop import replayed_while_loop


@final
class AdaptiveCheckpointAdjoint(diffrax.AbstractAdjoint):
    """Exact gradients of ``diffeqsolve``."""

    def loop(
        self,
        *,
        terms: Any,
        solver: Any,
        stepsize_controller: Any,
        event: Any,
        saveat: Any,
        t1: Any,
        max_steps: int | None,
        init_state: Any,
        throw: bool,
        passed_solver_state: bool,
        passed_controller_state: bool,
        progress_meter: Any,
        **kwargs: Any,
    ) -> Any:
        """Run diffrax's loop; called by ``diffeqsolve``."""
        del throw, passed_controller_state
        host_loop = functools.partial(
            loop,
            terms=terms,
            max_steps=max_steps,
            inner_while_loop=functools.partial(while_loop, kind="checkpointed"),
            **kwargs,
        )
        solve: dict[str, Any] = {
            "solver": solver,
            "stepsize_controller": stepsize_controller,
            "event": event,
            "saveat": saveat,
            "t1": t1,
            "init_state": init_state,
        }
        refusal = _refusal(terms, max_steps)
        known = None if refusal else known_step(host_loop, passed_solver_state=passed_solver_state, **solve)
        outer_while_loop = functools.partial(replayed_while_loop, known=known, refusal=refusal)
        return host_loop(outer_while_loop=outer_while_loop, progress_meter=progress_meter, **solve)


def _refusal(terms: Any, max_steps: int | None) -> str | None:
    """Why this solve cannot be differentiated, if so; the solve itself is diffrax's in any case."""
    call = "`diffeqsolve(..., adjoint=AdaptiveCheckpointAdjoint())`"
    if max_steps is None:
        return (
            f"{call} cannot be differentiated with `max_steps=None`: JAX must know how many accepted steps the tape "
            "is to hold. Pass `max_steps=...`, or `adjoint=diffrax.RecursiveCheckpointAdjoint(checkpoints=...)`."
        )
    paths = jax.tree.leaves(terms, is_leaf=lambda x: isinstance(x, diffrax.UnsafeBrownianPath))
    if any(isinstance(x, diffrax.UnsafeBrownianPath) for x in paths):
        return (
            f"{call} cannot be differentiated with an `UnsafeBrownianPath`: a replayed step would not see the noise "
            "of the solve. Use `diffrax.VirtualBrownianTree`, or `adjoint=diffrax.ForwardMode()` in forward mode."
        )
    return None
