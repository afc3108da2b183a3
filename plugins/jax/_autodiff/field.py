"""The vector field of a solve as a function of all it depends on, and what may not be differentiated with it."""

import functools
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from steptape._errors import UnsupportedError
from steptape.compat._diffrax import WrapTerm


class _Field(eqx.Module):
    """The vector field of ``term``, with the traced arrays in its closure as leaves."""

    term: Any
    converted: Any

    def __call__(self, t: Any, y: Any, args: Any) -> Any:
        return self.converted(self.term, t, y, args)


def closed_ode(terms: Any, t: Any, y: Any, args: Any) -> Any:
    """``terms`` whose field closes over no traced array; ``None`` if they are not those of an ODE."""
    if not (isinstance(terms, WrapTerm) and isinstance(terms.term, diffrax.ODETerm)):
        return None
    # A partial, because equinox takes a plain function without cells for one that closes over nothing.
    vf = functools.partial(lambda term, t, y, args: term.vf(t, y, args))
    converted = eqx.filter_closure_convert(vf, terms.term, t, y, args)
    return WrapTerm(diffrax.ODETerm(_Field(terms.term, converted)), terms.direction)


def closes_over_tracers(closed: Any) -> bool:
    """Whether the field reads an array that a transformation traces and that is neither in the terms nor in args."""
    if closed is None:
        return False
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(closed.term.vector_field.converted))


def is_complex(y: Any) -> bool:
    """Whether a part of a state is."""
    return any(jnp.iscomplexobj(x) for x in jax.tree.leaves(y))


def rate(terms: Any, t: Any, y: Any, args: Any) -> Any:
    """dy/dt in the solve's own direction of time, which diffrax keeps in the control."""
    return jax.tree.map(lambda x: terms.direction.astype(x.dtype) * x, terms.vf(t, y, args))


def stopped(tree: Any) -> Any:
    """``tree``, which nothing depends on to be differentiated."""
    return jax.tree.map(lambda x: lax.stop_gradient(x) if eqx.is_inexact_array(x) else x, tree)


def undifferentiated(tree: Any, *, why: str) -> Any:
    """``tree``; differentiating it raises ``UnsupportedError(why)``."""
    arrays, rest = eqx.partition(tree, eqx.is_inexact_array)
    return eqx.combine(_undifferentiated(arrays, why=why), rest)


def differentiated_once(tree: Any, *, why: str) -> Any:
    """``tree``; differentiating its derivative raises ``UnsupportedError(why)``."""
    arrays, rest = eqx.partition(tree, eqx.is_inexact_array)
    return eqx.combine(_differentiated_once(arrays, why=why), rest)


@eqx.filter_custom_jvp
def _differentiated_once(arrays: Any, *, why: str) -> Any:
    return arrays


@_differentiated_once.def_jvp
def _differentiated_once_jvp(primals, tangents, *, why):
    return _undifferentiated(primals[0], why=why), tangents[0]


@eqx.filter_custom_jvp
def _undifferentiated(arrays: Any, *, why: str) -> Any:
    return arrays


@_undifferentiated.def_jvp
def _undifferentiated_jvp(primals, tangents, *, why):
    if jax.tree.leaves(tangents[0]):
        raise UnsupportedError(why)
    return primals[0], tangents[0]


@eqx.filter_custom_jvp
def still(counts: Any) -> Any:
    """``counts``, without the tangent that a custom VJP gives even to an integer."""
    return counts


@still.def_jvp
def _still_jvp(primals, tangents):
    return primals[0], jax.tree.map(lambda _: None, primals[0])
