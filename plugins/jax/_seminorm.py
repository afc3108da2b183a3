"""diffrax's continuous adjoint with the seminorm: the parameters' channels leave its error estimate.

What the host solves backward is (y, a_y, a_args, a_terms). The last two are plain integrals that nothing else depends
on, so their error need not gate a step. This only says which norm the host's own adjoint is to take, and with which
controller: its gradients are approximate, as every continuous adjoint's.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, TypeAlias, final

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import PyTree

from steptape._errors import OptionError
from steptape.jax._continuous.backsolve import backsolve, refuse
from steptape.jax._types import Controller, HostArguments, Mask, Scalar, Solved, Y

Integrals: TypeAlias = PyTree[bool] | Callable[[Y], PyTree] | None
_BACKSOLVE = {"solver", "stepsize_controller", "dt0", "max_steps", "throw", "adjoint"}


@final
class SeminormAdjoint(diffrax.AbstractAdjoint):
    """diffrax's ``BacksolveAdjoint`` whose steps are gated by y and its adjoint a_y alone: pass it as ``adjoint=``.

    The backward solve takes the solver and the step size controller of the forward solve, with its tolerances, limits
    and norm. The norm of the error is taken of y and a_y, never of the integrals that are the gradients in ``args`` and
    ``terms``, which saves backward steps and costs no accuracy. The solution is diffrax's, bit for bit.

    Args:
        reduction: ``"mixed"``, the default: the larger of the norms of y and of a_y, as in torchdiffeq; the norm is the
            forward controller's. ``"joint"``: the root of the mean square of both together, as in
            ``diffrax.adjoint_rms_seminorm``.
        integrals: channels of y that are integrals themselves, such as a log-density or a running cost, to leave out of
            the norm as well: a function that selects leaves of y, or a pytree of bools, one for each leaf of y or for
            a subtree. A norm of one's own finds ``None`` in their place.
        settings: what the backward solve is not to inherit: ``solver``, ``stepsize_controller``, ``dt0``,
            ``max_steps``, ``throw`` or ``adjoint``, as for ``diffrax.BacksolveAdjoint``; or a field of the controller,
            such as ``rtol`` (unit: none) or ``dtmax`` (unit of ``t``).

    Memory:
        The outputs. The backward solve holds y, a_y and the gradient so far, for each stage of its solver.

    Supports:
        - Problems: ODEs, CDEs, and SDEs with a ``VirtualBrownianTree`` under a Stratonovich solver; pytree states; time
          running either way.
        - Solvers: any that takes a single term. Controllers: any with a norm, also wrapped in a
          ``ClipStepSizeController``.
        - Output: ``SaveAt`` with ``t0``, ``t1`` and ``ts``. No events.
        - Gradients for ``y0``, ``args``, ``terms`` and what an ODE's field closes over; not for times.
        - Transforms: ``jit``, ``vmap``, and reverse mode, once.

    Raises:
        steptape.OptionError: for arguments other than these, and where there is no norm to choose.
        steptape.UnsupportedError: for a call that ``BacksolveAdjoint`` refuses, or a complex state, already when it is
            solved; when differentiated, for times, in forward mode and for second derivatives.

    Source:
        Kidger, Chen, Lyons, "'Hey, that's not an ODE': Faster ODE Adjoints via Seminorms", ICML 2021, arXiv 2009.09457.

    Example:
        >>> import diffrax, jax, steptape.jax
        >>> def end(rate):
        ...     term, controller = diffrax.ODETerm(lambda t, y, rate: -rate * y), diffrax.PIDController(1e-5, 1e-5)
        ...     adjoint = steptape.jax.SeminormAdjoint()
        ...     return diffrax.diffeqsolve(
        ...         term, diffrax.Tsit5(), 0.0, 1.0, 0.1, 1.0, rate, stepsize_controller=controller, adjoint=adjoint
        ...     ).ys[0]
        >>> print(f"{jax.grad(end)(1.0):.3f}")
        -0.368
    """

    reduction: Literal["mixed", "joint"] = eqx.field(static=True)
    integrals: Integrals
    settings: HostArguments

    def __init__(
        self, reduction: Literal["mixed", "joint"] = "mixed", integrals: Integrals = None, **settings: PyTree
    ) -> None:
        if reduction not in ("mixed", "joint"):
            raise OptionError(f"SeminormAdjoint(reduction={reduction!r}): must be 'mixed' or 'joint'.")
        if "norm" in settings:
            raise OptionError(
                "SeminormAdjoint(norm=...): the norm is that of the forward solve's controller, of y and of a_y. Pass "
                "`stepsize_controller=diffrax.PIDController(norm=...)` for another."
            )
        self.reduction = reduction
        self.integrals = integrals
        self.settings = settings

    def loop(self, *, stepsize_controller: Controller, **solve: PyTree) -> Solved:
        """Run diffrax's ``BacksolveAdjoint`` with the seminorm; called by ``diffeqsolve``."""
        backward = {name: value for name, value in self.settings.items() if name in _BACKSOLVE}
        changed = {name: value for name, value in self.settings.items() if name not in _BACKSOLVE}
        y = solve["init_state"].y
        refuse(saveat=solve["saveat"], terms=solve["terms"], solver=solve["solver"], event=solve["event"], y=y)
        controller = self._with_seminorm(backward.get("stepsize_controller", stepsize_controller), changed, y)
        backward = {"adjoint": self, **backward, "stepsize_controller": controller}
        return backsolve({**solve, "stepsize_controller": stepsize_controller}, backward)

    def _with_seminorm(self, controller: Controller, changed: HostArguments, y: Y) -> Controller:
        """Change the fields of ``controller`` in ``changed``, and its norm to the seminorm made from it."""
        fields = {field.name for field in dataclasses.fields(controller)}
        if "norm" not in fields and "controller" in fields:
            inner = self._with_seminorm(controller.controller, changed, y)
            return eqx.tree_at(lambda c: c.controller, controller, inner)
        call = f"`diffeqsolve(..., stepsize_controller={type(controller).__name__}(...), adjoint=SeminormAdjoint(...))`"
        if "norm" not in fields:
            raise OptionError(
                f"{call}: there is no norm to choose where no step is rejected. Pass `SeminormAdjoint("
                "stepsize_controller=diffrax.PIDController(...))`, or take `diffrax.BacksolveAdjoint()`."
            )
        unknown = sorted(set(changed) - fields)
        if unknown:
            raise OptionError(
                f"SeminormAdjoint({unknown[0]}=...): neither an argument of `diffrax.BacksolveAdjoint` nor a field of "
                f"the controller, `{type(controller).__name__}`."
            )
        norm = controller.norm
        if norm is diffrax.adjoint_rms_seminorm:
            raise OptionError(
                f"{call} with `norm=diffrax.adjoint_rms_seminorm`: the seminorm is made from a norm of y. Leave `norm` "
                "out, or pass `SeminormAdjoint(reduction='joint')` for that seminorm."
            )
        joint = self.reduction == "joint" and not isinstance(norm, _Seminorm)
        if joint and norm is not optx.rms_norm:
            raise OptionError(
                f"{call} with `norm={norm!r}` and `reduction='joint'`: the mean of y and a_y together is known for the "
                "root mean square alone. Pass `SeminormAdjoint(reduction='mixed')`."
            )
        # The adjoint of the adjoint: its state is (y, a_y, ...), whose integrals are left out already.
        kept = None if isinstance(norm, _Seminorm) else _kept(self.integrals, y)
        return dataclasses.replace(controller, **changed, norm=_Seminorm(norm, joint, kept))


