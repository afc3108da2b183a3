"""What ``compare`` returns."""

from __future__ import annotations

import dataclasses
from typing import Any

from steptape._compare import advice, plot, table
from steptape._compare.rows import Row


@dataclasses.dataclass
class Comparison:
    """The ways to a gradient of one problem, side by side: printed as a table, and shown as one in a notebook.

    ``title``: the problem. ``rows``: a row a way. ``reference``, ``discrete``: what the errors and the differences are
    of, or why they are not known. ``limit``: the difference up to which a gradient counts as the discrete solution's
    own, half of its dtype's digits. ``memory``: that there is, in bytes, or None for any. ``note``: on the machine.
    """

    title: str
    rows: list[Row]
    reference: str
    discrete: str
    limit: float
    memory: int | None = None
    note: str = ""

    def best(self, memory: int | str | None = None) -> Row | None:
        """The fastest way that is exact and fits; where none fits, the one that takes least memory.

        ``memory``: a size, such as ``"2 GiB"``, or a number of bytes, to be held against the peak; by default what the
        comparison was given.
        """
        return advice.best(self.rows, self.limit, advice.size_of(self.memory if memory is None else memory))

    def advice(self, memory: int | str | None = None) -> str:
        """The same in a sentence with its reason."""
        return advice.advice(self.rows, self.limit, advice.size_of(self.memory if memory is None else memory))

    def plot(self, ax: Any = None) -> Any:
        """Time against memory, coloured by error, with matplotlib: the axes, of which ``figure`` is the figure.

        Squares are the continuous adjoints. ``ax``: the axes to draw on.
        """
        return plot.plot(self.title, self.rows, ax)

    def _remarks(self) -> list[str]:
        return [
            f"error: of the gradient, against {self.reference}",
            f"to discrete: against {self.discrete}",
            "forward, backward: evaluations; time: of both passes; held: between them, besides inputs and solution",
            *filter(None, [self.note]),
            self.advice(),
        ]

    def __str__(self) -> str:
        return table.as_text(self.title, self.rows, self._remarks())

    def _repr_html_(self) -> str:
        return table.as_html(self.title, self.rows, self._remarks(), self.best())
