"""The tape of an SDE's solve: its accepted steps, the states that the checkpoint plan keeps, and the increments."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from steptape.torch._autograd.side_state import Note

State = tuple[Tensor, ...]  # Where a step starts: y, and the solver's extra state.


class Step(NamedTuple):
    """An accepted step: the times it goes through, two or, where it is the two halves of a try, three.

    ``query``: the first of its queries of the Brownian object, by their order in the solve.
    """

    times: tuple[Tensor, ...]
    query: int


@dataclasses.dataclass(frozen=True)
class Tape:
    """N accepted steps.

    ``serving``: for each output after the first, the step it lies in. ``kept``: the steps whose starting ``states``
    are kept, in at most ``slots`` slots (None: no limit). ``end``: the state y after the last step, if there is one.
    ``answers``: of each query the increment and the Lévy areas, or a few entries of each. ``note``: what
    evaluations change besides, as the solve began, None if they did not; ``notes``: at each query, if they did.
    ``rejected``: how many tries there were besides.
    """

    steps: Sequence[Step]
    serving: Sequence[int]
    kept: Sequence[int]
    slots: int | None
    states: Sequence[State]
    end: State
    answers: Sequence[tuple[Tensor, ...]]
    note: Note | None
    notes: Sequence[Note]
    rejected: int

    def tensors(self) -> list[Tensor]:
        """Everything autograd must watch over between forward and backward."""
        return [x for group in (*self.states, self.end, *self.answers) for x in group]

    def emptied(self) -> tuple[Tape, list[int]]:
        """The tape without these tensors, and how many there are in each state, in the end, and in each answer."""
        counts = [len(group) for group in (*self.states, self.end, *self.answers)]
        return dataclasses.replace(self, states=(), end=(), answers=()), counts

    def refilled(self, counts: Sequence[int], tensors: Iterable[Tensor]) -> Tape:
        """An emptied tape with its tensors again."""
        left = iter(tensors)
        groups = [tuple(islice(left, count)) for count in counts]
        n = len(self.kept)
        return dataclasses.replace(self, states=groups[:n], end=groups[n], answers=groups[n + 1 :])


def serving(steps: Sequence[Step], outputs: Tensor) -> list[int]:
    """For each output, the first step that ends no earlier."""
    ends = torch.tensor([float(step.times[-1]) for step in steps], dtype=torch.float64)
    return torch.searchsorted(ends, outputs.detach().double().cpu().contiguous()).tolist()
