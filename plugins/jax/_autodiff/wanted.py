"""Cotangents that are zero: nothing is owed for them, whatever became of the solve.

A member of a batch that failed and is masked has a cotangent of zero, and derivatives that may be infinite or no
number. Zero times these is no number, so what is returned for such a member is zero itself.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from steptape.jax._autodiff.field import still


def is_wanted(cotangents: Any) -> Any:
    """Whether any of them is other than zero."""
    return functools.reduce(operator.or_, [jnp.any(g != 0) for g in jax.tree.leaves(cotangents)], jnp.array(False))


def only_if(wanted: Any, grads: Any) -> Any:
    """``grads``, or zeros."""
    return jax.tree.map(lambda g: jnp.where(wanted, g, jnp.zeros_like(g)), grads)


def only_if_wanted(moving: Any, run: Callable) -> Any:
    """``run(moving)``, whose gradient is zero where the cotangent of all that it returns is."""
    inexact, fixed = eqx.partition(_run(moving, run), eqx.is_inexact_array)
    return eqx.combine(inexact, still(fixed))


@eqx.filter_custom_vjp
def _run(moving, run):
    return run(moving)


@_run.def_fwd
def _run_fwd(perturbed, moving, run):
    arrays, rest = eqx.partition(moving, eqx.is_inexact_array)

    def split_run(arrays):
        return eqx.partition(run(eqx.combine(arrays, rest)), eqx.is_inexact_array)

    out, pull, other = jax.vjp(split_run, arrays, has_aux=True)
    return eqx.combine(out, other), (pull, out)


@_run.def_bwd
def _run_bwd(residuals, cotangents, perturbed, moving, run):
    pull, out = residuals
    g = jax.tree.map(lambda x, g: jnp.zeros_like(x) if g is None else g, out, cotangents)
    return only_if(is_wanted(g), pull(g)[0])
