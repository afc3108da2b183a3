"""The tape of an SDE's solve: its accepted steps, the states that the checkpoint plan keeps, and the increments."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from steptape.torch._random import Seed
from steptape.torch._sde_noise import Query

State = tuple[Tensor, ...]  # Where a step starts: y, and the solver's extra state.


class Step(NamedTuple):
    """An accepted step: the times it goes through, two or, where it is the two halves of a try, three; its queries."""

    times: tuple[Tensor, ...]
    queries: Sequence[Query]


@dataclasses.dataclass(frozen=True)
class Tape:
    """N accepted steps.

    ``serving``: for each output after the first, the step it lies in. ``kept``: the steps whose starting ``states``
    are kept, in at most ``slots`` slots (None: no limit). ``end``: the state y after the last step, if there is one.
    ``seed``: the states of the generators as the solve began; ``drawn``: whether it drew from them.
    """

    steps: Sequence[Step]
    serving: Sequence[int]
    kept: Sequence[int]
    slots: int | None
    states: Sequence[State]
    end: State
    seed: Seed
    drawn: bool

    def tensors(self) -> list[Tensor]:
        """Everything autograd must watch over between forward and backward."""
        return [x for group in self._groups() for x in group]

    def emptied(self) -> tuple[Tape, list[int]]:
        """The tape without these tensors, and how many there are in each of its groups of them."""
        return self._with(()), [len(group) for group in self._groups()]

    def refilled(self, counts: Sequence[int], tensors: Iterable[Tensor]) -> Tape:
        """An emptied tape with its tensors again."""
        tensors = iter(tensors)
        return self._with([tuple(islice(tensors, count)) for count in counts])

    def _groups(self) -> Iterator[tuple[Tensor, ...]]:
        yield from self.states
        yield self.end
        for step in self.steps:
            yield from (query.answer for query in step.queries)

    def _with(self, groups: Sequence[tuple[Tensor, ...]]) -> Tape:
        left = iter(groups)
        states = [next(left, ()) for _ in self.kept]
        end = next(left, ())
        steps = [s._replace(queries=[q._replace(answer=next(left, ())) for q in s.queries]) for s in self.steps]
        return dataclasses.replace(self, states=states, end=end, steps=steps)


def serving(steps: Sequence[Step], outputs: Tensor) -> list[int]:
    """For each output, the first step that ends no earlier."""
    ends = torch.tensor([float(step.times[-1]) for step in steps], dtype=torch.float64)
    return torch.searchsorted(ends, outputs.detach().double().cpu().contiguous()).tolist()
