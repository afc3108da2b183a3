"""The adjoint of a step that only the host can take: its own, replayed whole and under autograd.

Such are the steps of its multistep solvers, which start from y_n and the slopes of earlier steps, and of its implicit
ones, which differentiate the very iterations that solved for their stages. What a step asks of the slopes of earlier
ones waits for the steps that evaluated them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steptape.compat import _torchdiffeq as host
from steptape.torch._autograd.field import Field
from steptape.torch._hosts.torchdiffeq import Solve
from steptape.torch._replay.sweep import Sweep, check_end
from steptape.torch._tape.tape import State, Tape, Timeline


class WholeStepSweep(Sweep):
    """The sweep over the steps of a solver of the host, on a fixed grid."""

    def __init__(self, solve: Solve, tape: Tape, timeline: Timeline, field: Field, y0: Tensor):
        super().__init__(tape, timeline, field, y0)
        self.solver = solve.solver(y0)
        self.shape = y0.shape
        self.sizes, self.outputs = step_sizes(solve, timeline), timeline.outputs.detach()

    def _step(
        self, n: int, state: State, outputs: slice, mu: Tensor, end: Tensor, link: Any
    ) -> tuple[Tensor, dict[int, Tensor]]:
        asked: dict[int, Tensor] = link or {}
        self.field.side.before(n, 0)
        with torch.enable_grad():
            y, *slopes = (x.detach().view(self.shape).requires_grad_() for x in (state.y, *state.slopes))
            moving = [x.detach().requires_grad_(self.moves) for x in (*self.times[n], *self.outputs[outputs])]
            (t0, t1, *ts), h = moving, self.sizes[n]
            if isinstance(h, Tensor):
                h = h.detach().requires_grad_(self.moves)
                moving.append(h)
            y1, inside, slope, _ = whole_step(self.solver, slopes, self.field, t0, t1, h, y, ts)
        left = len(self.times) - 1 - n
        if left < 2:
            check_end(inside[-1] if left == 0 else y1, self.tape.marks[1 - left], state.y)
        self.field.check(slope, (*moving, y, *slopes))
        pulled = [(y1, end), *zip(inside, mu, strict=True)]
        if n in asked:
            pulled.append((slope, asked.pop(n)))
        inputs = (y, *slopes, *(moving if self.moves else ()))
        in_y, *others = self.field.pull_graph(pulled, inputs)
        for earlier, in_slope in zip(range(n - 1, -1, -1), others[: len(slopes)], strict=False):
            asked[earlier] = asked[earlier] + in_slope if earlier in asked else in_slope
        if self.moves:
            in_times = others[len(slopes) :]
            self.cotangents.stages[n] = torch.stack(in_times[:2])
            if ts:
                self.cotangents.outputs[outputs] = torch.stack(in_times[2 : 2 + len(ts)])
            if isinstance(h, Tensor):
                self.cotangents.sizes[n] = in_times[-1]
        return in_y.reshape(-1), asked

    def _advance(self, n: int, state: State) -> State:
        y, *slopes = (x.view(self.shape) for x in (state.y, *state.slopes))
        self.field.side.before(n, 0)
        t0, t1 = self.times[n]
        y1, _, _, after = whole_step(self.solver, slopes, self.field, t0, t1, self.sizes[n], y, [])
        return State(y1.reshape(-1), tuple(x.reshape(-1) for x in after))


def step_sizes(solve: Solve, timeline: Timeline) -> Sequence[Any]:
    """As the host hands them to its step: where it seeks an event, the very step_size of the call."""
    if solve.event_fn is None:
        return timeline.sizes.unbind()
    return [solve.options["step_size"]] * len(timeline.sizes)


def whole_step(
    solver: Any, slopes: list[Tensor], field: Field, t0: Tensor, t1: Tensor, h: Any, y: Tensor, outputs: list[Tensor]
) -> tuple[Tensor, list[Tensor], Tensor, list[Tensor]]:
    """The end of a step, the states at the times ``outputs`` inside it, its first slope, and those the next needs."""
    increment, slope, after = host.whole_step(solver, slopes, field.slope, t0, t1, h, y)
    y1 = y + increment
    end_slope = field.slope(t1, y1) if outputs and solver.interp != "linear" else None
    inside = [host.interpolated(solver, t0, y, slope, t1, y1, end_slope, t) for t in outputs]
    return y1, inside, slope, after
