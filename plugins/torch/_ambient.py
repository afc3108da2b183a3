"""What a solve ran under besides its inputs: autocast, which a replay restores, and random draws, which it refuses."""

from __future__ import annotations

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

    def restored(self) -> torch.autocast:
        """A context with the solve's autocast state."""
        return torch.autocast(self._device.type, self._dtype, self._enabled, self._cached)

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
