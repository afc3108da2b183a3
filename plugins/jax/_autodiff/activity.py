"""Activity: the leaves that carry a derivative depend on what is differentiated, and their cotangent is not zero.

Nothing is owed for a cotangent that is zero, whatever became of the solve: a member of a batch that failed and is
masked has one, and derivatives that may be infinite or no number. Zero times these is no number, so what is returned
for such a member is zero itself.
"""

import functools
import operator
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import PyTree

from steptape.jax._autodiff.refusals import without_tangent
from steptape.jax._types import BoolScalar, Cotangent, Gradient, Mask


def reached(step: Callable, moves: PyTree) -> Mask | None:
    """The leaves of ``step(*inputs)`` whose tangent is not a symbolic zero, when the inputs in ``moves`` move.

    ``step`` takes the inputs that move; only traced, never run.
    """
    found: list = []

    @jax.custom_jvp
    def spy(x):
        return x

    def spy_jvp(primals, tangents):
        found.append(jax.tree.map(lambda t: not isinstance(t, SymbolicZero), tangents[0]))
        return primals[0], tangents[0]

    spy.defjvp(spy_jvp, symbolic_zeros=True)
    # linearize, not jvp: the step may hold functions that only know reverse mode.
    jax.eval_shape(lambda x: jax.linearize(lambda y: spy(step(y)), x)[0], moves)
    return found[0] if found else None


def active_leaves(step: Callable, fun: PyTree, p_fun: Mask, carry: PyTree, p_carry: Mask) -> Mask:
    """The least fixed point of ``carry -> step(fun, carry)``: a tree like ``carry``, true where a derivative flows."""
    while True:
        moving, fixed = eqx.partition((fun, carry), (p_fun, p_carry))

        def probe(moving, fixed=fixed):
            return eqx.filter(step(*eqx.combine(moving, fixed)), eqx.is_inexact_array)

        found = reached(probe, moving)
        if found is None:
            return p_carry
        found = jax.tree.map(
            lambda p, r: bool(p or r), p_carry, eqx.combine(found, jax.tree.map(lambda _: False, carry))
        )
        if jax.tree.leaves(found) == jax.tree.leaves(p_carry):
            return found
        p_carry = found


def settled(step: Callable, moves: PyTree, *args: PyTree) -> PyTree:
    """``step(*args)`` as JAX has it once it has been differentiated in what ``moves``.

    A function with a rule is then what the rule has for its values: they are the same, but may have another derivative.
    """
    moving, fixed = eqx.partition(args, moves)

    def split_step(moving):
        return eqx.partition(step(*eqx.combine(moving, fixed)), eqx.is_inexact_array)

    inexact, _, rest = jax.vjp(split_step, moving, has_aux=True)
    return eqx.combine(inexact, rest)


def is_nonzero(cotangents: Cotangent) -> BoolScalar:
    """Whether any of ``cotangents`` is other than zero."""
    return functools.reduce(operator.or_, [jnp.any(g != 0) for g in jax.tree.leaves(cotangents)], jnp.array(False))


def zero_unless(wanted: BoolScalar, grads: Gradient) -> Gradient:
    """``grads`` where they are ``wanted``, or zeros."""
    return jax.tree.map(lambda g: jnp.where(wanted, g, jnp.zeros_like(g)), grads)


def pulling_zero_to_zero(moving: PyTree, run: Callable) -> PyTree:
    """Return ``run(moving)``, whose gradient is zero where the cotangent of all that it returns is."""
    inexact, fixed = eqx.partition(_run(moving, run), eqx.is_inexact_array)
    return eqx.combine(inexact, without_tangent(fixed))


@eqx.filter_custom_vjp
def _run(moving: PyTree, run: Callable) -> PyTree:
    return run(moving)


@_run.def_fwd
def _run_fwd(perturbed: Mask, moving: PyTree, run: Callable) -> tuple[PyTree, tuple]:
    arrays, rest = eqx.partition(moving, eqx.is_inexact_array)

    def split_run(arrays):
        return eqx.partition(run(eqx.combine(arrays, rest)), eqx.is_inexact_array)

    out, pull, other = jax.vjp(split_run, arrays, has_aux=True)
    return eqx.combine(out, other), (pull, out)


@_run.def_bwd
def _run_bwd(residuals: tuple, cotangents: Cotangent, perturbed: Mask, moving: PyTree, run: Callable) -> Gradient:
    pull, out = residuals
    g = jax.tree.map(lambda x, g: jnp.zeros_like(x) if g is None else g, out, cotangents)
    return zero_unless(is_nonzero(g), pull(g)[0])
