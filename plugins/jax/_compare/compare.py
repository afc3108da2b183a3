"""``compare``: every way to a gradient, tried on the caller's own solve."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from math import isqrt
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from steptape._compare.advice import size_of
from steptape._compare.clock import Clock
from steptape._compare.comparison import Comparison
from steptape._compare.race import REFERENCE, Oracle, Way, compared
from steptape._errors import OptionError
from steptape.jax._aca import AdaptiveCheckpointAdjoint
from steptape.jax._compare.watched import Tight
from steptape.jax._compare.ways import JaxWay, Problem, counted
from steptape.jax._quadrature import QuadratureAdjoint
from steptape.jax._seminorm import SeminormAdjoint


def compare(
    loss: Callable[..., Any],
    *inputs: PyTree,
    memory: int | str | None = None,
    time_limit: float = 180.0,
    progress: bool | None = None,
    ways: Sequence[str] | None = None,
) -> Comparison:
    """Run every way to the gradient of a diffrax solve on your own model, and say which to take.

    diffrax's ``RecursiveCheckpointAdjoint``, by default and with every step kept, which is back-propagation; its
    ``BacksolveAdjoint``; and steptape's adjoints: of each the gradient's error, the evaluations of the field, the time
    of both passes and the memory. What a way refuses, or fails at, is shown in its words. ``print`` shows a table, a
    notebook one of its own; see also ``advice``, ``best`` and ``plot`` of what is returned.

    Args:
        loss: maps an adjoint, to be passed to ``diffeqsolve(..., adjoint=adjoint)``, and ``inputs`` to a scalar. It is
            compiled for each adjoint.
        inputs: what to differentiate with respect to: pytrees, such as a model, of which all floating-point arrays
            count. Data belongs in the closure.
        memory: what there is, as a size such as ``"2 GiB"`` or a number of bytes, which the advice is for; by default
            any.
        time_limit: seconds for all of it, most of which is compiling. Ways for which there is no time are skipped, and
            shown as such.
        progress: whether to say on stderr what is done; by default where that is a terminal.
        ways: the names of those to run, as in the table; by default all.

    Returns:
        A ``Comparison``. Its times are the clock's, or the processor's where XLA has one core, or one thread by
        ``XLA_FLAGS=--xla_cpu_multi_thread_eigen=false``. ``error`` of a row is against a solve in float64 at tolerances
        far below yours, by ``Dopri8`` in place of an explicit Runge-Kutta method; ``difference`` against
        ``RecursiveCheckpointAdjoint`` with every step kept. ``held`` is what the forward pass leaves for the backward
        one, and ``peak`` what XLA takes besides inputs and outputs. In a batch, evaluations are those of all its
        members.

    Supports:
        Whatever ``loss`` computes, any number of solves among it, with ``jit`` and ``vmap`` inside.

    Raises:
        OptionError: an argument is wrong, or there is nothing to differentiate in. What loss raises with diffrax's
            own adjoint.

    Example:
        >>> import diffrax, steptape.jax
        >>> def loss(adjoint, rate):
        ...     term, controller = diffrax.ODETerm(lambda t, y, rate: -rate * y), diffrax.PIDController(1e-3, 1e-3)
        ...     return diffrax.diffeqsolve(
        ...         term, diffrax.Tsit5(), 0.0, 1.0, 0.1, 1.0, rate, stepsize_controller=controller, adjoint=adjoint
        ...     ).ys[0]
        >>> found = steptape.jax.compare(loss, 1.0, ways=["AdaptiveCheckpointAdjoint()"])
        >>> found.rows[0].difference < 1e-5, found.rows[0].evaluations_backward
        (True, 12)
    """
    clock, there_is = Clock(time_limit, progress), size_of(memory)
    problem = Problem(loss, inputs)
    if not jax.tree.leaves(problem.moving):
        raise OptionError(
            "compare(loss): pass what to differentiate with respect to as well: compare(lambda adjoint, model: ..., "
            "model), where model has a floating-point array."
        )
    solves = _Solves(problem, clock)
    title = solves.solved()
    kept = solves.every_step
    oracles = (
        Oracle(solves.reference, lambda: solves.reference_in_words, REFERENCE),
        Oracle(kept.measure, lambda: f"{kept.row.way}, which keeps every step"),
    )
    return compared(title, solves.ways(), oracles, _distance, clock, problem.eps**0.5, there_is, ways)


class _Solves:
    """What is differentiated, its references, and the ways to its gradient."""

    reference_in_words = ""

    def __init__(self, problem: Problem, clock: Clock):
        self._problem, self._clock, self._count = problem, clock, Counter[str]()

    def solved(self) -> str:
        """The loss as it is, in words."""
        self._clock.say("the solve")
        adjoint = counted(diffrax.RecursiveCheckpointAdjoint(), self._count)
        value = jax.jit(self._problem.of(adjoint))(self._problem.moving)
        jax.effects_barrier()
        if jnp.shape(value) != ():
            raise OptionError(f"compare(loss, ...): loss must return a scalar, and has the shape {jnp.shape(value)}.")
        count = self._count
        if not count["tried"]:
            raise OptionError(
                "compare(loss, ...): loss(adjoint, ...) solves nothing with the adjoint it is given. Pass it on: "
                "diffeqsolve(..., adjoint=adjoint)."
            )
        rejected = count["tried"] - count["accepted"]
        return f"{count['accepted']} steps accepted, {rejected} rejected; {count['evaluations']} evaluations"

    @property
    def every_step(self) -> JaxWay:
        """Back-propagation that recomputes nothing."""
        if not hasattr(self, "_every_step"):
            tried = self._count["tried"]
            adjoint = diffrax.RecursiveCheckpointAdjoint(checkpoints=tried)
            self._every_step = self._way(f"RecursiveCheckpointAdjoint(checkpoints={tried})", adjoint)
        return self._every_step

    def reference(self) -> Any:
        """The gradient of a far finer solve, in float64 where the loss can be computed so."""
        if jax.config.read("jax_enable_x64"):
            return self._fine(1e-11, self._problem.moving)
        try:
            with _x64():
                wide = jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float64)), self._problem.moving)
                return self._fine(1e-11, wide)
        except (TypeError, ValueError):
            return self._fine(1e-6, self._problem.moving)

    def _fine(self, least: float, moving: Any) -> Any:
        fine = Tight(AdaptiveCheckpointAdjoint(checkpoints=512), least, 1000 + 100 * self._count["tried"])
        gradient = self._problem.gradient(fine, moving)
        self.reference_in_words = f"a solve in {jax.tree.leaves(gradient)[0].dtype}, at 1e-4 of the tolerance"
        return gradient

    def ways(self) -> Iterator[Way]:
        """All of them, the host's first."""
        yield self._way("RecursiveCheckpointAdjoint()", diffrax.RecursiveCheckpointAdjoint())
        yield self.every_step
        few = max(2, isqrt(self._count["accepted"]))
        yield self._way("AdaptiveCheckpointAdjoint()", AdaptiveCheckpointAdjoint())
        yield self._way(f"AdaptiveCheckpointAdjoint(checkpoints={few})", AdaptiveCheckpointAdjoint(few))
        yield self._way('AdaptiveCheckpointAdjoint(graph="stage")', AdaptiveCheckpointAdjoint(graph="stage"))
        yield self._way("QuadratureAdjoint()", QuadratureAdjoint(), False)
        yield self._way("SeminormAdjoint()", SeminormAdjoint(), False)
        yield self._way("BacksolveAdjoint()", diffrax.BacksolveAdjoint(), False)

    def _way(self, name: str, adjoint: diffrax.AbstractAdjoint, is_discrete: bool = True) -> JaxWay:
        return JaxWay(name, adjoint, is_discrete, self._problem, self._count["evaluations"])


def _x64() -> Any:
    """A block with float64: in jax itself, and before 0.8 under its experiments."""
    found = getattr(jax, "enable_x64", None)
    return found(True) if callable(found) else importlib.import_module("jax.experimental").enable_x64()


def _distance(found: Any, exact: Any) -> float:
    """Of one gradient from another, in the Euclidean norm, relative to that."""
    one, other = (
        np.concatenate([np.asarray(x, np.complex128).ravel() for x in jax.tree.leaves(gradient)])
        for gradient in (found, exact)
    )
    scale = np.linalg.norm(other)
    return float(np.linalg.norm(one - other) / (scale if scale > 0 else 1.0))
