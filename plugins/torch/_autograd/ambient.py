"""What a solve ran under besides its inputs: autocast, which a replay restores around func alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


class Ambient:
    """The state of autocast when a solve begins."""

    def __init__(self, device: torch.device):
        self._device = device
        self._enabled = torch.is_autocast_enabled(device.type)
        self._dtype = torch.get_autocast_dtype(device.type)
        self._cached = torch.is_autocast_cache_enabled()

    def without_autocast(self) -> torch.autocast:
        """A context for the solver's own arithmetic, which the host writes in operations that autocast leaves alone."""
        return torch.autocast(self._device.type, enabled=False)

    def around_func(self) -> AbstractContextManager[Any]:
        """A context, inside the other one, with the autocast state that func ran under."""
        if not self._enabled:
            return nullcontext()
        return torch.autocast(self._device.type, self._dtype, True, self._cached)
