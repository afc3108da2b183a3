"""The discrete adjoint with checkpoints (ACA): the sweep itself is in ``_replay.sweep``."""

import functools
from typing import Literal, final

import diffrax
import equinox as eqx
import jax
from jaxtyping import PyTree

from steptape._errors import OptionError
from steptape.compat._diffrax import loop
from steptape.jax._autodiff.nextafter import make_differentiable
from steptape.jax._replay.accepted_step import build_accepted_step
from steptape.jax._replay.host_loops import Loops
from steptape.jax._replay.loop import replayed_while_loop
from steptape.jax._types import Args, Controller, HostArguments, LoopState, ScalarLike, Solved, Solver, Terms


@final
class AdaptiveCheckpointAdjoint(diffrax.AbstractAdjoint):
    """Exact gradients of ``diffrax.diffeqsolve`` by replaying its accepted steps: pass it as ``adjoint=``.

    The solution is diffrax's, bit for bit. While it is computed, each accepted step leaves its times on a tape, and
    some leave their state; the backward pass takes the steps once more under autodiff, the last one first. Rejected
    tries are not replayed and the error estimate is not differentiated.

    Args:
        checkpoints: keep at most so many states at any moment, recompute the others by the best schedule there is.
            ``None``: ``2 sqrt(max_steps)``, or 64 if that is more; with ``max_steps=None`` a number must be given.
        graph: ``"step"``, the default: differentiate one step at a time; ``"stage"``: one evaluation of the field at a
            time, which takes each one twice. For explicit Runge-Kutta methods; others do as diffrax does.

    Exact:
        The gradient is that of the discrete solution, with the factor between one step's size and the next held
        constant. That is what diffrax's own ``RecursiveCheckpointAdjoint`` gives, to rounding: for ``y0``, ``args``,
        ``terms``, ``t0``, ``t1``, ``dt0`` and ``StepTo(ts=...)``, also where tries were rejected.

    Memory:
        ``checkpoints`` states and one at hand, in forward and backward pass together, plus a few numbers per step of
        ``max_steps``, where these take no more than what diffrax keeps with as many checkpoints; by default up to 4096
        steps. Where there are more, or None, steps are recorded in blocks of 64 to 4096: there is room for one, a third
        of the checkpoints are for the loop's whole state before blocks, and all but the last are solved once more. A
        solve of no more accepted steps recomputes none; a longer one each step at most once up to about
        ``checkpoints**2 / 2`` steps, and so by default. In a batch, the element that takes the most steps says which
        are kept and recomputed. A state is one ``y``; solvers that carry more than ``y`` from step to step, a solve
        with an event and one that goes on from a ``solver_state`` keep that too.

    Supports:
        - Problems: ODEs, SDEs with a ``VirtualBrownianTree``, CDEs; pytree states; time running either way.
        - Solvers: any that keep to diffrax's interface; explicit Runge-Kutta methods are replayed with a step
          of ours, the others with their own.
        - Controllers and events: any. With an event whose root is sought, and where a time is differentiated under
          another controller than ``ConstantStepSize``, ``StepTo`` and ``PIDController`` without ``dtmin`` and
          ``dtmax``, every try is replayed by diffrax's own loop body: as exact, but with rejected tries, and it is
          the tries that are kept and recomputed.
        - Output: ``SaveAt`` in all its forms.
        - Transforms: ``jit``, ``vmap``, ``scan``, ``checkpoint``; reverse mode, forward mode, and each over each.

    Raises:
        steptape.OptionError: for arguments other than these.
        steptape.UnsupportedError: when the solve is differentiated in reverse mode, not when it runs: with an
            ``UnsafeBrownianPath``, and with ``max_steps=None`` without ``checkpoints``; in second derivatives, with
            ``max_steps=None`` and a ``jax.custom_vjp`` or ``jax.custom_jvp`` in the field.

    Source:
        Zhuang et al., "Adaptive Checkpoint Adjoint Method for Gradient Estimation in Neural ODE", ICML 2020,
        arXiv 2006.02493, section 3.2.

    Example:
        >>> import diffrax, jax, steptape.jax
        >>> def end(rate):
        ...     term, controller = diffrax.ODETerm(lambda t, y, rate: -rate * y), diffrax.PIDController(1e-5, 1e-5)
        ...     adjoint = steptape.jax.AdaptiveCheckpointAdjoint()
        ...     return diffrax.diffeqsolve(
        ...         term, diffrax.Tsit5(), 0.0, 1.0, 0.1, 1.0, rate, stepsize_controller=controller, adjoint=adjoint
        ...     ).ys[0]
        >>> print(f"{jax.grad(end)(1.0):.3f}")
        -0.368
    """

    checkpoints: int | None = eqx.field(default=None, static=True)
    graph: Literal["step", "stage"] = eqx.field(default="step", static=True)

    def __check_init__(self):
        if self.checkpoints is not None and (type(self.checkpoints) is not int or self.checkpoints < 1):
            raise OptionError(
                f"AdaptiveCheckpointAdjoint(checkpoints={self.checkpoints!r}): must be a positive number of states, or "
                "None for 2 sqrt(max_steps)."
            )
        if self.graph not in ("step", "stage"):
            raise OptionError(f"AdaptiveCheckpointAdjoint(graph={self.graph!r}): must be 'step' or 'stage'.")

    def loop(
        self,
        *,
        terms: Terms,
        args: Args,
        solver: Solver,
        stepsize_controller: Controller,
        event: diffrax.Event | None,
        saveat: diffrax.SaveAt,
        t1: ScalarLike,
        max_steps: int | None,
        init_state: LoopState,
        throw: bool,
        passed_solver_state: bool,
        passed_controller_state: bool,
        progress_meter: diffrax.AbstractProgressMeter,
        **kwargs: PyTree,
    ) -> Solved:
        """Run diffrax's loop; called by ``diffeqsolve``."""
        del throw, passed_controller_state
        make_differentiable()
        solve: HostArguments = {
            "terms": terms,
            "args": args,
            "solver": solver,
            "stepsize_controller": stepsize_controller,
            "event": event,
            "saveat": saveat,
            "t1": t1,
            "init_state": init_state,
        }
        loops = Loops(functools.partial(loop, max_steps=max_steps, **kwargs))
        refusal = _refusal(terms, max_steps, self.checkpoints)
        accepted_step = tried = None
        if not refusal:
            by_stage = self.graph == "stage"
            accepted_step = build_accepted_step(
                loops, passed_solver_state=passed_solver_state, by_stage=by_stage, **solve
            )
            if accepted_step is None or not accepted_step.times_exact:
                tried = loops.body(kind="checkpointed", progress_meter=progress_meter, **solve)
        outer_while_loop = functools.partial(
            replayed_while_loop,
            tried=tried,
            bounded=functools.partial(loops.body, kind="bounded", progress_meter=progress_meter, **solve),
            accepted_step=accepted_step,
            refusal=refusal,
            checkpoints=self.checkpoints,
        )
        return loops.run(outer_while_loop=outer_while_loop, progress_meter=progress_meter, **solve)


def _refusal(terms: Terms, max_steps: int | None, checkpoints: int | None) -> str | None:
    """Why this solve cannot be differentiated, if so; the solve itself is diffrax's in any case."""
    call = "`diffeqsolve(..., adjoint=AdaptiveCheckpointAdjoint())`"
    if max_steps is None and checkpoints is None:
        return (
            f"{call} has no gradient in reverse mode with `max_steps=None` and `checkpoints=None`: JAX must know how "
            "many states the tape is to hold. Pass `AdaptiveCheckpointAdjoint(checkpoints=k)`, such as k = 64, or "
            "`max_steps=...`."
        )
    paths = jax.tree.leaves(terms, is_leaf=lambda x: isinstance(x, diffrax.UnsafeBrownianPath))
    if any(isinstance(x, diffrax.UnsafeBrownianPath) for x in paths):
        return (
            f"{call} has no gradient in reverse mode with an `UnsafeBrownianPath`: a replayed step would not see the "
            "noise of the solve. Use `diffrax.VirtualBrownianTree`, or forward mode."
        )
    return None
