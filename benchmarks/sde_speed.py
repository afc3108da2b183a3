"""Time and memory of the ways to a gradient through an SDE solve: a cell a method, a row a way.

Back-propagation through ``torchsde.sdeint``, the host's own adjoint with its default method, and the replay of the
steps, with all states, with their graphs, and with few states. The same solve for all: same Brownian path, same fixed
steps. ``held``: the bytes between the passes.
"""

import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torchsde
from torch import Tensor

from benchmarks import meters, timing
from benchmarks.envelope import Rows
from benchmarks.measurements import Cells, Scope
from benchmarks.ways import BACKPROP
from steptape.torch import sdeint_adjoint

STATE, WIDTH, CHANNELS = 8, 32, 2
STEPS, BATCH = 300, 512
# A minute for all rounds of a way; but five of them, unless the first one takes as long.
ROUNDS = timing.Rounds(11, 60.0, least=5, alone=60.0)
LEVY = {"srk": "space-time", "log_ode": "foster"}
SETUPS = (
    *(("ito", "diagonal", method) for method in ("euler", "milstein", "srk")),
    *(("stratonovich", "diagonal", method) for method in ("euler_heun", "heun", "midpoint", "milstein")),
    ("stratonovich", "general", "log_ode"),
    ("stratonovich", "diagonal", "reversible_heun"),
)


class Sde(torch.nn.Module):
    """Drift and diffusion by networks of one hidden layer."""

    def __init__(self, sde_type: str, noise_type: str):
        super().__init__()
        self.sde_type, self.noise_type = sde_type, noise_type
        self.channels = STATE if noise_type == "diagonal" else CHANNELS
        torch.manual_seed(0)
        self.drift = _network(STATE)
        entries = STATE if noise_type == "diagonal" else STATE * CHANNELS
        self.diffusion = torch.nn.Sequential(_network(entries), torch.nn.Sigmoid())

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self.drift(y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        out = self.diffusion(y)
        return out if self.noise_type == "diagonal" else out.view(len(y), STATE, CHANNELS)


def _network(out: int) -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(STATE, WIDTH), torch.nn.Tanh(), torch.nn.Linear(WIDTH, out))


_ACA = functools.partial(sdeint_adjoint, adjoint_method="aca")
WAYS: dict[str, Callable[..., Any]] = {
    BACKPROP: torchsde.sdeint,
    "host's adjoint": torchsde.sdeint_adjoint,
    "aca": _ACA,
    "aca, graphs": functools.partial(_ACA, adjoint_options={"memory": "graphs"}),
    "aca, 32 states": functools.partial(_ACA, adjoint_options={"checkpoints": 32}),
}


@dataclasses.dataclass
class Problem:
    """One solve: ``known_dt``: whether the Brownian object is told the step, which it is much faster for."""

    sde: Sde
    y0: Tensor
    method: str
    steps: int
    known_dt: bool

    def solve(self, way: str) -> Tensor:
        """The solution at the end, from a new Brownian object of the same path."""
        np.random.seed(0)
        dt, size, levy = 1 / self.steps, (len(self.y0), self.sde.channels), LEVY.get(self.method, "none")
        told = dt if self.known_dt else None
        bm = torchsde.BrownianInterval(0.0, 1.0, size=size, dt=told, levy_area_approximation=levy)
        return WAYS[way](self.sde, self.y0, [0.0, 1.0], bm=bm, method=self.method, dt=dt)[-1]


def cells(scope: Scope) -> Cells:
    """A cell a method, with the step known to the Brownian object and not; quick: 100 steps, one round."""
    warnings.filterwarnings("ignore")
    steps, rounds = (100, timing.Rounds(1)) if scope.quick else (STEPS, ROUNDS)
    found: Cells = {}
    for (sde_type, noise, method), known_dt in itertools.product(SETUPS, (False, True)):
        name = f"{sde_type} {method}, {noise}{', dt told to bm' * known_dt}"
        found[name] = functools.partial(_cell, sde_type, noise, method, known_dt, steps, rounds)
    return found


def _cell(sde_type: str, noise: str, method: str, known_dt: bool, steps: int, rounds: timing.Rounds) -> Rows:
    y0 = torch.randn(BATCH, STATE).requires_grad_()
    problem = Problem(Sde(sde_type, noise), y0, method, steps, known_dt)
    times = timing.race({way: functools.partial(_seconds, problem, way) for way in WAYS}, rounds)
    case = {"sde_type": sde_type, "method": method, "noise": noise, "known_dt": known_dt}
    return [{**case, "way": way, "seconds": timing.median(times[way]), "held": _held(problem, way)} for way in WAYS]


def _seconds(problem: Problem, way: str) -> float:
    inputs = problem.y0, *problem.sde.parameters()
    return timing.timed(lambda: torch.autograd.grad(problem.solve(way).square().sum(), inputs))


def _held(problem: Problem, way: str) -> float:
    with meters.Account() as account:
        y = problem.solve(way)
    del y
    return account.net
