"""What a solve ran under besides its inputs: autocast, which a replay restores, and random draws, which it refuses."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from steptape._errors import UnsupportedError


class Ambient:
    """The state of autocast and of the random number generators when a solve begins."""

    def __init__(self, device: torch.device):
        self._device = device
        self._enabled = torch.is_autocast_enabled(device.type)
        self._dtype = torch.get_autocast_dtype(device.type)
        self._cached = torch.is_autocast_cache_enabled()
        self._random = self._random_state()

    def without_autocast(self) -> torch.autocast:
        """A context for the solver's own arithmetic, which the host writes in operations that autocast leaves alone."""
        return torch.autocast(self._device.type, enabled=False)

    def around_func(self) -> AbstractContextManager[Any]:
        """A context, inside the other one, with the autocast state that func ran under."""
        if not self._enabled:
            return nullcontext()
        return torch.autocast(self._device.type, self._dtype, True, self._cached)

    def check_no_random_draws(self) -> None:
        """Raise if random numbers were drawn since the solve began: a replay would draw others."""
        if any(not torch.equal(a, b) for a, b in zip(self._random, self._random_state(), strict=True)):
            raise UnsupportedError(
                "odeint_adjoint(func, ..., adjoint_method='aca'): func drew random numbers (dropout?), and the replay "
                "would draw others. Draw them before the solve, call func.eval(), or use torchdiffeq.odeint."
            )

    def _random_state(self) -> list[torch.Tensor]:
        states = [torch.get_rng_state()]
        if self._device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self._device))
        return states
