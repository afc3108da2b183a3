"""The adjoint of a step that only the host can take: its own, replayed whole and under autograd.

Such are the steps of its multistep solvers, which start from y_n and the slopes of earlier steps, and of its implicit
ones, which differentiate the very iterations that solved for their stages. What a step asks of the slopes of earlier
ones waits for the steps that evaluated them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steptape.compat import _torchdiffeq as host
from steptape.torch._field import Field
from steptape.torch._sweep import Sweep, check_end
from steptape.torch._tape import State, Tape, Timeline


class WholeStepSweep(Sweep):
    """The sweep over the steps of a ``solver`` of the host, on a fixed grid."""

    def __init__(self, solver: Any, tape: Tape, timeline: Timeline, field: Field, y0: Tensor):
        super().__init__(tape, timeline, field, y0)
        self.solver = solver
        self.shape = y0.shape
        self.sizes = timeline.sizes.detach()

    def _step(
        self, n: int, state: State, outputs: slice, mu: Tensor, end: Tensor, link: Any
    ) -> tuple[Tensor, dict[int, Tensor]]:
        asked: dict[int, Tensor] = link or {}
        self.field.side.before(n, 0)
        with torch.enable_grad():
            y, *slopes = (x.detach().view(self.shape).requires_grad_() for x in (state.y, *state.slopes))
            times = (*self.times[n], self.sizes[n], *self.places[outputs])
            t0, t1, h, *places = (x.detach().requires_grad_(self.moves) for x in times)
            y1, inside, slope, _ = whole_step(self.solver, slopes, self.field, t0, t1, h, y, places)
        left = len(self.times) - 1 - n
        if left < 2:
            check_end(inside[-1] if left == 0 else y1, self.tape.marks[1 - left], state.y)
        self.field.check(slope, (t0, t1, h, y, *slopes))
        pulled = [(y1, end), *zip(inside, mu, strict=True)]
        if n in asked:
            pulled.append((slope, asked.pop(n)))
        inputs = (y, *slopes, *((t0, t1, h, *places) if self.moves else ()))
        in_y, *others = self.field.pull_graph(pulled, inputs)
        for earlier, in_slope in zip(range(n - 1, -1, -1), others[: len(slopes)], strict=False):
            asked[earlier] = asked[earlier] + in_slope if earlier in asked else in_slope
        if self.moves:
            in_t0, in_t1, in_h, *in_places = others[len(slopes) :]
            self.cotangents.stages[n] = torch.stack([in_t0, in_t1])
            self.cotangents.sizes[n] = in_h
            if in_places:
                self.cotangents.places[outputs] = torch.stack(in_places)
        return in_y.reshape(-1), asked

    def _advance(self, n: int, state: State) -> State:
        y, *slopes = (x.view(self.shape) for x in (state.y, *state.slopes))
        self.field.side.before(n, 0)
        t0, t1 = self.times[n]
        y1, _, _, after = whole_step(self.solver, slopes, self.field, t0, t1, self.sizes[n], y, [])
        return State(y1.reshape(-1), tuple(x.reshape(-1) for x in after))


def whole_step(
    solver: Any, slopes: list[Tensor], field: Field, t0: Tensor, t1: Tensor, h: Tensor, y: Tensor, places: list[Tensor]
) -> tuple[Tensor, list[Tensor], Tensor, list[Tensor]]:
    """The end of a step, the outputs at ``places`` inside it, its first slope, and the slopes the next starts from.

    Interpolates as the host does: linearly, or by a cubic through the slopes at both ends.
    """
    increment, slope, after = host.whole_step(solver, slopes, field.slope, t0, t1, h, y)
    y1 = y + increment
    if solver.interp == "linear":
        return y1, [y1 if x == 1 else y + x * increment for x in places], slope, after
    end_slope = field.slope(t1, y1) if places else slope
    inside = [
        y + x**2 * (3 - 2 * x) * increment + (t1 - t0) * x * (x - 1) * ((x - 1) * slope + x * end_slope) for x in places
    ]
    return y1, inside, slope, after
