"""What func stores for the loss has a gradient by back-propagation alone: where that can be had, it is."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

from steptape.torch._autograd.graph import tensors_of
from steptape.torch._autograd.surroundings import Surroundings, Untouched

T = TypeVar("T")
# The func of a call that the host would be back-propagated through, and can be still.
_FUNC: ContextVar[Any] = ContextVar("func", default=None)


class StoredByFunc(Exception):
    """func stores what it computes, which has a gradient by back-propagation alone."""


def check_stored(func: Any, stored: bool) -> None:
    """Raise ``StoredByFunc`` if it does so in a call that the host can be back-propagated through."""
    if stored and func is _FUNC.get():
        raise StoredByFunc


def replayed_or(by_host: Callable[[], T], func: Any, y0: Any, replay: Callable[[], T]) -> T:
    """``replay()``, or where func stores something, ``by_host()``, with all that func has changed as it was."""
    device = next((x.device for x in tensors_of(y0)), torch.device("cpu"))
    untouched, token = Untouched(Surroundings(device, func), func), _FUNC.set(func)
    try:
        return replay()
    except StoredByFunc:
        untouched.restore()
    finally:
        _FUNC.reset(token)
    return by_host()
