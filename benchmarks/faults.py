"""Where the hosts' default gradients are wrong, beside ours: a cell a fault, a row a setting.

The solves are those of the scripts in docs/host-issues that reproduce them. ``host``, ``ours``: the relative error of
each gradient against the true one, ``right``; None where the call fails. ``known``: how the true one is.
"""

import dataclasses
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.envelope import Row

FOLDER = "docs/host-issues"


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault, in a ``file`` of that folder. ``host``, ``ours``: what the gradient is taken by."""

    file: str
    call: str
    known: str
    host: Any
    ours: Any

    def script(self) -> dict[str, Any]:
        return runpy.run_path(str(Path(__file__).resolve().parents[1] / FOLDER / self.file))

    def row(self, solve: str, right: float, gradient: Callable[[Any], float]) -> Row:
        """One line, of what ``gradient`` returns by each."""
        errors = {name: _error(gradient, getattr(self, name), right) for name in ("host", "ours")}
        return {"call": self.call, "solve": solve, "right": right, "known": self.known, **errors, "file": self.file}


def _error(gradient: Callable[[Any], float], by: Any, right: float) -> float | None:
    try:
        return abs(gradient(by) / right - 1)
    except AssertionError:
        return None
