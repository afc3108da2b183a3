"""The adjoint of a step that only the host can take: its own, replayed whole and under autograd.

Such are the steps of torchdiffeq's multistep solvers, which start from y_n and the slopes of earlier steps, those of
its implicit ones, which differentiate the very iterations that solved for their stages, and the steps of SDEs. The
graph of a step is freed before that of the step before is built.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from steptape.torch._autograd.graph import Parameters, check_hooks
from steptape.torch._autograd.leaves import LeafCheck, is_looked_at
from steptape.torch._hosts.base import HostSteps, Timeline
from steptape.torch._replay.sweep import Sweep
from steptape.torch._tape.graphs import Whole
from steptape.torch._tape.tape import State, Tape

NONE = slice(0, 0)


class HostStepSweep(Sweep):
    """The sweep over steps of a host."""

    def __init__(self, steps: HostSteps, tape: Tape, timeline: Timeline, parameters: Parameters, device: torch.device):
        super().__init__(tape, timeline, device, parameters)
        self.steps = steps
        self._check_leaves = LeafCheck(parameters)

    def advance(self, n: int, state: State) -> State:
        return self.steps.take(n, state, self.steps.times(n, NONE), NONE)[0]

    def _step(self, n: int, state: State, outputs: slice, mu: Tensor, after: list[Tensor]) -> list[Tensor]:
        start, times, end, inside = self._with_graph(n, state, outputs)
        check_hooks(start, self.parameters.call)
        self.hold(n, state[0], end[0], inside)
        if is_looked_at(n, self.tape.length):
            self._check_leaves(end, (*start, *times), lambda: self._with_graph(n, state, outputs)[2], first=n == 0)
        moving = times if self.moves else []
        pairs = [(x, c.to(x.dtype)) for x, c in (*zip(end, after, strict=False), *zip(inside, mu, strict=True))]
        found = self.parameters.pull(pairs, (*start, *moving))
        if moving:
            self.steps.place(self.cotangents, n, outputs, found[len(start) :])
        return found[: len(start)]

    def _with_graph(self, n: int, state: State, outputs: slice) -> tuple[list[Tensor], list[Tensor], State, State]:
        """Where and when step n starts, as leaves, where it ends, and the outputs inside it."""
        with torch.enable_grad():
            start = [x.detach().requires_grad_() for x in state]
            times = [x.detach().requires_grad_(self.moves) for x in self.steps.times(n, outputs)]
            return start, times, *self.steps.take(n, start, times, outputs)

    def end_again(self, n: int) -> State:
        """Where step n ends, taken again with a graph."""
        return self._with_graph(n, self.tape.states[n], NONE)[2]


def pull_whole(
    whole: Whole,
    cotangents: Sequence[Tensor],
    needed: Sequence[bool],
    parameters: Parameters,
    end_again: Callable[[int, State | None], State],
) -> list[Tensor | None]:
    """The cotangents that are ``needed`` of what a solve was given, by its graph, from those of its results.

    ``end_again``: takes a step again, from a state if it is at hand.
    """
    check_leaves = LeafCheck(parameters)
    for n, start, end in whole.steps:
        check_leaves(end, start, functools.partial(end_again, n, start))
    for n, place, slope in whole.glances:
        if not check_leaves.glance(slope, (place,)):
            check_leaves((slope,), (place,), functools.partial(end_again, n, None))
    wanted = [x for x, need in zip(whole.given, needed, strict=False) if need]
    found = iter(parameters.pull(zip(whole.results, cotangents, strict=True), wanted))
    return [next(found) if need else None for need in needed]
