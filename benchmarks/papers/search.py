"""Back-propagation through the step-size search: what the ACA paper calls naive, and torchdiffeq no longer does.

Every step size is a function of the errors of the tries before it, and all of them stay in the graph.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def odeint_search(
    func: Callable[[Tensor, Tensor], Tensor],
    y0: Tensor,
    t: Tensor,
    rtol: float,
    atol: float,
    method: str = "adaptive_heun",
    held: bool = False,
) -> Tensor:
    """The solution at ``t``, increasing, by Heun's method with Euler's for its error: (len(t), *y0.shape).

    That is its one ``method``. With ``held`` the same solution, and its steps are constants to the gradient. Where
    ``func`` has torchdiffeq's ``callback_accept_step`` and ``callback_reject_step``, they are called as there.
    """
    time, y, h = t[0], y0, (t[-1] - t[0]) / 10
    outputs = [y0]
    for end in t[1:]:
        while time < end:
            last = bool(time + h >= end)
            step = end - time if last else h
            tried, error = _try(func, time, y, step, rtol, atol)
            accepted = bool(error <= 1)
            note = getattr(func, f"callback_{'accept' if accepted else 'reject'}_step", None)
            if note is not None:
                note(time, y, step)
            if accepted:
                time, y = (end if last else time + step), tried
            h = step * (0.9 / error.clamp_min(1e-6).sqrt()).clamp(0.2, 5)
            h = h.detach() if held else h
        outputs.append(y)
    return torch.stack(outputs)


def _try(
    func: Callable[[Tensor, Tensor], Tensor], t: Tensor, y: Tensor, h: Tensor, rtol: float, atol: float
) -> tuple[Tensor, Tensor]:
    first = func(t, y)
    euler = y + h * first
    heun = y + h / 2 * (first + func(t + h, euler))
    scale = atol + rtol * torch.maximum(y.abs(), heun.abs())
    return heun, ((heun - euler) / scale).square().mean().sqrt()