class _Seminorm(eqx.Module):
    """The norm of an augmented state (y, a_y, a_args, a_terms), of its first two members."""

    norm: Callable
    joint: bool = eqx.field(static=True)
    kept: Mask | None  # true for the leaves of y that count; None for all

    def __call__(self, augmented: tuple[PyTree, ...]) -> Scalar:
        y, a_y, *_ = augmented
        if self.kept is not None:
            y, a_y = eqx.filter(y, self.kept), eqx.filter(a_y, self.kept)
        if self.joint:
            return self.norm((y, a_y))
        return jnp.maximum(self.norm(y), self.norm(a_y))


def _kept(integrals: Integrals, y: Y) -> Mask | None:
    """Mark the leaves of ``y`` that are no ``integrals``."""
    if integrals is None:
        return None
    words = "SeminormAdjoint(integrals=...)"
    leaves, structure = jax.tree.flatten(y)
    if callable(integrals):
        selected = set(jax.tree.leaves(integrals(jax.tree.unflatten(structure, range(len(leaves))))))
        left_out = [place in selected for place in range(len(leaves))]
    else:
        try:
            tree = jax.tree.map(lambda flag, part: jax.tree.map(lambda _: flag, part), integrals, y)
        except ValueError as error:
            raise OptionError(f"{words}: its structure {integrals!r} is not that of y, {structure}.") from error
        left_out = jax.tree.leaves(tree)
    if not all(isinstance(flag, bool) for flag in left_out):
        raise OptionError(f"{words}: must be a function that selects leaves of y, or a pytree of bools.")
    if all(left_out):
        raise OptionError(f"{words} leaves nothing of y to control the steps by: leave one leaf in.")
    return jax.tree.unflatten(structure, [not flag for flag in left_out])
