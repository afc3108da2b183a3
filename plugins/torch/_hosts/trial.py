"""A trial of a loop of ours against the host's own: a small problem, and whether both do the same on it, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steptape.compat import _torchdiffeq as host


class Told:
    """A vector field that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Tensor] = []
        self._with_sides = host.with_sides(self.base_func)

    def base_func(self, t: Tensor, y: Tensor) -> Tensor:
        self.told += [t, y]
        return torch.cos(3 * t) * y - 0.5 * y * y

    def __call__(self, t: Tensor, y: Tensor, **side: Any) -> Tensor:
        return self._with_sides(t, y, **side)

    def _step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        self.told += [t, y, h]

    callback_step = callback_accept_step = callback_reject_step = _step


def start_of(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The state that a trial starts from."""
    return torch.linspace(0.3, 2.0, 15, device=device).view(3, 5).to(dtype)


def does_the_same(run: Callable[[bool], list[Tensor]], device: torch.device) -> bool:
    """Whether ``run(True)``, by a loop of ours, gives what ``run(False)`` does, by the host's."""
    with torch.autocast(device.type, enabled=False):
        try:
            hosts, ours = run(False), run(True)
        except Exception:
            # What one of them cannot do, the host is to say itself.
            return False
    return len(ours) == len(hosts) and all(
        x.dtype == y.dtype and x.shape == y.shape and torch.equal(x, y) for x, y in zip(hosts, ours, strict=True)
    )
