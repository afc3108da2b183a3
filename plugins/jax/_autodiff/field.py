"""The vector field of a solve as a function of all that it depends on."""

import functools
from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from steptape.compat._diffrax import WrapTerm
from steptape.jax._autodiff.converted import converted
from steptape.jax._types import Args, ScalarLike, Terms, Y


class _Field(eqx.Module):
    """The vector field of ``term``, with the traced arrays in its closure as leaves."""

    term: diffrax.ODETerm
    converted: Callable

    def __call__(self, t: ScalarLike, y: Y, args: Args) -> Y:
        return self.converted(self.term, t, y, args)


def closed_ode(terms: Terms, t: ScalarLike, y: Y, args: Args) -> Terms | None:
    """``terms`` whose field closes over no traced array; ``None`` if they are not those of an ODE."""
    if not (isinstance(terms, WrapTerm) and isinstance(terms.term, diffrax.ODETerm)):
        return None
    # A partial, because equinox takes a plain function without cells for one that closes over nothing.
    vf = functools.partial(lambda term, t, y, args: term.vf(t, y, args))
    traced = converted(vf, terms.term, t, y, args)
    return WrapTerm(diffrax.ODETerm(_Field(terms.term, traced)), terms.direction)


def closes_over_tracers(closed: Terms | None) -> bool:
    """Whether the field reads an array that a transformation traces and that is neither in the terms nor in args."""
    if closed is None:
        return False
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(closed.term.vector_field.converted))


def is_complex(y: Y) -> bool:
    """Whether a part of a state is complex."""
    return any(jnp.iscomplexobj(x) for x in jax.tree.leaves(y))


def rate(terms: Terms, t: ScalarLike, y: Y, args: Args) -> Y:
    """dy/dt in the solve's own direction of time, which diffrax keeps in the control."""
    return jax.tree.map(lambda x: terms.direction.astype(x.dtype) * x, terms.vf(t, y, args))
