"""What is known of a way to a gradient."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass
class Row:
    """One way to the gradient of one problem, as measured; None for what is not known.

    ``way``: its short name, and ``call``: what to write for it. ``is_discrete``: whether it differentiates the solution
    that is computed, by its steps, and not the equation. ``error``: its gradient's against a reference of the
    equation's own, and ``difference``: against that of the discrete solution, both relative in the Euclidean norm over
    all inputs. ``evaluations_forward``, ``evaluations_backward``: of the field. ``seconds``: the least of ``rounds``
    of both passes; of its first run where there was time for no more. ``held``: bytes between the passes, besides the
    inputs and the solution. ``peak``: the most bytes at once, in both passes. ``why_not``: its failure in its own
    words, or why it was skipped.
    """

    way: str
    call: str
    is_discrete: bool
    error: float | None = None
    difference: float | None = None
    evaluations_forward: int | None = None
    evaluations_backward: int | None = None
    seconds: float | None = None
    rounds: int = 0
    held: int | None = None
    peak: int | None = None
    why_not: str | None = None

    @property
    def memory(self) -> int | None:
        """The peak in bytes, or where that is not known what is held."""
        return self.held if self.peak is None else self.peak


def in_seconds(seconds: float) -> str:
    """A time for people."""
    return f"{_three(seconds)} s" if seconds >= 1 else f"{_three(seconds * 1e3)} ms"


def in_bytes(count: float) -> str:
    """A size for people, which ``adjoint_options={"memory": ...}`` takes as well."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while count >= 1000 and len(units) > 1:
        count /= 1024
        del units[0]
    return f"{_three(count)} {units[0]}"


def _three(x: float) -> str:
    return f"{x:.0f}" if x >= 99.95 else f"{x:.3g}"
