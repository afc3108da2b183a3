"""Refusals: what may not be differentiated, or not in this mode, raises a typed error.

Forward and reverse mode begin alike, with tangents; what differs is what becomes of them. Reverse mode transposes the
operations on them at once, forward mode evaluates, batches or compiles them. So the tangents pass through an operation
that does nothing but notice which of the two it is.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import PyTree

from steptape._errors import UnsupportedError


def stopped(tree: PyTree) -> PyTree:
    """``tree``, without a derivative."""
    return jax.tree.map(lambda x: lax.stop_gradient(x) if eqx.is_inexact_array(x) else x, tree)


def undifferentiated(tree: PyTree, *, why: str) -> PyTree:
    """``tree``; differentiating it raises ``UnsupportedError(why)``."""
    arrays, rest = eqx.partition(tree, eqx.is_inexact_array)
    return eqx.combine(_undifferentiated(arrays, why=why), rest)


def differentiated_once(tree: PyTree, *, why: str) -> PyTree:
    """``tree``; differentiating its derivative raises ``UnsupportedError(why)``."""
    arrays, rest = eqx.partition(tree, eqx.is_inexact_array)
    return eqx.combine(_differentiated_once(arrays, why=why), rest)


@eqx.filter_custom_jvp
def _differentiated_once(arrays: PyTree, *, why: str) -> PyTree:
    return arrays


@_differentiated_once.def_jvp
def _differentiated_once_jvp(primals, tangents, *, why):
    return _undifferentiated(primals[0], why=why), tangents[0]


@eqx.filter_custom_jvp
def _undifferentiated(arrays: PyTree, *, why: str) -> PyTree:
    return arrays


@_undifferentiated.def_jvp
def _undifferentiated_jvp(primals, tangents, *, why):
    if jax.tree.leaves(tangents[0]):
        raise UnsupportedError(why)
    return primals[0], tangents[0]


@eqx.filter_custom_jvp
def without_tangent(counts: PyTree) -> PyTree:
    """``counts``, without the tangent that a custom VJP gives even to an integer."""
    return counts


@without_tangent.def_jvp
def _without_tangent_jvp(primals, tangents):
    return primals[0], jax.tree.map(lambda _: None, primals[0])


def reverse_mode_only(tree: PyTree, refusal: str) -> PyTree:
    """``tree``; what depends on it raises ``UnsupportedError(refusal)`` in forward mode."""
    moving, fixed = eqx.partition(tree, eqx.is_inexact_array)
    leaves, structure = jax.tree.flatten(moving)
    return eqx.combine(jax.tree.unflatten(structure, _values_p.bind(*leaves, refusal=refusal)), fixed)


def _values(*values: PyTree, refusal: str) -> Sequence:
    return values


def _jvp(values, tangents, *, refusal):
    moving = [t for t in tangents if type(t) is not ad.Zero]
    # With the values, so that a batch of any of them, or a derivative, is noticed too.
    marked = iter(_tangents_p.bind(*moving, *values, count=len(moving), refusal=refusal))
    # The values unmarked: this mode may well be transposed, whatever mode comes around it.
    return values, [t if type(t) is ad.Zero else next(marked) for t in tangents]


def _batch_values(values, axes, *, refusal):
    return _values_p.bind(*values, refusal=refusal), axes


def _tangents(*args: PyTree, count: int, refusal: str) -> Sequence:
    return args[:count]


def _refuse(*_: PyTree, refusal: str, **__: int) -> Sequence:
    raise UnsupportedError(refusal)


def _transpose(cotangents, *args, count, refusal):
    return [*cotangents, *[None] * (len(args) - count)]


_values_p, _tangents_p = Primitive("steptape_values"), Primitive("steptape_tangents")
_values_p.multiple_results = _tangents_p.multiple_results = True

_values_p.def_impl(_values)
_values_p.def_abstract_eval(_values)
ad.primitive_jvps[_values_p] = _jvp
batching.primitive_batchers[_values_p] = _batch_values
mlir.register_lowering(_values_p, mlir.lower_fun(_values, multiple_results=True))

# Where reverse mode never gets.
_tangents_p.def_impl(_refuse)
_tangents_p.def_abstract_eval(_tangents)
ad.primitive_jvps[_tangents_p] = _refuse
ad.primitive_transposes[_tangents_p] = _transpose
batching.primitive_batchers[_tangents_p] = _refuse
mlir.register_lowering(_tangents_p, mlir.lower_fun(_refuse, multiple_results=True))
