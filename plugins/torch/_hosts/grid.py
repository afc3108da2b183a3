"""torchsde's loop over fixed steps, with the same times: the host adds and compares them as tensors, one by one.

That takes as long as a layer of a small network, and waits for a device four times a step.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steptape.compat import _torchsde as host
from steptape.compat._torch import plainly

_KINDS = {torch.float32: np.float32, torch.float64: np.float64}


def integrated(solver: Any, y0: Tensor, ts: Tensor, extra: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
    """What ``solver.integrate`` returns; by that itself, where it does something else than the host's solvers do."""
    own = type(solver).integrate is not host.integrate or solver.adaptive or type(solver.dt) is not float
    if own or len(ts) < 2 or ts.dtype not in _KINDS or not _is_as_host(ts.dtype, ts.device):
        return solver.integrate(y0, ts, extra)
    return _by_fixed_steps(solver, y0, ts, extra)


def _by_fixed_steps(solver: Any, y: Tensor, ts: Tensor, extra: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
    ends = ts.detach().cpu().numpy()
    times, steps_to = _grid(ends, _KINDS[ts.dtype](solver.dt))
    at = torch.from_numpy(times).to(ts.device).unbind()
    ys, before, n = [y], y, 0
    for out_t, count in zip(ts[1:].unbind(), steps_to, strict=True):
        while n < count:
            before, (y, extra), n = y, solver.step(at[n], at[n + 1], y, extra), n + 1
        ys.append(host.linear_interp(t0=at[n - 1], y0=before, t1=at[n], y1=y, t=out_t))
    return torch.stack(ys, dim=0), extra


def _grid(ends: Any, h: Any) -> tuple[Any, list[int]]:
    """The times between steps, and how many steps there are up to each of the ``ends`` after the first."""
    time, last = ends[0], ends[-1]
    times, counts = [time], []
    for end in ends[1:]:
        while time < end:
            time = min(time + h, last)
            times.append(time)
        counts.append(len(times) - 1)
    return np.array(times), counts


@functools.lru_cache
@plainly
def _is_as_host(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether both loops take the same steps, to the bit, on a trial."""
    y0, ts = torch.ones(1, dtype=dtype), torch.tensor([0.1, 0.3, 0.31, 0.312, 1.3], dtype=dtype, device=device)

    def steps_by(loop: Any) -> list[Tensor]:
        taken: list[Tensor] = []

        def step(t0: Tensor, t1: Tensor, y: Tensor, extra: Any) -> Any:
            taken.extend((t0, t1, y))
            return y + (t1 - t0).to(y.device) * y, extra

        ys, _ = loop(SimpleNamespace(dt=0.07, adaptive=False, step=step), y0.to(device), ts, ())
        return [*taken, *ys]

    found, expected = steps_by(_by_fixed_steps), steps_by(host.integrate)
    return len(found) == len(expected) and all(map(torch.equal, found, expected))
