"""The tape of a solve: the scalars of every accepted step, and the states that the checkpoint plan keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from steptape.torch._autograd.side_state import Note


class State(NamedTuple):
    """Where a step starts: y, flat, and the slopes it cannot evaluate from y, the latest first."""

    y: Tensor
    slopes: tuple[Tensor, ...]

    def to(self, device: torch.device) -> State:
        """The state on a device, itself if it is there."""
        return State(self.y.to(device), tuple(slope.to(device) for slope in self.slopes))


@dataclasses.dataclass(frozen=True)
class Tape:
    """N accepted steps, in the host's increasing time.

    ``nodes``: the N + 1 ends of the steps. ``sizes``: h_n, N. ``times``: of the evaluations for each step, (N, s), but
    empty where the host's own step finds them again. ``outputs``: the times of the outputs after the first.
    ``marks``: samples of the state at which the last step starts, and of the last output. ``kept``: the steps whose
    starting states are kept, in at most ``slots`` slots (None: no limit); ``ys``: these states y_n, flat; ``slopes``:
    the slopes that go with them, and ``history``: which ones go with which. ``fresh``: whether a step evaluates its own
    first stage, or takes over the last stage of the step before. ``anchors``: what a node moves with, t[0] (0) or entry
    i of the points (i + 1). ``serving``: for each output after the first, the step it lies in. ``notes``: for each step
    what evaluations change besides, before its first ones; empty if the solve changed nothing. ``settled``: whether the
    first evaluation alone did. ``pieces``: where the dense output was asked for, that of each step, (5, numel): y by
    powers of the relative place in the step.
    """

    nodes: Tensor
    sizes: Tensor
    times: Tensor
    outputs: Tensor
    marks: Tensor
    ys: Sequence[Tensor]
    slopes: Sequence[Tensor]
    history: Sequence[Sequence[int]]
    kept: Sequence[int]
    slots: int | None
    fresh: Sequence[bool]
    anchors: Sequence[int]
    serving: Sequence[int]
    notes: Sequence[Sequence[Note]]
    settled: bool = True
    pieces: Sequence[Tensor] = ()

    def states(self) -> dict[int, State]:
        """The kept states by step."""
        return {
            n: State(y, tuple(self.slopes[i] for i in history))
            for n, y, history in zip(self.kept, self.ys, self.history, strict=True)
        }

    def tensors(self) -> list[Tensor]:
        """Everything autograd must watch over between forward and backward."""
        return [self.nodes, self.sizes, self.times, self.outputs, self.marks, *self.ys, *self.slopes, *self.pieces]

    def emptied(self) -> Tape:
        """The tape without its tensors."""
        none = torch.empty(0)
        emptied = dataclasses.replace(self, nodes=none, sizes=none, times=none, outputs=none, marks=none)
        return dataclasses.replace(emptied, ys=(), slopes=(), pieces=())

    def refilled(self, tensors: Sequence[Tensor]) -> Tape:
        """An emptied tape with its tensors again."""
        (nodes, sizes, times, outputs, marks), states = tensors[:5], tensors[5:]
        slopes = len(self.kept)
        pieces = slopes + len({i for history in self.history for i in history})
        return dataclasses.replace(
            self,
            nodes=nodes,
            sizes=sizes,
            times=times,
            outputs=outputs,
            marks=marks,
            ys=states[:slopes],
            slopes=states[slopes:pieces],
            pieces=states[pieces:],
        )


class Timeline(NamedTuple):
    """The times of a solve, differentiable in the inputs they move with.

    ``stages``: (N, s). ``sizes``: (N,). For each output after the first: its time in ``outputs``, the ``spans`` of time
    from the start to the end of its step, which may be another number than the step's size, and its ``places`` in
    [0, 1] there.
    """

    stages: Tensor
    sizes: Tensor
    outputs: Tensor
    spans: Tensor
    places: Tensor

    @property
    def moves(self) -> bool:
        """Whether any time depends on an input that requires a gradient."""
        return any(x.requires_grad for x in self)


_ENTRIES = 64


def sample(y: Tensor) -> Tensor:
    """A few entries of a state, to know it by."""
    flat = y.detach().reshape(-1)
    return flat[:: max(1, len(flat) // _ENTRIES)][:_ENTRIES].clone()
