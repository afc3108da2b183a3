"""torchdiffeq's adaptive Runge–Kutta loop, without what no one asked for.

The state goes through the host's operations in the host's order, and func is evaluated at the host's times: the
solution is the host's to the bit. Left out are the interpolants of steps that no one looks into, checks on tensors, and
arithmetic on times in tensors; on a device there is one wait a try.
"""

from __future__ import annotations

import bisect
import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steptape.compat import _torchdiffeq as host
from steptape.torch._hosts.stages import Slopes, Stages

# What arithmetic on times in a dtype makes of a Python float. Two roundings of an operation on float32s are one.
ROUNDED: dict[torch.dtype, Callable[[float], float]] = {
    torch.float64: float,
    torch.float32: lambda x: ctypes.c_float(x).value,
}


class Step(NamedTuple):
    """An accepted step: where it starts and ends, its size, y at both, and ``all`` slopes k_i, (*y.shape, s + 1)."""

    t0: Tensor
    t1: Tensor
    h: Tensor
    y0: Tensor
    y1: Tensor
    slopes: Slopes


class LeanLoop:
    """What ``solver.integrate`` and ``solver.integrate_until_event`` do, for a new solver of the host's.

    ``func``: the solver's, whose callbacks are called. ``evaluate(t, y, last)``: func at a time that is on its side of
    a jump; ``last``: whether the next step may start from what it returns. ``note_interpolant``: if given, called with
    that of each step.
    """

    def __init__(
        self,
        solver: Any,
        func: Any,
        evaluate: Callable[[Tensor, Tensor, bool], Tensor],
        note_interpolant: Callable[[Sequence[Tensor]], None] | None = None,
    ):
        self._solver, self._func, self._evaluate, self._note = solver, func, evaluate, note_interpolant
        self._rounded = ROUNDED[solver.dtype]
        names = ("min_step", "max_step", "safety", "ifactor", "dfactor")
        limits = torch.stack([getattr(solver, name) for name in names]).tolist()
        self._min_step, self._max_step, self._safety, self._ifactor, self._dfactor = limits
        self._max_num_steps = int(solver.max_num_steps)
        self._root = torch.tensor(solver.order, dtype=solver.dtype, device=solver.y0.device).reciprocal()
        real = solver.norm is host.rms_norm and not solver.y0.is_complex()
        self._norm = _real_rms_norm if real else lambda x: solver.norm(x).abs()

    def integrate(self, t: Tensor) -> Tensor:
        solver, y0 = self._solver, self._solver.y0
        solution = torch.empty(len(t), *y0.shape, dtype=y0.dtype, device=y0.device)
        solution[0] = y0
        t = t.to(solver.dtype)
        solver._before_integrate(t)
        if not self._begin():
            for i in range(1, len(t)):
                solution[i] = solver._advance(t[i])
            return solution
        times, i = t.tolist(), 1
        while i < len(times):
            self._advance(functools.partial(self._is_before, times[i]))
            inside = slice(i, max(bisect.bisect_right(times, self._t, lo=i), i + 1))
            solution[inside] = self._interpolated(t[inside])
            i = inside.stop
        return solution

    def integrate_until_event(self, t0: Tensor, event_fn: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        solver = self._solver
        t0 = t0.to(solver.y0.device, solver.dtype)
        solver._before_integrate(t0.reshape(-1))
        at_event = self._advance_until_event if self._begin() else solver._advance_until_event
        end, y = at_event(event_fn)
        return end, torch.stack([solver.y0, y], dim=0)

    def _advance_until_event(self, event_fn: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        if event_fn(self._time, self._y) == 0:
            return self._time, self._y
        sign = torch.sign(event_fn(self._time, self._y))
        self._advance(lambda: bool(sign == torch.sign(event_fn(self._time, self._y))))
        t0, t1, coefficients = self._interpolant()

        def inside(t: Tensor) -> Tensor:
            return host.interp_evaluate(coefficients, t0, t1, t)

        return host.find_event(inside, sign, t0, t1, event_fn, self._solver.atol)

    def _begin(self) -> bool:
        """Take over from the solver at its start; not where slopes are of another shape than the state."""
        y, slope, _, t, h, _ = self._solver.rk_state
        if slope.shape != y.shape:
            return False
        self._time, self._t, self._y, self._h = t, t.item(), y, h.item()
        self._step: Step | None = None
        self._steps_at, self._jumps_at = (
            _Points(x.tolist(), self._t) for x in (self._solver.step_t, self._solver.jump_t)
        )
        self._stages = Stages(self._solver.tableau, y)
        self._stages.begin(slope)
        self._magnitude, self._finite = y.abs(), bool(torch.isfinite(y).all())
        return True

    def _is_before(self, t: float) -> bool:
        return t > self._t

    def _advance(self, goes_on: Callable[[], bool]) -> None:
        tries = 0
        while goes_on():
            if tries >= self._max_num_steps:
                raise AssertionError(f"max_num_steps exceeded ({tries}>={self._max_num_steps})")
            self._try()
            tries += 1

    def _try(self) -> None:
        """Take a step, keep it if its error is small, and choose the size of the next one."""
        t0, y0, h, rounded = self._time, self._y, self._h, self._rounded
        h = self._clamped(h if math.isfinite(h) else self._min_step)
        size = self._scalar(h)
        self._func.callback_step(t0, y0, size)
        t1 = rounded(self._t + h)
        if not t1 > self._t:
            raise AssertionError(f"underflow in dt {h}")
        if not self._finite:
            raise AssertionError(f"non-finite values in state `y`: {y0}")
        cut_by = None
        for points in (self._steps_at, self._jumps_at):
            if points and self._t < points.next < rounded(self._t + h):
                cut_by, t1 = points, points.next
                h = rounded(t1 - self._t)
        if cut_by is not None:
            size = self._scalar(h)
        end = self._scalar(t1)
        y1, error = self._stages.taken(self._evaluate, y0, t0, size, end)
        magnitude = y1.abs()
        ratio, root, finite = self._judged(error, torch.max(self._magnitude, magnitude))
        if h <= self._min_step or (ratio <= 1 and not h > self._max_step):
            self._func.callback_accept_step(t0, y0, size)
            self._step = Step(t0, end, size, y0, y1, self._stages.slopes)
            self._coefficients: Sequence[Tensor] | None = None
            self._time, self._t, self._y, self._magnitude = end, t1, y1, magnitude
            self._finite = finite or bool(torch.isfinite(y1).all())
            self._stages.hand_on(self._slope_after_jump() if cut_by is self._jumps_at else None)
            if cut_by is not None:
                cut_by.pass_by()
            if self._note is not None:
                self._note(self._interpolant()[2])
        else:
            self._func.callback_reject_step(t0, y0, size)
        self._h = self._next_size(h, ratio, root)

    def _judged(self, error: Tensor, magnitude: Tensor) -> tuple[float, float, bool]:
        """The ratio of the error to the tolerance, its root, and whether the state is known to be finite."""
        solver = self._solver
        ratio = self._norm(error / (solver.atol + solver.rtol * magnitude))
        root = ratio.to(solver.dtype) ** self._root
        numbers = (ratio, root, magnitude.sum())
        if ratio.is_cpu:
            ratio, root, total = (x.item() for x in numbers)
        else:
            ratio, root, total = torch.stack([x.double() for x in numbers]).tolist()
        return ratio, root, math.isfinite(total)

    def _next_size(self, h: float, ratio: float, root: float) -> float:
        # Of min and max, the first argument is the one that may be NaN, and passes then.
        if ratio == 0:
            return self._clamped(self._rounded(h * self._ifactor))
        factor = self._rounded(self._safety / root) if root else math.inf
        factor = min(max(factor, 1.0 if ratio < 1 else self._dfactor), self._ifactor)
        return self._clamped(self._rounded(h * factor))

    def _clamped(self, h: float) -> float:
        return min(max(h, self._min_step), self._max_step)

    def _scalar(self, x: float) -> Tensor:
        return torch.full((), x, dtype=self._solver.dtype, device=self._solver.y0.device)

    def _slope_after_jump(self) -> Tensor:
        t = self._time.to(self._y.real.dtype)
        return self._evaluate(torch.nextafter(t, t + 1), self._y, True)

    def _interpolant(self) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        """The ends of the last accepted step, and y there by powers of the relative place."""
        if self._step is None:
            return self._time, self._time, [self._y] * 5
        t0, t1, h, y0, y1, slopes = self._step
        if self._coefficients is None:
            self._coefficients = self._solver._interp_fit(y0, y1, slopes.all, h)
        return t0, t1, self._coefficients

    def _interpolated(self, t: Tensor) -> Tensor:
        """y at each of some times in the last accepted step."""
        t0, t1, (y, *coefficients) = self._interpolant()
        x = ((t - t0) / (t1 - t0)).to(y.dtype).view(-1, *[1] * y.ndim)
        power = x
        y = y + power * coefficients[0]
        for coefficient in coefficients[1:]:
            power = power * x
            y = y + power * coefficient
        return y


class _Points:
    """The times at which steps are cut short; ``next``: the one looked out for."""

    def __init__(self, times: list[float], start: float):
        self._times = times
        self._index = min(bisect.bisect(times, start), len(times) - 1)

    def __bool__(self) -> bool:
        return bool(self._times)

    @property
    def next(self) -> float:
        return self._times[self._index]

    def pass_by(self) -> None:
        self._index = min(self._index + 1, len(self._times) - 1)


def _real_rms_norm(x: Tensor) -> Tensor:
    return x.pow(2).mean().sqrt()
