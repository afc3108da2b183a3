"""The Brownian paths that every framework solves on: their values on a fine grid, from a seed, by NumPy alone."""

import functools
from typing import Any

import numpy as np

PATHS, CELLS = 256, 2048
"""How many paths a problem is solved on, and the cells of their grid over [0, 1]."""


@functools.cache
def path_values(channels: int) -> Any:
    """Return the values at the grid points, shape (PATHS, CELLS + 1, channels): 0 first, then sums of increments."""
    steps = np.random.default_rng(20).normal(scale=CELLS**-0.5, size=(PATHS, CELLS, channels))
    return np.concatenate([np.zeros((PATHS, 1, channels)), np.cumsum(steps, axis=1)], axis=1)


def per_path(values: tuple[float, ...]) -> Any:
    """Return one copy of a vector for every path."""
    return np.tile(np.array(values), (PATHS, 1))
