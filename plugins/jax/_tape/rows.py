"""Trees of arrays with one row for each of several values: the rows are written and read one at a time."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree

from steptape.jax._types import IntScalarLike, Rows


def allocate(count: int, values: PyTree) -> Rows:
    """Make ``count`` rows for trees like ``values``, of which only shapes and types are used."""
    return jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), values)


def put(rows: Rows, i: IntScalarLike, values: PyTree) -> Rows:
    """Write ``values`` into row ``i``."""
    return jax.tree.map(lambda xs, x: lax.dynamic_update_index_in_dim(xs, x, i, 0), rows, values)


def get(rows: Rows, i: IntScalarLike) -> PyTree:
    """Read row ``i``."""
    return jax.tree.map(lambda xs: lax.dynamic_index_in_dim(xs, i, 0, keepdims=False), rows)
