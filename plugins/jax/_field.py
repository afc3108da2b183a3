"""The vector field of a solve as a function of all it depends on, and what may not be differentiated with it."""

import functools
from typing import Any

import diffrax
import equinox as eqx
import jax

from steptape._errors import UnsupportedError
from steptape.compat._diffrax import WrapTerm


class Field(eqx.Module):
    """``terms.vf``, with the traced arrays in its closure as leaves."""

    terms: Any
    converted: Any

    def __call__(self, t: Any, y: Any, args: Any) -> Any:
        return self.converted(self.terms, t, y, args)


def field_of(terms: Any, t: Any, y: Any, args: Any) -> Field | None:
    """The field of an ODE, in the solve's own direction of time; ``None`` if ``terms`` is another kind of equation."""
    if not (isinstance(terms, WrapTerm) and isinstance(terms.term, diffrax.ODETerm)):
        return None

    # A partial, because equinox takes a plain function without cells for one that closes over nothing.
    vf = functools.partial(lambda terms, t, y, args: terms.vf(t, y, args))
    return Field(terms, eqx.filter_closure_convert(vf, terms, t, y, args))


def closes_over_tracers(field: Field | None) -> bool:
    """Whether ``field`` reads an array that a transformation traces and that is neither in the terms nor in args."""
    return field is not None and any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(field.converted))


def undifferentiated(tree: Any, *, why: str) -> Any:
    """``tree``; differentiating it raises ``UnsupportedError(why)``."""
    arrays, rest = eqx.partition(tree, eqx.is_inexact_array)
    return eqx.combine(_undifferentiated(arrays, why=why), rest)


@eqx.filter_custom_jvp
def _undifferentiated(arrays: Any, *, why: str) -> Any:
    return arrays


@_undifferentiated.def_jvp
def _undifferentiated_jvp(primals, tangents, *, why):
    if jax.tree.leaves(tangents[0]):
        raise UnsupportedError(why)
    return primals[0], tangents[0]
