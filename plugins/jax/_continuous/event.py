"""The time at which an event ends a solve, and its part in the gradient.

At the root t* of g(t, y(t)) the solution ends with y(t*), so a cotangent c of t* is one of what g depends on:
dt* = -dg / (∂g/∂t + ∂g/∂y f), with dg the change of g at a fixed time (the implicit function theorem).

Where the field jumps at the event, f is that before it. The root is known to the tolerance of its finder, and may lie
on either side.
"""

import functools
from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from steptape.jax._autodiff.converted import converted
from steptape.jax._autodiff.refusals import stopped
from steptape.jax._types import Args, BoolScalar, Cotangent, Gradient, Scalar, ScalarLike, Y

# How far before a root the field is looked for, in parts of the step to it, and the part of the condition's value where
# the step begins that is no rounding.
_PARTS, _CLEAR = np.ldexp(1.0, np.arange(-32, 1)), 8


class _Condition(eqx.Module):
    """An event's function, with the traced arrays that it reads as leaves."""

    converted: Callable

    def __call__(self, t: ScalarLike, y: Y, args: Args, **_: PyTree) -> ScalarLike:
        return self.converted(t, y, args)


def closed_conditions(
    event: diffrax.Event | None, t: ScalarLike, y: Y, args: Args, **call: PyTree
) -> PyTree[_Condition] | None:
    """The functions of ``event``, made to close over no traced array; they are passed ``call``.

    Without a root finder the event ends the solve with a step, and has no derivative.
    """
    if event is None:
        return None

    def closed(cond_fn):
        # A partial: see closed_ode.
        told = functools.partial(lambda cond_fn, call, t, y, args: cond_fn(t, y, args, **call), cond_fn, call)
        return _Condition(converted(told, t, y, args))

    conditions = jax.tree.map(closed, event.cond_fn, is_leaf=callable)
    if event.root_finder is None:
        return stopped(conditions)
    return conditions


def before_root(
    occurred: PyTree[BoolScalar], conditions: PyTree[_Condition], begin: Scalar, t: Scalar, y: Callable, args: Args
) -> Scalar:
    """A time just before the root ``t`` of the condition that ``occurred``, where it has the sign that it came with.

    ``begin`` is that of the step, and ``y`` its dense output; where no root was found it is infinite.
    """

    def met(t):
        return _met(occurred, conditions, t, y(t), args)

    start, hit = met(begin)
    ladder = t - (t - begin) * _PARTS.astype(t.dtype)
    value = jax.vmap(met)(ladder)[0] * jnp.sign(start)
    # Clear of where the condition is rounded, and two rungs more: the field may round it otherwise.
    rung = jnp.minimum(jnp.argmax(value > _PARTS[_CLEAR] * jnp.abs(start)) + 2, len(ladder) - 1)
    return jnp.where(hit, ladder[rung], jnp.inf).astype(t.dtype)


def pull_root(
    occurred: PyTree[BoolScalar], g_t: Scalar, t: Scalar, y: Y, slope: Y, moving: PyTree, fixed: PyTree
) -> tuple[Cotangent, Gradient]:
    """Cotangents of ``y`` and of what is ``moving``, of the time ``t`` of the root of the condition that ``occurred``.

    ``moving`` and ``fixed`` are parts of (args, conditions); ``slope`` is dy/dt.
    """

    def met(t, y, moving):
        args, conditions = eqx.combine(moving, fixed)
        return _met(occurred, conditions, t, y, args)

    _, along, hit = jax.jvp(lambda t, y: met(t, y, moving), (t, y), (jnp.ones_like(t), slope), has_aux=True)
    _, pull, _ = jax.vjp(lambda y, moving: met(t, y, moving), y, moving, has_aux=True)
    return pull(jnp.where(hit, -g_t / jnp.where(hit, along, 1), 0).astype(along.dtype))


def _met(
    occurred: PyTree[BoolScalar], conditions: PyTree[_Condition], t: Scalar, y: Y, args: Args
) -> tuple[Scalar, BoolScalar]:
    """The value of the condition that ``occurred``, if it has a root."""
    total, hit = jnp.zeros_like(t), jnp.array(False)
    for condition, here in zip(jax.tree.leaves(conditions, is_leaf=callable), jax.tree.leaves(occurred), strict=True):
        value = condition(t, y, args)
        # One that is true or false ends the solve with a step, whose time stands still.
        if jnp.issubdtype(value.dtype, jnp.floating):
            total, hit = total + jnp.where(here, value, 0), hit | here
    return total, hit
