"""What belongs to a module while a solve runs: ``torch.func.functional_call`` lends it other tensors for that time.

The backward pass runs later, when the module has its own again; a replay needs those of the solve.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Belongings:
    """The parameters and buffers of a func, if it is a module, as they are now."""

    def __init__(self, func: Any):
        self._module = func if isinstance(func, torch.nn.Module) else torch.nn.Module()
        self._tensors = self._now()

    def _now(self) -> dict[str, Tensor]:
        return dict(chain(self._module.named_parameters(), self._module.named_buffers()))

    def given_back(self, run: Callable[[], T]) -> T:
        """``run()`` while the module has them again."""
        now = self._now()
        if all(now.get(name) is x for name, x in self._tensors.items()):
            return run()
        around = _Around(self._module, run)
        return torch.func.functional_call(around, {f"module.{name}": x for name, x in self._tensors.items()}, ())


class _Around(torch.nn.Module):
    """A call for ``functional_call`` to make, with a module whose tensors it is to replace."""

    def __init__(self, module: torch.nn.Module, run: Callable[[], Any]):
        super().__init__()
        self.module, self._run = module, run

    def forward(self) -> Any:
        return self._run()
