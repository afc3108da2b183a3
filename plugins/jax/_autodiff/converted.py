"""Functions with the traced arrays that they close over as leaves."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import PyTree


class _Converted(eqx.Module):
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


def converted(function: Callable, *args: PyTree) -> Callable:
    """``function``, traced at ``args``, as one whose leaves are the arrays that it closes over.

    As ``equinox.filter_closure_convert``, which holds the devices that the arguments lie on against those of ``args``:
    a function that is transposed inside ``shard_map`` meets others.
    """
    closed, structs, static = eqx.filter_make_jaxpr(function)(*args)
    leaves, structure = jax.tree.flatten(structs)
    return _Converted(closed.jaxpr, closed.consts, (tuple(leaves), structure), static)
