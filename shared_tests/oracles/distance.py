"""Relative distances of gradients, of any array library: the one arithmetic that tests and reports judge by.

All are taken in double precision, are 0 where both sides are zero, and not a number where any entry is.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = Any


def distance(found: Sequence[Array], expected: Sequence[Array], each: Callable[..., float] | None = None) -> float:
    """Return the largest distance of the arrays in two sequences, each pair by itself, by default `largest`."""
    pairs = zip(found, expected, strict=True)
    return float(np.max([(each or largest)(one, other) for one, other in pairs]))


def largest(found: Array, expected: Array, floor: float = 0.0) -> float:
    """Return the largest difference of two entries, relative to the largest entry expected, if above the floor."""
    one, other = _both(found, expected)
    return _relative(np.max(np.abs(one - other), initial=0.0), max(np.max(np.abs(other), initial=0.0), floor))


def euclidean(found: Array, expected: Array) -> float:
    """Return |found - expected| / |expected| in the 2-norm; several arrays count as one vector."""
    one, other = _both(found, expected)
    return _relative(np.linalg.norm(one - other), np.linalg.norm(other))


def _relative(gap: Any, size: Any) -> float:
    """Return the quotient, and the gap itself where there is no size to compare with."""
    return float(gap / size if size else gap)


def _both(found: Array, expected: Array) -> tuple[Array, Array]:
    one, other = _vector(found), _vector(expected)
    if one.shape != other.shape:
        raise ValueError(f"gradients of {one.size} and of {other.size} numbers have no distance")
    return one, other


def _vector(values: Array) -> Array:
    """Return an array of any library, a number, or a sequence of such, as one vector in double precision."""
    if isinstance(values, (list, tuple)) and not all(isinstance(value, (int, float)) for value in values):
        return np.concatenate([np.zeros(0), *map(_vector, values)])
    if hasattr(values, "resolve_conj"):  # a tensor; NumPy knows neither its bfloat16 nor a view that is yet to be made
        tensor = values.detach().cpu()
        double = tensor.cdouble() if tensor.is_complex() else tensor.double()
        values = double.resolve_conj().resolve_neg().numpy()
    array = np.asarray(values)
    return array.astype(complex if np.iscomplexobj(array) else float).reshape(-1)
