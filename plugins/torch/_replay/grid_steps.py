"""The adjoint of steps on a fixed grid that end at every output, or have none but linear interpolation between.

They are taken again as the host takes them, as a stretch of the graph that back-propagation has: to pull a cotangent
through it takes one pass of autograd, where stage by stage it takes one each, longer than a small network itself. Of a
small state several steps at a time, as many as make up the evaluations of one step of an adaptive method.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steptape.torch._autograd.field import Field
from steptape.torch._hosts.base import Timeline
from steptape.torch._hosts.fixed_loop import cast, integrated
from steptape.torch._replay.sweep import Sweep
from steptape.torch._tape.tape import OdeTape, State

# The evaluations of a step of dopri5, and the entries of a state up to which their graphs take little memory.
_EVALUATIONS, _SMALL = 6, 2**14


class GridSweep(Sweep):
    """The sweep over the steps of a ``solver`` of so many ``stages`` from ``y0``."""

    tape: OdeTape

    def __init__(self, solver: Any, stages: int, tape: OdeTape, timeline: Timeline, field: Field, y0: Tensor):
        super().__init__(tape, timeline, y0.device, field.parameters)
        self._solver, self._field, self._y0 = solver, field, y0
        self.together = max(1, _EVALUATIONS // stages) if y0.numel() <= _SMALL else 1
        self._stages, self._begins = stages, False

    def advance(self, n: int, state: State) -> State:
        with torch.no_grad():
            # A view of a state on which func has called requires_grad_() in the solve would require a gradient, too.
            nodes, y = self.tape.nodes[n : n + 2], state[0].detach().view(self._y0.shape)
            func = cast(self._field.returned, y)
            return (integrated(self._solver, func, y, nodes[:1], nodes, _nothing, _nothing).reshape(-1),)

    def _step(self, n: int, state: State, outputs: slice, mu: Tensor, after: list[Tensor]) -> list[Tensor]:
        with torch.enable_grad():
            start = state[0].detach().view(self._y0.shape).requires_grad_()
            ends, inside = self._taken(n, start, outputs)
        last = n + len(ends) - 1
        self.hold(last, start, ends[-1], inside)
        if n < last == self.tape.length - 1:
            self.hold(last - 1, start, ends[-2], inside)
        pairs = [(ends[-1], after[0]), *zip(inside, mu, strict=True)]
        return self.parameters.pull_on(pairs, (start,))

    def _taken(self, n: int, y: Tensor, outputs: slice) -> tuple[list[Tensor], list[Tensor]]:
        """Where the steps from step n on end that are taken together, from ``y``, and the outputs inside them."""
        nodes, ends, inside = self.tape.nodes[n : n + self.together + 1], list[Tensor](), list[Tensor]()

        def before(i: int, t: Tensor, y: Tensor, h: Tensor) -> None:
            if i:
                ends.append(y)
            self._begins = n + i == 0
            self._field.look_at(n + i, self.tape.length, self._stages)

        def put(y: Tensor) -> None:
            inside.append(y.view_as(y))

        times = torch.cat([nodes[:1], self.tape.outputs[outputs]])
        ends.append(integrated(self._solver, cast(self._evaluated, y), y, times, nodes, before, put))
        return ends, inside[1:]

    def _evaluated(self, t: Tensor, y: Tensor) -> Tensor:
        begins, self._begins = self._begins, False
        return self._field.within(t, y, begins)


def _nothing(*_: Any) -> None:
    """Done with what is of no use."""
