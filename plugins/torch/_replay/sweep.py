"""The adaptive checkpoint adjoint: replay the accepted steps of a tape, last to first.

Each accepted step is taken again from its state, under autograd and with its known size: no error estimate, no rejected
try. States that the tape does not hold are recomputed with known step sizes too, as the checkpoint plan says.

Source: Zhuang et al., arXiv 2006.02493.
"""

from __future__ import annotations

import abc
import bisect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from steptape._errors import GradientError
from steptape._plan import reversal
from steptape.torch._autograd.field import Field
from steptape.torch._tape.tape import State, Tape, Timeline, sample

S = TypeVar("S")


def states_backward(
    states: dict[int, S], steps: int, slots: int | None, load: Callable[[S], S], advance: Callable[[int, S], S]
) -> Iterator[tuple[int, S]]:
    """All steps of a tape, the last one first, each with the state it starts from.

    ``states``: those kept, by step, in at most ``slots`` slots. ``load``: brings one of them to where it is needed.
    ``advance(n, state)``: the state at the end of step n, for those that are not kept.
    """
    for move, n in reversal(list(states), steps, slots):
        if move == "load":
            state = load(states[n])
        elif move == "advance":
            state = advance(n, state)
        elif move == "keep":
            states[n] = state
        elif move == "drop":
            del states[n]
        else:
            yield n, state


class Cotangents(NamedTuple):
    """Of the initial state, like y0, and of what is in a timeline."""

    y0: Tensor
    stages: Tensor
    sizes: Tensor
    outputs: Tensor
    spans: Tensor
    places: Tensor


class Sweep(abc.ABC):
    """The backward pass over one tape that starts from ``y0``; ``field`` gathers the cotangents of the parameters."""

    def __init__(self, tape: Tape, timeline: Timeline, field: Field, y0: Tensor):
        self.tape, self.field = tape, field
        self.moves = timeline.moves
        self.times = timeline.stages.detach()
        self.cotangents = Cotangents(*map(torch.zeros_like, (y0, *timeline)))

    def run(self, grad_outputs: Tensor) -> Cotangents:
        """Pull the cotangents of the outputs after the first, (len(t) - 1, numel), back to the start of the tape."""
        steps = len(self.times)
        # Outputs of a solve without steps are its initial state.
        end = (grad_outputs[:0] if steps else grad_outputs).sum(0)
        link, last = None, len(grad_outputs)
        for n, state in self.steps_backward():
            first = bisect.bisect_left(self.tape.serving, n, hi=last)
            end, link = self._step(n, state, slice(first, last), grad_outputs[first:last], end, link)
            last = first
        return self.cotangents._replace(y0=end.view_as(self.cotangents.y0))

    def steps_backward(self) -> Iterator[tuple[int, State]]:
        """All steps, the last one first, each with the state it starts from."""
        states, device = self.tape.states(), self.cotangents.y0.device
        return states_backward(states, len(self.times), self.tape.slots, lambda x: x.to(device), self._advance)

    @abc.abstractmethod
    def _step(self, n: int, state: State, outputs: slice, mu: Tensor, end: Tensor, link: Any) -> tuple[Tensor, Any]:
        """Replay step n: from the cotangents of its outputs and its end, and from what the next step left over, to the
        cotangent of its start and what is left over for the step before."""

    @abc.abstractmethod
    def _advance(self, n: int, state: State) -> State:
        """The state at the end of step n."""


def check_end(
    end: Tensor, mark: Tensor, start: Tensor, call: str = "odeint_adjoint(func, ...", func: str = "func"
) -> None:
    """Raise if what was replayed from ``start`` ends elsewhere than in the forward pass, by more than rounding.

    ``mark``: that end, flat, or a sample of it. ``call`` and ``func``: what the error speaks of.
    """
    if not mark.numel():
        return
    with torch.no_grad():
        end = end.reshape(-1)
        found = end if len(mark) == len(end) else sample(end)
        moved = (end - start.reshape(-1)).abs().max()
        rounding = 1e3 * torch.finfo(end.dtype).eps * end.abs().max()
        close = not end.isfinite().all() or (found - mark).abs().max() <= 0.01 * moved + rounding
        if close and torch.equal(found.isfinite(), mark.isfinite()):
            return
    raise GradientError(
        f"{call}, adjoint_method='aca'): {func} returned other values in the backward pass than in the forward pass, "
        f"so the replay would give the gradient of another solution. Make {func} a function of its arguments and "
        "parameters alone: no state that evaluations change, and no random numbers but those of torch's default "
        "generators."
    )
