"""The times of a tape as a function of what moves them: a solve's y0, its times, and the points its steps end at."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steptape._errors import GradientError
from steptape.torch._hosts.base import Timeline
from steptape.torch._hosts.scheme import Scheme
from steptape.torch._tape.tape import OdeTape


def timeline_of(
    scheme: Scheme, tape: OdeTape, y0: Tensor, t: Tensor, points: Tensor, grid: Any, has_event: bool
) -> Timeline:
    """The tape's times, which keep the bits the host stepped with.

    ``grid()``: that of a solver on a fixed grid, as a function of its inputs, which a grid constructor may read.
    ``has_event``: whether the solve ended at one, at a time without a gradient.
    """
    if not tape.length:
        return Timeline.empty(t)
    if scheme.hands_on or has_event:
        inputs = torch.cat([t[:1].to(tape.nodes.dtype), points])
        # Zero with a gradient.
        shift = (inputs - inputs.detach())[torch.tensor(tape.moves_with, device=t.device)]
        nodes, sizes = tape.nodes + shift, tape.sizes + shift.diff()
    else:
        nodes = _same_grid(grid(), tape)
        sizes = nodes.diff()
    step = torch.tensor(tape.step_of_output, dtype=torch.long, device=t.device)
    outputs = tape.outputs if has_event else t[1:].to(nodes.dtype)
    spans = nodes[step + 1] - nodes[step]
    dtype = y0.real.dtype
    sizes, positions = scheme.sizes_and_positions(sizes, (outputs - nodes[step]) / spans, dtype)
    return Timeline(scheme.stages(tape.times, nodes, dtype), sizes, outputs, spans, positions)


def _same_grid(grid: Tensor, tape: OdeTape) -> Tensor:
    if not torch.equal(grid, tape.nodes):
        raise GradientError(
            "odeint_adjoint(..., options={'grid_constructor': ...}): the grid constructor returned another grid in the "
            "backward pass than in the forward pass. Make it a function of its arguments alone."
        )
    return grid
