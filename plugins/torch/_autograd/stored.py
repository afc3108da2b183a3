"""Plain calls that can be back-propagated through alone, as where func stores something for the loss: so they are."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

from steptape._errors import GradientError, UnsupportedError
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
    """``replay()``, or where that is refused, or func stores something, ``by_host()``, with all as it was before."""
    device = next((x.device for x in tensors_of(y0)), torch.device("cpu"))
    untouched, token = Untouched(Surroundings(device, func), func), _FUNC.set(func)
    try:
        return replay()
    except (StoredByFunc, GradientError, UnsupportedError):
        untouched.restore()
    finally:
        _FUNC.reset(token)
    return by_host()
