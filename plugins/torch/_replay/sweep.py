"""The adaptive checkpoint adjoint: replay the accepted steps of a tape, last to first.

Each accepted step is taken again from its state, under autograd and with its known size: no error estimate, no rejected
try. States that the tape does not hold are recomputed with known step sizes too, as the checkpoint plan says.

Source: Zhuang et al., arXiv 2006.02493. The discrete adjoint of a step holds whatever it is made of, so it is that of
an SDE's as well, whose increments are those of the solve.
"""

from __future__ import annotations

import abc
import bisect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from steptape.torch._autograd.graph import Parameters
from steptape.torch._hosts.base import Timeline
from steptape.torch._replay.checks import Ends, check_end
from steptape.torch._tape.checkpoints import states_backward
from steptape.torch._tape.tape import State, Tape


class Sweep(abc.ABC):
    """The backward pass over one tape; ``cotangents``: of its times, once it has run, with the ``batch`` last.

    ``following``: the state at which the next step starts. ``together``: how many steps are taken at a time.
    """

    together = 1

    def __init__(self, tape: Tape, timeline: Timeline, device: torch.device, parameters: Parameters):
        self.tape, self.parameters = tape, parameters
        self.following: State | None = None
        self.ends = Ends()
        self.moves = timeline.moves
        self.cotangents = Timeline(*[x.new_zeros((*x.shape, *parameters.batch)) for x in timeline])
        self._device = device

    def run(self, at_outputs: Tensor, at_end: list[Tensor]) -> list[Tensor]:
        """Pull the cotangents of the outputs after the first, and of the state at the end, back to that at the start.

        ``at_end``: of y, (*batch, *shape), and of what else has one; ``at_outputs``: (outputs, *batch, *shape).
        """
        if not self.tape.length:
            # Outputs of a solve without steps are its initial state.
            return [at_end[0] + at_outputs.sum(0), *at_end[1:]]
        cotangents, last = self._begun(at_end), len(at_outputs)
        for n, state in self.steps_backward():
            if n % self.together:
                continue
            first = bisect.bisect_left(self.tape.step_of_output, n, hi=last)
            cotangents = self._step(n, state, slice(first, last), at_outputs[first:last], cotangents)
            last, self.following = first, state
        self.ends.check(self.parameters)
        return self._ended(cotangents)

    def steps_backward(self) -> Iterator[tuple[int, State]]:
        """All steps, the last one first, each with the state it starts from."""
        return states_backward(self.tape, self._device, self.advance)

    def hold(self, n: int, start: Tensor, end: Tensor, outputs: Sequence[Tensor]) -> None:
        """Hold the end of step n against the state that follows, or where none does what the tape says of it."""
        left = self.tape.length - 1 - n
        if left < 2:
            check_end(end if left else outputs[-1], self.tape.fingerprints[1 - left], start, self.parameters)
        elif self.following:
            self.ends.note(end, self.following[0], start)

    @abc.abstractmethod
    def advance(self, n: int, state: State) -> State:
        """The state at the end of step n."""

    @abc.abstractmethod
    def _step(self, n: int, state: State, outputs: slice, mu: Tensor, after: Any) -> Any:
        """Replay step n, and those to be taken together with it.

        From the cotangents ``mu`` of the outputs inside and those ``after`` to those before.
        """

    def _begun(self, at_end: list[Tensor]) -> Any:
        """What there is after the last step."""
        return at_end

    def _ended(self, before: Any) -> list[Tensor]:
        """The cotangents of the state at the start, from what there is before the first step."""
        return before
