"""SDEs for the tests: one for each kind of calculus and noise, and what a solve of one gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torchsde
from torch import Tensor

BATCH, STATE = 4, 3
NOISES = ("diagonal", "additive", "scalar", "general")
CHANNELS = {"diagonal": STATE, "additive": 2, "scalar": 1, "general": 2}
METHODS = {
    "ito": ("euler", "milstein", "srk"),
    "stratonovich": ("euler_heun", "heun", "midpoint", "milstein", "log_ode", "reversible_heun"),
}
LEVY = {"srk": "space-time", "log_ode": "foster"}
TIMES = (0.0, 0.23, 0.31, 0.33, 0.8, 1.0)  # Two in one step of 0.05, and none but the last where a step ends.


class Case(NamedTuple):
    """A method on an SDE of a kind of calculus and noise."""

    sde_type: str
    noise_type: str
    method: str
    options: dict[str, Any]


def cases() -> Iterator[Case]:
    """Every combination the host has."""
    for sde_type, methods in METHODS.items():
        for method in methods:
            for noise_type in NOISES:
                if noise_type == "general" and method in ("milstein", "srk"):
                    continue
                for grad_free in (False, True) if method == "milstein" else (None,):
                    options = {} if grad_free is None else {"grad_free": grad_free}
                    yield Case(sde_type, noise_type, method, options)


class Sde(torch.nn.Module):
    """Small networks for drift and diffusion, both in t and y, and for a prior drift that makes them a posterior."""

    def __init__(self, sde_type: str, noise_type: str, dtype: torch.dtype = torch.float64, dropout: float = 0.0):
        super().__init__()
        self.sde_type, self.noise_type = sde_type, noise_type
        self.channels = CHANNELS[noise_type]
        width = STATE if noise_type == "diagonal" else STATE * self.channels
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.drift, self.diffusion, self.prior = (
                torch.nn.Sequential(
                    torch.nn.Linear(STATE + 1, 6), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(6, out)
                ).to(dtype)
                for out in (STATE, width, STATE)
            )
        self.evaluations = 0

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        self.evaluations += 1
        return self.drift(_with_time(t, y))

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        inputs = _with_time(t, torch.zeros_like(y) if self.noise_type == "additive" else y)
        out = torch.sigmoid(self.diffusion(inputs)) + 0.1
        return out if self.noise_type == "diagonal" else out.view(len(y), STATE, self.channels)

    def h(self, t: Tensor, y: Tensor) -> Tensor:
        return self.prior(_with_time(t, y))


def _with_time(t: Tensor, y: Tensor) -> Tensor:
    return torch.cat([y, t.to(y.dtype).expand(len(y), 1)], dim=1)


def initial(dtype: torch.dtype = torch.float64) -> Tensor:
    """An initial state that requires a gradient."""
    return torch.linspace(-1, 1, BATCH * STATE, dtype=dtype).view(BATCH, STATE).requires_grad_()


def interval(noise_type: str, levy: str = "none", dtype: torch.dtype = torch.float64, **kwargs: Any) -> Any:
    """A Brownian path, the same one each time."""
    size = (BATCH, CHANNELS[noise_type])
    settings = {"entropy": 5, "dtype": dtype, "levy_area_approximation": levy, **kwargs}
    return torchsde.BrownianInterval(0.0, 1.0, size=size, **settings)


class Solved(NamedTuple):
    """All that a solve returned, flat, and the gradients of a loss of it in (y0, *parameters)."""

    outputs: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]


def differentiate(sdeint: Callable[..., Any], sde: Any, y0: Tensor, ts: Any = TIMES, **kwargs: Any) -> Solved:
    """Solve and back-propagate a loss of everything returned."""
    outputs = _flat(sdeint(sde, y0, list(ts) if isinstance(ts, tuple) else ts, **kwargs))
    inputs = (y0, *sde.parameters())
    return Solved(outputs, torch.autograd.grad(loss(outputs), inputs, allow_unused=True, materialize_grads=True))


def loss(outputs: Sequence[Tensor]) -> Tensor:
    """A number that depends on every entry of all outputs, each in its own way."""
    flat = torch.cat([x.reshape(-1) for x in outputs])
    return ((flat + 0.3) * torch.linspace(1, 2, len(flat)).to(flat)).square().sum()


def _flat(returned: Any) -> tuple[Tensor, ...]:
    if isinstance(returned, Tensor):
        return (returned,)
    return tuple(x for part in returned for x in _flat(part))
