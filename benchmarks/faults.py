"""Where the hosts' default gradients are wrong, beside ours: a cell a fault, a row a setting.

The solves are those of the scripts in docs/host-issues that reproduce them. ``host``, ``ours``: the relative error of
each gradient against the true one, ``right``; None where the call fails. ``known``: how the true one is.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.envelope import Row

FOLDER = "docs/host-issues"


def script(name: str) -> dict[str, Any]:
    """What a script that reproduces a fault defines."""
    return runpy.run_path(str(Path(__file__).resolve().parents[1] / FOLDER / name))


def row(
    file: str, call: str, solve: str, right: float, known: str, host: Callable[[], float], ours: Callable[[], float]
) -> Row:
    """One line, of the gradients that the two return."""
    errors = {"host": _error(host, right), "ours": _error(ours, right)}
    return {"call": call, "solve": solve, "right": right, "known": known, **errors, "file": file}


def _error(found: Callable[[], float], right: float) -> float | None:
    try:
        return abs(found() / right - 1)
    except AssertionError:
        return None
