"""Functions with the traced arrays that they close over as leaves."""

from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import PyTree

from steptape.compat._jax import is_of_library
from steptape.jax._types import Mask


class Converted(eqx.Module):
    """What ``converted`` returns."""

    jaxpr: Any  # a leaf that is no array
    consts: list
    structs: tuple = eqx.field(static=True)  # of the results, flat
    static: PyTree  # the results that are no arrays

    def __call__(self, *args: PyTree) -> PyTree:
        arrays = jax.tree.leaves(eqx.filter(args, eqx.is_array))
        results = jaxpr_as_fun(ClosedJaxpr(self.jaxpr, self.consts))(*arrays)
        leaves, structure = self.structs
        assert [(x.shape, x.dtype) for x in results] == [(x.shape, x.dtype) for x in leaves]
        return eqx.combine(jax.tree.unflatten(structure, results), self.static)

    def has_custom_vjp(self) -> bool:
        """Whether a function in it has a rule for reverse mode alone."""
        return any(name.startswith("custom_vjp_call") for name in primitives(self.jaxpr))

    def has_custom_jvp(self) -> bool:
        """Whether a function of the user's in it has a rule, which need not be the derivative of anything."""
        rules = (each for each in equations(self.jaxpr) if each.primitive.name == "custom_jvp_call")
        return any(not is_of_library(each) for each in rules)

    def unchanged(self, last: PyTree) -> Mask:
        """True for the leaves of the last argument, which is like ``last``, that are returned as they are."""
        leaves, structure = jax.tree.flatten(last)
        results = jax.tree.unflatten(self.structs[1], self.jaxpr.outvars)
        results = jax.tree.leaves(results, is_leaf=lambda x: x is None)
        places = jax.tree.leaves(last, is_leaf=lambda x: x is None)
        given = iter(self.jaxpr.invars[-len(leaves) :])
        same = [next(given) is result for place, result in zip(places, results, strict=True) if place is not None]
        return jax.tree.unflatten(structure, same)


def converted(function: Callable, *args: PyTree) -> Converted:
    """``function``, traced at ``args``, as one whose leaves are the arrays that it closes over.

    As ``equinox.filter_closure_convert``, which holds the devices that the arguments lie on against those of ``args``:
    a function that is transposed inside ``shard_map`` meets others.
    """
    closed, structs, static = eqx.filter_make_jaxpr(function)(*args)
    leaves, structure = jax.tree.flatten(structs)
    return Converted(closed.jaxpr, closed.consts, (tuple(leaves), structure), static)


def equations(jaxpr: Any) -> Iterator[Any]:
    """Those in ``jaxpr``, and those in them."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def primitives(jaxpr: Any) -> Iterator[str]:
    """The names of the operations in ``jaxpr``, and in those in it."""
    return (equation.primitive.name for equation in equations(jaxpr))
