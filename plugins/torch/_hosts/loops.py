"""Which loop takes a solver's steps: a lean one, where it is known to do what the host's does."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from steptape.compat import _torchdiffeq as host
from steptape.compat._torch import plainly
from steptape.torch._hosts.fixed_loop import FixedLoop
from steptape.torch._hosts.lean import ROUNDED, LeanLoop
from steptape.torch._hosts.recorder import AdaptiveRecorder, Recorder
from steptape.torch._hosts.trial import Told, does_the_same, start_of


def loop_of(solver: Any, *, lean: bool, note_interpolant: Callable[[Sequence[Tensor]], None] | None = None) -> Any:
    """What integrates as a new ``solver`` does: the solver itself, or a lean loop if that is wanted and the same.

    ``note_interpolant``: if given, called with that of each accepted step.
    """
    if lean and host.steps_as_known(solver) and _plain(solver) and _tried(solver):
        return LeanLoop(solver, solver.func, _evaluate_of(solver.func), note_interpolant)
    if lean and note_interpolant is None and host.fixed_step(solver) is not None and _takes_ends(solver):
        func = solver.func
        evaluate = func.evaluate_plain if isinstance(func, Recorder) else host.without_sides(func)
        return FixedLoop(solver, evaluate, func.callback_step)
    if note_interpolant is not None:
        host.call_after_steps(solver, note_interpolant)
    return solver


def _evaluate_of(func: Any) -> Callable[[Tensor, Tensor, bool], Tensor]:
    if isinstance(func, AdaptiveRecorder):
        return func.evaluate
    base = host.without_sides(func)
    return lambda t, y, last: base(t, y)


def _takes_ends(solver: Any) -> bool:
    """Whether the outputs of a solver on a fixed grid are made of plain tensors, and of the ends of its steps alone."""
    is_plain = type(solver.y0) in (Tensor, torch.nn.Parameter) and not torch.is_grad_enabled()
    return is_plain and solver.interp == "linear" and not solver.perturb


def _plain(solver: Any) -> bool:
    """Whether a solver computes with plain tensors, and with numbers for its settings."""
    names = ("min_step", "max_step", "safety", "ifactor", "dfactor", "max_num_steps")
    settings = [getattr(solver, name) for name in names]
    return (
        type(solver.y0) in (Tensor, torch.nn.Parameter)
        and solver.dtype in ROUNDED
        and not torch.is_grad_enabled()
        and all(x.ndim == 0 for x in settings)
        and not any(map(math.isnan, torch.stack(settings[:-1]).tolist()))
    )


def _tried(solver: Any) -> bool:
    return same_as_host(solver.__class__, solver.y0.dtype, solver.dtype, solver.y0.device)


@functools.lru_cache
@plainly
def same_as_host(solver_class: Any, of_state: torch.dtype, of_times: torch.dtype, device: torch.device) -> bool:
    """Whether the lean loop does on a small problem what the host's does, to the bit."""
    y0 = start_of(of_state, device)
    t = torch.tensor([0.125, 0.3, 0.6, 1.9], device=device, dtype=y0.real.dtype)
    return does_the_same(lambda lean: _try(solver_class, of_times, y0, t, lean), device)


def _try(solver_class: Any, dtype: torch.dtype, y0: Tensor, t: Tensor, lean: bool) -> list[Tensor]:
    """The solution of a problem with a rejected try, steps cut short and outputs between, and all that func is told."""
    func = Told()
    options = {"first_step": 1.5, "step_t": t.new_tensor([1.4]), "jump_t": t.new_tensor([1.1]), "dtype": dtype}
    tolerance = max(1e-4, 4 * torch.finfo(y0.dtype).eps)
    solver = solver_class(func=func, y0=y0, rtol=tolerance, atol=tolerance, norm=host.rms_norm, **options)
    loop = LeanLoop(solver, func, _evaluate_of(func)) if lean else solver
    return [loop.integrate(t), *func.told]
