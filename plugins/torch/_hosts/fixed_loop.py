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

# Called before each step with its number, its start, the state there and its size.
Before = Callable[[int, Tensor, Tensor, Tensor], None]


class FixedLoop:
    """Integrates as a ``solver`` does whose steps are known, where no graph is built.

    ``evaluate``: func for its steps, at times on neither side of a jump; ``told``: called back before each.
    """

    def __init__(self, solver: Any, evaluate: Callable[[Tensor, Tensor], Tensor], told: Callable[..., None]):
        self._solver, self._evaluate, self._told = solver, evaluate, told

    def integrate(self, t: Tensor) -> Tensor:
        """The solution at the times ``t``."""
        solver, y0 = self._solver, self._solver.y0
        if not is_as_host(solver.__class__, y0.dtype, t.dtype, y0.device):
            return solver.integrate(t)
        grid = solver.grid_constructor(solver.func, y0, t)
        assert grid[0] == t[0]
        assert grid[-1] == t[-1]
        solution, dtype = y0.new_empty(len(t), *y0.shape), y0.real.dtype
        rows = iter(solution)

        def evaluate(t: Tensor, y: Tensor, **side: Any) -> Tensor:
            return self._evaluate(t.to(dtype), y)

        def before(n: int, t: Tensor, y: Tensor, h: Tensor) -> None:
            self._told(t, y, h)

        integrated(solver, evaluate, y0, t, grid, before, lambda y: next(rows).copy_(y))
        return solution

    def integrate_until_event(self, t0: Tensor, event_fn: Any) -> tuple[Tensor, Tensor]:
        """The solver's own."""
        return self._solver.integrate_until_event(t0, event_fn)


def integrated(
    solver: Any, func: Any, y: Tensor, t: Tensor, grid: Tensor, before: Before, put: Callable[[Tensor], Any]
) -> Tensor:
    """``put`` each output of ``solver.integrate(t)`` by steps of ``func`` along a ``grid``; the state at its end."""
    step, ends, times = host.fixed_step(solver), t.tolist(), grid.tolist()
    outputs, points, sizes = t.unbind(), grid.unbind(), grid.diff().unbind()
    put(y)
    j = 1
    for n, size in enumerate(sizes):
        t0, t1, time = points[n], points[n + 1], times[n + 1]
        before(n, t0, y, size)
        y0, y = y, y + step(func, t0, size, t1, y)[0]
        while j < len(ends) and time >= ends[j]:
            if ends[j] == times[n]:
                put(y0)
            elif ends[j] == time:
                put(y)
            else:
                put(host.interpolated(solver, t0, y0, None, t1, y, None, outputs[j]))
            j += 1
    return y


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
    ys: list[Tensor] = []
    integrated(solver, plain(func, y0), y0, t, grid, lambda *_: None, ys.append)
    return torch.stack(ys)


def _equal(x: Tensor, y: Tensor) -> bool:
    return x.dtype == y.dtype and torch.equal(x, y)
