"""Trees of arrays with one row for each of several values: the rows are written and read one at a time."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def allocate(count: int, values: Any) -> Any:
    """``count`` rows for trees like ``values``."""
    return jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), values)


def put(rows: Any, i: Any, values: Any) -> Any:
    """``rows`` with ``values`` in row ``i``."""
    return jax.tree.map(lambda xs, x: lax.dynamic_update_index_in_dim(xs, x, i, 0), rows, values)


def get(rows: Any, i: Any) -> Any:
    """What row ``i`` holds."""
    return jax.tree.map(lambda xs: lax.dynamic_index_in_dim(xs, i, 0, keepdims=False), rows)
