"""Which way to take, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence

from steptape._compare.rows import Row, in_bytes, in_seconds
from steptape._errors import OptionError
from steptape._sizes import bytes_of


def size_of(memory: int | str | None) -> float:
    """Bytes; infinitely many where nothing is said."""
    if memory is None:
        return math.inf
    if (size := bytes_of(memory)) is not None:
        return size
    raise OptionError(f"memory={memory!r}: must be a size, such as '2 GiB', '500 MB', or a number of bytes.")


def is_exact(row: Row, limit: float) -> bool:
    """Whether its gradient is that of the discrete solution, to within ``limit`` where that was measured."""
    return row.is_discrete and row.why_not is None and (row.difference is None or row.difference <= limit)


def best(rows: Sequence[Row], limit: float, memory: float) -> Row | None:
    """The fastest of the exact ways that fit, or where none does the one that takes least memory."""
    exact = [row for row in rows if is_exact(row, limit) and row.seconds is not None]
    # What is held is no measure beside peaks.
    peaks = [row for row in exact if row.peak is not None]
    weighed = peaks or [row for row in exact if row.memory is not None]
    fitting = exact if memory == math.inf else [row for row in weighed if (row.memory or 0) <= memory]
    if fitting:
        return min(fitting, key=lambda row: row.seconds or 0.0)
    return min(weighed, key=lambda row: row.memory or 0, default=None)


def advice(rows: Sequence[Row], limit: float, memory: float) -> str:
    """One or two sentences: the way to take with its reason, and where another gradient is closer to the equation's."""
    row = best(rows, limit, memory)
    if row is None:
        return "Advice: none, as no way gave the exact gradient of the solution; the reasons are in the table."
    told = f"Advice: {row.call}. "
    if memory != math.inf and (row.memory or 0) > memory:
        told += (
            f"No exact way fits {in_bytes(memory)}; this one takes least, {in_bytes(row.memory or 0)}, of which the "
            "solution, the gradients and one step's graph are part in any case."
        )
    else:
        told += f"Of the ways with the exact gradient of the solution you see, it is the fastest{_that_fits(memory)}: "
        told += f"{in_seconds(row.seconds or 0.0)}{_over_first(row, rows)}{_weight(row)}."
    return told + _closer(row, rows)


def _that_fits(memory: float) -> str:
    return "" if memory == math.inf else f" that fits {in_bytes(memory)}"


def _over_first(row: Row, rows: Sequence[Row]) -> str:
    first = rows[0]
    if row is first or not first.seconds or not row.seconds:
        return ""
    return f", {row.seconds / first.seconds:.2f} times that of {first.way}"


def _weight(row: Row) -> str:
    return "" if row.memory is None else f", at {in_bytes(row.memory)}"


def _closer(row: Row, rows: Sequence[Row]) -> str:
    """Of the continuous adjoints, where one is twice as near to the equation's own gradient."""
    others = [x for x in rows if not x.is_discrete and x.error is not None and x.seconds is not None]
    if row.error is None or not others:
        return ""
    nearest = min(others, key=lambda x: x.error or 0.0)
    if (nearest.error or 0.0) > row.error / 2:
        return ""
    return (
        f" To the equation's own gradient, {nearest.way} is nearer: {nearest.error:.1e} to {row.error:.1e}, in "
        f"{in_seconds(nearest.seconds or 0.0)}."
    )
