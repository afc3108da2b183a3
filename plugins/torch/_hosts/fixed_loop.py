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
from steptape.torch._hosts.trial import Told, does_the_same, start_of

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
        solution = y0.new_empty(len(t), *y0.shape)
        rows = iter(solution)

        def before(n: int, t: Tensor, y: Tensor, h: Tensor) -> None:
            self._told(t, y, h)

        integrated(solver, cast(self._evaluate, y0), y0, t, grid, before, lambda y: _put(next(rows), y))
        return solution

    def integrate_until_event(self, t0: Tensor, event_fn: Any) -> tuple[Tensor, Tensor]:
        """The solver's own."""
        return self._solver.integrate_until_event(t0, event_fn)


def _put(row: Tensor, y: Tensor) -> None:
    # As the host's, which takes what has come to more dimensions.
    row.copy_(y if y.dim() == row.dim() else y.reshape(row.shape))


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
    return cast(host.without_sides(func), y0)


def cast(evaluate: Callable[[Tensor, Tensor], Tensor], y0: Tensor) -> Any:
    """What the host's steps call for states like ``y0``: times have their precision, and no side of a jump."""
    dtype = y0.real.dtype
    return lambda t, y, **side: evaluate(t.to(dtype), y)


@functools.lru_cache
@plainly
def is_as_host(solver_class: Any, of_state: torch.dtype, of_times: torch.dtype, device: torch.device) -> bool:
    """Whether both loops do the same on a small problem, to the bit."""
    y0 = start_of(of_state, device)
    t = torch.tensor([0.125, 0.3, 0.32, 0.6, 1.9], device=device, dtype=of_times)
    return does_the_same(lambda ours: _try(solver_class, y0, t, ours), device)


def _try(solver_class: Any, y0: Tensor, t: Tensor, ours: bool) -> list[Tensor]:
    """The solution of a problem with outputs at and between the ends of steps, and all that func is told."""
    func, ys = Told(), list[Tensor]()
    solver = solver_class(func=func, y0=y0, rtol=1e-3, atol=1e-3, step_size=0.2)
    if not ours:
        return [solver.integrate(t), *func.told]
    grid = solver.grid_constructor(func, y0, t)
    integrated(solver, plain(func, y0), y0, t, grid, lambda n, *step: func.callback_step(*step), ys.append)
    return [torch.stack(ys), *func.told]
