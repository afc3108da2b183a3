"""The hooks on a tensor, which torch runs whenever a gradient is taken in it, also on a part of its gradient."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from steptape.compat._unsupported import unsupported

# The table that ``Tensor.register_hook`` fills, and that torch reads anew each time.
if not hasattr(torch.Tensor, "_backward_hooks"):
    raise unsupported("torch", "Tensor._backward_hooks", "torch")


def has_hooks(x: torch.Tensor) -> bool:
    """Whether any hook is on a tensor."""
    return bool(x._backward_hooks)


_LOCK = threading.Lock()
_passing = threading.local()


class _Passed:
    """A hook that runs in all threads but those that pass the hooks by; ``threads``: how many do."""

    def __init__(self, hook: Callable[[Any], Any]):
        self.hook = hook
        self.threads = 0

    def __call__(self, gradient: Any) -> Any:
        return None if getattr(_passing, "depth", 0) else self.hook(gradient)


@contextmanager
def hooks_passed_by(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """A block in which this thread takes parts of the gradients in ``tensors``: their hooks are for the whole ones.

    Nor are the parts added to what ``retain_grad`` keeps.
    """
    tables = [x._backward_hooks for x in tensors if x._backward_hooks]
    retained = [(x, x.grad) for x in tensors if x.retains_grad and not x.is_leaf]
    _passing.depth = getattr(_passing, "depth", 0) + 1
    with _LOCK:
        passed = [_pass_by(table, key) for table in tables for key in table]
    try:
        yield
    finally:
        _passing.depth -= 1
        with _LOCK:
            for table, key, hook in passed:
                _give_back(table, key, hook)
        for x, gradient in retained:
            x.grad = gradient


def _pass_by(table: Any, key: int) -> tuple[Any, int, _Passed]:
    if not isinstance(table[key], _Passed):
        table[key] = _Passed(table[key])
    table[key].threads += 1
    return table, key, table[key]


def _give_back(table: Any, key: int, hook: _Passed) -> None:
    hook.threads -= 1
    # The handle of a hook may have removed it in the meantime.
    if not hook.threads and table.get(key) is hook:
        table[key] = hook.hook
