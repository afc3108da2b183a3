"""The adjoint of a step that only the host can take: its own, replayed whole and under autograd.

Such are the steps of torchdiffeq's multistep solvers, which start from y_n and the slopes of earlier steps, those of
its implicit ones, which differentiate the very iterations that solved for their stages, and the steps of SDEs. The
graph of a step is freed before that of the step before is built.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steptape.torch._autograd.graph import Parameters, check_hooks
from steptape.torch._autograd.leaves import LeafCheck, is_looked_at
from steptape.torch._hosts.base import HostSteps, Timeline
from steptape.torch._replay.checks import check_end
from steptape.torch._replay.sweep import Sweep
from steptape.torch._tape.graphs import Graphs, Piece
from steptape.torch._tape.tape import State, Tape

NONE = slice(0, 0)


class HostStepSweep(Sweep):
    """The sweep over steps of a host; ``graphs``: of those that need not be taken again."""

    def __init__(
        self,
        steps: HostSteps,
        tape: Tape,
        timeline: Timeline,
        parameters: Parameters,
        device: torch.device,
        graphs: Graphs,
    ):
        super().__init__(tape, timeline, device, parameters)
        self.steps, self.graphs = steps, graphs
        self._check_leaves = LeafCheck(parameters)
        # Of the graph at hand, the tensors and their cotangents.
        self._asked: list[tuple[Tensor, Tensor]] = []

    def advance(self, n: int, state: State) -> State:
        return self.steps.take(n, state, self.steps.times(n, NONE), NONE)[0]

    def _step(self, n: int, state: State, outputs: slice, mu: Tensor, after: list[Tensor]) -> list[Tensor]:
        kept = self.graphs.take_out(n, self.parameters.retains)
        if kept is not None:
            return self._kept_step(n, state, kept, outputs, mu, after)
        start, times, end, inside = self._with_graph(n, state, outputs)
        check_hooks(start, self.parameters.call)
        left = self.tape.length - 1 - n
        if left < 2:
            check_end(end[0] if left else inside[-1], self.tape.fingerprints[1 - left], state[0], self.parameters)
        elif self.following:
            self.ends.note(end[0], self.following[0], state[0])
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

    def _kept_step(
        self, n: int, state: State, pieces: Sequence[Piece], outputs: slice, mu: Tensor, after: list[Tensor]
    ) -> list[Tensor]:
        """The same by its graph, in one piece or in two; where it goes on from the step before, once that is here."""
        if is_looked_at(n, self.tape.length):
            for start, end, *_ in pieces:
                self._check_leaves(end, start, lambda: self._with_graph(n, state, NONE)[2])
        check_hooks((x for piece in pieces for x in (*piece.start, *piece.end)), self.parameters.call)
        in_start, first, last = None, pieces[0].start[0], pieces[-1].end[0]
        if not self._asked:
            self._ask(pieces[-1].end, after)
        if len(mu):
            with torch.enable_grad():
                y0, y1 = (x.detach().requires_grad_() for x in (first, last))
                inside = self.steps.inside(n, y0, y1, outputs)
            in_start, in_end = self.parameters.pull(zip(inside, mu, strict=True), (y0, y1))
            self._ask((last,), (in_end,))
        for piece in reversed(pieces):
            if not self._asked:
                self._ask(piece.end, after)
            if not piece.chained:
                after = self.parameters.pull(self._asked, piece.start)
                self._asked = []
        if in_start is not None and self._asked:
            self._ask((first,), (in_start,))
        elif in_start is not None:
            after = [after[0] + in_start, *after[1:]]
        return after

    def _ask(self, ends: Sequence[Tensor], cotangents: Sequence[Tensor]) -> None:
        self._asked += [(x, c.to(x.dtype)) for x, c in zip(ends, cotangents, strict=False)]
