"""The autograd function: the host's solve forward, the replay of its tape backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steptape._errors import GradientError
from steptape.compat import _torchdiffeq as host
from steptape.torch._ambient import Ambient
from steptape.torch._field import Field
from steptape.torch._sweep import Sweep
from steptape.torch._tape import Tape
from steptape.torch._torchdiffeq import Solve


class Replay(torch.autograd.Function):
    """(y0, t, points, *params) to the solution at t, (len(t), *y0.shape). Holds the tape in between, and no graph."""

    @staticmethod
    def forward(ctx: Any, solve: Solve, y0: Tensor, t: Tensor, points: Tensor, *params: Tensor) -> Tensor:
        ctx.ambient = Ambient(y0.device)
        solution, tape = solve.record(y0, t, points)
        ctx.ambient.check_no_random_draws()
        # Saved parameters are watched for changes in place, but hooks such as save_on_cpu unpack copies of them, and
        # the replay differentiates with respect to the very tensors.
        ctx.solve, ctx.tape, ctx.params = solve, tape.emptied(), params
        ctx.save_for_backward(y0, t, points, *params, *tape.tensors())
        return solution

    @staticmethod
    def backward(ctx: Any, grad_solution: Tensor) -> tuple[Tensor | None, ...]:
        y0, t, points, *rest = ctx.saved_tensors
        tape = ctx.tape.refilled(rest[len(ctx.params) :])
        inputs, needed = (y0, t, points, *ctx.params), ctx.needs_input_grad[1:]
        with torch.no_grad(), ctx.ambient.without_autocast():
            grads = _pull_back(ctx.solve, ctx.ambient, tape, inputs, needed, grad_solution)
        if torch.is_grad_enabled():
            grads = _OnceOnly.apply(len(grads), grad_solution, *inputs, *grads)
        return (None, *(grad if need else None for grad, need in zip(grads, needed, strict=True)))


def _pull_back(
    solve: Solve,
    ambient: Ambient,
    tape: Tape,
    inputs: tuple[Tensor, ...],
    needed: tuple[bool, ...],
    grad_solution: Tensor,
) -> list[Tensor]:
    """The cotangents of (y0, t, points, *params)."""
    params = inputs[3:]
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_(need) for x, need in zip(inputs[:3], needed[:3], strict=True)]
        timeline = solve.timeline(tape, *leaves)
    y0 = inputs[0]
    field = Field(host.without_sides(solve.func), ambient, y0.shape, params, in_time=timeline.moves)
    cotangents = Sweep(solve.tableau, tape, timeline, field, y0, solve.keep.graph == "step").run(
        grad_solution[1:].reshape(-1, y0.numel())
    )
    grads = [cotangents.y0 + grad_solution[0], *map(torch.zeros_like, inputs[1:3]), *field.cotangents]
    moved = [(x, g) for x, g in zip(timeline, cotangents[1:], strict=True) if x.requires_grad]
    movers = [(i, x) for i, x in enumerate((*leaves, *params)) if x.requires_grad]
    if moved:
        ends, pulled = zip(*moved, strict=True)
        for (i, _), g in zip(movers, _grad(ends, [x for _, x in movers], pulled), strict=True):
            grads[i] = grads[i] if g is None else grads[i] + g
    return grads


def _grad(outputs: Any, inputs: Any, cotangents: Any) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True)


class _OnceOnly(torch.autograd.Function):
    """The last ``count`` tensors, as if they depended on all of them by a rule that is refused when asked for."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.clone() for x in tensors[-count:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        raise GradientError(
            "odeint_adjoint(..., adjoint_method='aca') cannot be differentiated twice: its backward pass holds the "
            "taped states constant, so a second derivative would be wrong. Use torchdiffeq.odeint for this one."
        )
