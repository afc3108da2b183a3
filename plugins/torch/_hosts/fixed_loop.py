"""torchdiffeq's loop over a fixed grid, with the same solution: the host compares times as tensors, two by two.

That takes as long as a layer of a small network, and so does writing each output into a tensor, in whose graph every
write is one to all of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steptape.compat import _torchdiffeq as host
from steptape.compat._torch import plainly

# Called before each step with its number, its start and the state there.
Before = Callable[[int, Tensor, Tensor, Tensor], None]


def integrated(solver: Any, func: Any, y: Tensor, t: Tensor, grid: Tensor, before: Before) -> list[Tensor]:
    """The outputs of ``solver.integrate(t)`` by its steps of ``func`` along a ``grid``, and the state at its end."""
    step, ends, times = host.fixed_step(solver), t.tolist(), grid.tolist()
    outputs, points, sizes = t.unbind(), grid.unbind(), grid.diff().unbind()
    # Views have their place in the order in which a backward pass adds up, which is that of the host's writes.
    ys, j = [y.view_as(y)], 1
    for n, size in enumerate(sizes):
        t0, t1, time = points[n], points[n + 1], times[n + 1]
        before(n, t0, y, size)
        y0, y = y, y + step(func, t0, size, t1, y)[0]
        while j < len(ends) and time >= ends[j]:
            if ends[j] == times[n]:
                ys.append(y0.view_as(y0))
            elif ends[j] == time:
                ys.append(y.view_as(y))
            else:
                ys.append(host.interpolated(solver, t0, y0, None, t1, y, None, outputs[j]))
            j += 1
    return [*ys, y]


def plain(func: Any, y0: Tensor) -> Any:
    """A func in the host's normal form at times on neither side of a jump, for states like ``y0``."""
    base, dtype = host.without_sides(func), y0.real.dtype
    return lambda t, y, **side: base(t.to(dtype), y)


@functools.lru_cache
@plainly
def is_as_host(solver_class: Any, of_state: torch.dtype, of_times: torch.dtype, device: torch.device) -> bool:
    """Whether both loops do the same on a small problem, to the bit."""
    told: list[list[Tensor]] = [[], []]
    y0 = torch.linspace(0.3, 2.0, 15, device=device).view(3, 5).to(of_state)
    t = torch.tensor([0.125, 0.3, 0.32, 0.6, 1.9], device=device, dtype=of_times)
    try:
        with torch.autocast(device.type, enabled=False):
            for ours in (False, True):
                told[ours].append(_trial(solver_class, y0, t, told[ours], ours))
    except Exception:
        # What one of them cannot do, the host is to say itself.
        return False
    return len(told[0]) == len(told[1]) and all(map(_equal, *told))


def _trial(solver_class: Any, y0: Tensor, t: Tensor, told: list[Tensor], ours: bool) -> Tensor:
    def base(t: Tensor, y: Tensor) -> Tensor:
        told.extend((t, y))
        return torch.cos(3 * t) * y - 0.5 * y * y

    func = host.with_callbacks(host.with_sides(base))
    func.callback_step = lambda t, y, h: None
    solver = solver_class(func=func, y0=y0, rtol=1e-3, atol=1e-3, step_size=0.2)
    if not ours:
        return solver.integrate(t)
    grid = solver.grid_constructor(func, y0, t)
    return torch.stack(integrated(solver, plain(func, y0), y0, t, grid, lambda *_: None)[:-1])


def _equal(x: Tensor, y: Tensor) -> bool:
    return x.dtype == y.dtype and torch.equal(x, y)
