"""torchdiffeq's solvers: tape the accepted steps, and place steps and outputs in time as functions of the inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steptape._errors import GradientError, UnsupportedError
from steptape.compat import _torchdiffeq as host
from steptape.torch._tableau import Tableau


@dataclasses.dataclass(frozen=True)
class Tape:
    """N accepted steps, in the host's increasing time.

    ``nodes``: the N + 1 ends of the steps. ``sizes``: h_n, N. ``states``: y_n, N tensors like y0. ``slopes``: the first
    stages k_0, N tensors, for a solver that cannot evaluate them from y_n; else empty. ``fresh``: whether a step
    evaluates its own first stage, or takes over the last stage of the step before. ``anchors``: what a node moves
    with, t[0] (0) or entry i of the points (i + 1). ``serving``: for each output after the first, the step it lies in.
    """

    nodes: Tensor
    sizes: Tensor
    states: Sequence[Tensor]
    slopes: Sequence[Tensor]
    fresh: Sequence[bool]
    anchors: Sequence[int]
    serving: Sequence[int]

    def tensors(self) -> list[Tensor]:
        """Everything autograd must watch over between forward and backward."""
        return [self.nodes, self.sizes, *self.states, *self.slopes]

    def emptied(self) -> Tape:
        """The tape without its tensors."""
        none = torch.empty(0)
        return dataclasses.replace(self, nodes=none, sizes=none, states=(), slopes=())

    def refilled(self, tensors: Sequence[Tensor]) -> Tape:
        """An emptied tape with its tensors again."""
        steps = len(self.fresh)
        nodes, sizes, states, slopes = *tensors[:2], tensors[2 : 2 + steps], tensors[2 + steps :]
        return dataclasses.replace(self, nodes=nodes, sizes=sizes, states=states, slopes=slopes)


class Timeline(NamedTuple):
    """The times of a solve, differentiable in the inputs they move with.

    ``stages``: (N, s). ``sizes``: (N,). ``places``: for each output after the first, its place in [0, 1] in its step.
    """

    stages: Tensor
    sizes: Tensor
    places: Tensor

    @property
    def moves(self) -> bool:
        """Whether any time depends on an input that requires a gradient."""
        return any(x.requires_grad for x in self)


class Recorder:
    """The func a solver integrates: the user's, noting each accepted step through the host's own callbacks."""

    def __init__(self, func: Any, keep_slopes: bool):
        self._func = func
        self._keep_slopes = keep_slopes
        self._slope: Tensor | None = None
        self._tried: Tensor | None = None
        self.starts: list[Tensor] = []
        self.sizes: list[Tensor] = []
        self.states: list[Tensor] = []
        self.slopes: list[Tensor] = []
        self.cut: list[bool] = []
        self.callback_reject_step = func.callback_reject_step

    def __call__(self, t: Tensor, y: Tensor, **kwargs: Any) -> Tensor:
        slope = self._func(t, y, **kwargs)
        if self._keep_slopes:
            self._slope = slope
        return slope

    def callback_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        self._func.callback_step(t, y, h)
        # The latest evaluation before a step's first try is the slope the host steps from.
        if self._slope is not None and len(self.slopes) == len(self.starts):
            self.slopes.append(self._slope.to(y.dtype, copy=True))
        self._tried = h

    def callback_accept_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        self._func.callback_accept_step(t, y, h)
        self._append(t, y, h)
        # The host makes a new size when it cuts a try short to end at an entry of step_t or jump_t.
        self.cut.append(h is not self._tried)

    def _append(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        self.starts.append(t)
        self.states.append(y)
        self.sizes.append(h)


class FixedGridRecorder(Recorder):
    """The same for a fixed grid, where every step is accepted."""

    def callback_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        self._func.callback_step(t, y, h)
        self._append(t, y, h)
        self.cut.append(False)


@dataclasses.dataclass(frozen=True)
class Solve:
    """One call of odeint in the host's normal form, without the tensors that may need gradients.

    ``jumps``: how many of the points, the last ones, come from ``jump_t``.
    """

    func: Any
    rtol: Any
    atol: Any
    method: str
    options: dict[str, Any]
    tableau: Tableau
    jumps: int

    def record(self, y0: Tensor, t: Tensor, points: Tensor) -> tuple[Tensor, Tape]:
        """Run the host's solver: its solution, (len(t), *y0.shape), and the tape of its accepted steps."""
        solver = self._solver(y0)
        keep_slopes = self.tableau.chained and not self.tableau.last_at_end
        recorder = (Recorder if self.tableau.chained else FixedGridRecorder)(self.func, keep_slopes)
        solver.func = recorder
        solution = solver.integrate(t)
        if any(y.dtype != y0.dtype or y.shape != y0.shape for y in recorder.states):
            raise UnsupportedError(
                f"odeint_adjoint(..., adjoint_method='aca'): func turned the state y0 ({y0.dtype}, shape "
                f"{tuple(y0.shape)}) into another dtype or shape. Return the dtype and shape of y from func."
            )
        return solution, self._tape(recorder, t, points)

    def timeline(self, tape: Tape, y0: Tensor, t: Tensor, points: Tensor) -> Timeline:
        """The tape's times as a function of y0 (a grid constructor may read it), t and the points."""
        if not len(tape.fresh):
            return Timeline(t.new_zeros(0, self.tableau.stages), t.new_zeros(0), t.new_zeros(0))
        if self.tableau.chained:
            inputs = torch.cat([t[:1].to(tape.nodes.dtype), points])
            # Zero with a gradient: the times keep the very bits the host stepped with.
            shift = (inputs - inputs.detach())[torch.tensor(tape.anchors, device=t.device)]
            nodes, sizes = tape.nodes + shift, tape.sizes + shift.diff()
        else:
            nodes = self._grid(tape, y0, t)
            sizes = nodes.diff()
        stages = self._stages(nodes, sizes).to(y0.real.dtype)
        sides = self._sides(tape)
        if sides.any():
            at = stages.detach()
            stages = stages + (torch.nextafter(at, at + sides.to(at)) - at)
        serving = torch.tensor(tape.serving, dtype=torch.long, device=t.device)
        places = (t[1:].to(nodes.dtype) - nodes[serving]) / (nodes[serving + 1] - nodes[serving])
        if not self.tableau.chained and len(self.tableau.dense) == 1:
            # A linear interpolation returns the state at the end of a step as it is.
            places = torch.where(places == 1, places.detach(), places)
        return Timeline(stages, sizes, places)

    def _stages(self, nodes: Tensor, sizes: Tensor) -> Tensor:
        c = torch.tensor(self.tableau.c, dtype=nodes.dtype, device=nodes.device)
        return torch.where(c == 1, nodes[1:, None], nodes[:-1, None] + c * sizes[:, None])

    def _sides(self, tape: Tape) -> Tensor:
        """On which side of a discontinuity in t the host evaluates the stages: -1 before, 1 behind, else 0; (N, s)."""
        c = torch.tensor(self.tableau.c)
        sides = -(c == 1).double().expand(len(tape.fresh), -1).clone()
        if self.tableau.chained:
            sides[:, 0] = torch.tensor(tape.fresh).double() * 2 - 1
            sides[0, 0] = 0
            return sides
        sides[:, 0] = 1
        if self.tableau.last_at_end:
            sides[:, -1] = 0
        return sides * self.options.get("perturb", False)

    def _solver(self, y0: Tensor) -> Any:
        return host.SOLVERS[self.method](func=self.func, y0=y0, rtol=self.rtol, atol=self.atol, **self.options)

    def _grid(self, tape: Tape, y0: Tensor, t: Tensor) -> Tensor:
        grid = self._solver(y0).grid_constructor(self.func, y0, t)
        if not torch.equal(grid, tape.nodes):
            raise GradientError(
                "odeint_adjoint(..., options={'grid_constructor': ...}): the grid constructor returned another grid in "
                "the backward pass than in the forward pass. Make it a function of its arguments alone."
            )
        return grid

    def _tape(self, recorder: Recorder, t: Tensor, points: Tensor) -> Tape:
        steps = len(recorder.starts)
        if steps == 0:
            return Tape(t, t, (), (), (), (), ())
        starts, sizes = torch.stack(recorder.starts), torch.stack(recorder.sizes)
        end = starts[-1:] + sizes[-1:]
        if recorder.cut[-1]:
            end = points[(points - end).abs().argmin()][None]
        elif not self.tableau.chained:
            end = t[-1:].to(end.dtype)
        nodes = torch.cat([starts, end])

        fresh, anchors = [True], [0]
        for n, cut in enumerate(recorder.cut):
            point = int((points == nodes[n + 1]).nonzero()[0]) if cut else None
            anchors.append(anchors[-1] if point is None else point + 1)
            fresh.append(not self.tableau.chained or (point is not None and point >= len(points) - self.jumps))
        serving = torch.searchsorted(nodes[1:].contiguous(), t[1:].to(nodes.dtype).contiguous())
        return Tape(nodes, sizes, recorder.states, recorder.slopes, fresh[:-1], anchors, serving.tolist())
