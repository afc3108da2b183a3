"""The drift and the diffusion in a replayed step, evaluated once for the same arguments.

The host evaluates some of them again where it needs them again: a step of ``srk`` takes ten drifts and ten diffusions,
of which four are different ones, a step of ``log_ode`` the same diffusion twice. In a replay each goes into the graph
once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# The host's methods that do; for the others, looking would be time lost.
REPEATING = ("srk", "log_ode")


class _Value(NamedTuple):
    """A value of f or g at t and y; what else must be the same for it to serve again is in the key."""

    key: tuple[Any, ...]
    t: Tensor
    y: Tensor
    value: Tensor


class Once:
    """An SDE as the user has it, whose ``f`` and ``g`` are functions of their arguments alone."""

    def __init__(self, sde: Any):
        self._sde = sde
        self._known: list[_Value] = []
        for name in ("f", "g"):
            if hasattr(sde, name):
                setattr(self, name, functools.partial(self._value, name, getattr(sde, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sde, name)

    def forget(self) -> None:
        """Let go of the values, and of their graphs."""
        self._known.clear()

    def _value(self, name: str, func: Callable[[Tensor, Tensor], Tensor], t: Tensor, y: Tensor) -> Tensor:
        key = (name, y._version, t.dtype, torch.is_grad_enabled())
        for known in self._known:
            # The tensor y itself, not an equal one, for the graph to lead to it. A GPU is waited for to compare times.
            if known.y is y and known.key == key and torch.equal(known.t, t):
                return known.value
        value = func(t, y)
        self._known.append(_Value(key, t, y, value))
        return value
