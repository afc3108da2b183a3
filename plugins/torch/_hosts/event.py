"""The time of an event as a function of all that the solution and the event depend on.

At the event c(t, y(t), θ) = 0, so by the implicit function theorem

    dt = -(∂c/∂y dy + ∂c/∂θ dθ) / (∂c/∂t + ∂c/∂y f),

where dy is the change of the solution at that very time. The parameters θ of the event itself need no finding: c is
evaluated once more, and autograd goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steptape._errors import UnsupportedError
from steptape.compat import _torchdiffeq as host
from steptape.compat._torch import transforms_active
from steptape.torch._autograd.graph import Parameters
from steptape.torch._autograd.surroundings import Surroundings, Untouched
from steptape.torch._hosts.torchdiffeq import OdeSolve


def differentiable_time(solve: OdeSolve, end: Tensor, state: Tensor, params: Sequence[Tensor]) -> Tensor:
    """The time ``end`` at which a solve ended in ``state``, with its derivatives; ``params``: of the solve."""
    if not torch.is_grad_enabled() or transforms_active():
        return end
    fixed, parameters = (end.detach(), state.detach()), Parameters(params, solve.call)
    t, y = (x.clone().requires_grad_() for x in fixed)
    surroundings = Surroundings(state.device, solve.user_func)
    with surroundings.looked_at(), Untouched(surroundings, solve.user_func).kept_now():
        with parameters.in_place():
            value = solve.event_fn(t, y)
        wanted = (t, y, *parameters.params) if solve.call.named else (t, y)
        in_t, in_y, *in_params = torch.autograd.grad(value, wanted, allow_unused=True, retain_graph=True)
        in_t = torch.zeros_like(t) if in_t is None else in_t
        in_y = torch.zeros_like(y) if in_y is None else in_y
        with torch.no_grad():
            # The host's odeint_event adds as much, lest it be zero.
            speed = in_t + _dot(in_y, solve.func(*fixed)) + 1e-12
        if solve.call.named:
            shares = [(x, g) for x, g in zip((state, *params), (in_y, *in_params), strict=True) if g is not None]
            value = sum((_dot(g, x - x.detach()) for x, g in shares), torch.zeros_like(value))
            has_parameters = any(g is not None for g in in_params)
        else:
            value, has_parameters = solve.event_fn(fixed[0], state), solve.event_fn(*fixed).requires_grad
    if not value.requires_grad:
        return end
    _reroute(has_parameters)
    return EventTime.apply(end, value, speed)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.conj() * b).sum().real


class EventTime(torch.autograd.Function):
    """The time at which an event's ``value`` is zero; ``speed``: its total derivative in time there."""

    @staticmethod
    def forward(ctx: Any, end: Tensor, value: Tensor, speed: Tensor) -> Tensor:
        ctx.value, ctx.speed = value, speed
        return end.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, Tensor, None]:
        _refuse_second()
        return None, -cotangent / ctx.speed, None


class _Moved(torch.autograd.Function):
    """A state at a time, as a function of the event's ``value`` too, with which it changes by ``slope``.

    Not of the time itself, whose dtype may be less precise than that of the state.
    """

    @staticmethod
    def forward(ctx: Any, state: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        ctx.slope = slope
        return state.clone()

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor, None]:
        _refuse_second()
        return cotangent, _dot(ctx.slope, cotangent), None


def _reroute(has_parameters: bool) -> None:
    """Let odeint_event pass on the derivatives of such times, where it passes on its own through the state alone.

    ``has_parameters``: whether the event depends on more than the time and the state.
    """
    if not host.reroute_events(_is_differentiable, _rerouted) and has_parameters:
        raise UnsupportedError(
            "odeint_adjoint(..., event_fn=event_fn, adjoint_method=...): event_fn depends on tensors that require a "
            "gradient, and torchdiffeq.odeint_event, which someone else has changed, passes the derivative of the time "
            "on through the state alone. Make them channels of the state, with derivative 0, or detach() them in "
            "event_fn if that gradient is not wanted."
        )


def _event_of(end: Tensor) -> Any:
    """The node of the graph that made a time differentiable, if one did."""
    node = end.grad_fn
    # odeint_event takes times in reverse with their sign changed.
    while node is not None and node.name() in ("NegBackward0", "ToCopyBackward0"):
        node = node.next_functions[0][0]
    return node if node is not None and node.name() == f"{EventTime.__name__}Backward" else None


def _is_differentiable(end: Tensor) -> bool:
    return _event_of(end) is not None


def _rerouted(func: Any, end: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    event = _event_of(end)
    with torch.no_grad():
        slope = -func(end, state) / event.speed
    return end, _Moved.apply(state, event.value, slope)


def _refuse_second() -> None:
    if torch.is_grad_enabled():
        raise UnsupportedError(
            "odeint_adjoint(..., event_fn=event_fn, adjoint_method=...): second derivatives (create_graph=True) of the "
            "time of an event. Make that time a channel of the state, or differentiate the state alone: "
            "solution[-1] of odeint_adjoint, which is at a fixed time."
        )
