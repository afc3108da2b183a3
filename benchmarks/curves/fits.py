"""What the curves come to: exponents of growth, and the time at equal error."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

UPPER = 3


def exponent(sizes: Sequence[float], values: Sequence[float | None]) -> tuple[float, int] | None:
    """p of value = c size^p by least squares on the logarithms of the last ``UPPER`` points, and their number."""
    points = [(math.log(x), math.log(y)) for x, y in zip(sizes, values, strict=True) if y is not None and y > 0]
    points = points[-UPPER:]
    if len(points) < 2:
        return None
    x, y = np.array(points).T
    return float(np.polyfit(x, y, 1)[0]), len(points)


def at_error(points: Sequence[tuple[float, float]], error: float) -> float | str:
    """The seconds at which a way reaches an error for good: the logarithm interpolated between two tolerances.

    ``points``: (error, seconds) from the loosest tolerance to the tightest. Where there are no two such, why.
    """
    above = [i for i, (found, _) in enumerate(points) if not found <= error]
    if not above:
        return "reached at every tolerance" if points else "not measured"
    last = above[-1]
    if last == len(points) - 1 or not math.isfinite(points[last][0]):
        return "not reached"
    (e0, s0), (e1, s1) = points[last], points[last + 1]
    share = math.log(e0 / error) / math.log(e0 / e1)
    return math.exp((1 - share) * math.log(s0) + share * math.log(s1))
