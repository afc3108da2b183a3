"""Time and memory of three ways to a gradient through an SDE solve: ``python -m benchmarks.sde_speed``.

Back-propagation through ``torchsde.sdeint``, the host's own adjoint with its default method, and the replay of the
steps, with all states and with few of them. The same solve for all: same Brownian path, same fixed steps. A rerun into
the same folder skips what is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import gc
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchsde
from torch import Tensor

from benchmarks.measure import Account, machine
from benchmarks.turns import medians
from steptape.torch import sdeint_adjoint

STATE, WIDTH, CHANNELS = 8, 32, 2
AFFORDABLE, LEAST = 60.0, 5  # seconds for all rounds of a way; but so many rounds, unless the first one takes as long
LEVY = {"srk": "space-time", "log_ode": "foster"}
SETUPS = (
    ("ito", "diagonal", "euler"),
    ("ito", "diagonal", "milstein"),
    ("ito", "diagonal", "srk"),
    ("stratonovich", "diagonal", "euler_heun"),
    ("stratonovich", "diagonal", "heun"),
    ("stratonovich", "diagonal", "midpoint"),
    ("stratonovich", "diagonal", "milstein"),
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
        self.diffusion = torch.nn.Sequential(
            _network(STATE if noise_type == "diagonal" else STATE * CHANNELS), torch.nn.Sigmoid()
        )

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """The drift."""
        return self.drift(y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """The diffusion."""
        out = self.diffusion(y)
        return out if self.noise_type == "diagonal" else out.view(len(y), STATE, CHANNELS)


def _network(out: int) -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(STATE, WIDTH), torch.nn.Tanh(), torch.nn.Linear(WIDTH, out))


WAYS: dict[str, Callable[..., Any]] = {
    "back-propagation": torchsde.sdeint,
    "host's adjoint": torchsde.sdeint_adjoint,
    "aca": functools.partial(sdeint_adjoint, adjoint_method="aca"),
    "aca, 32 states": functools.partial(sdeint_adjoint, adjoint_method="aca", adjoint_options={"checkpoints": 32}),
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
        dt = 1 / self.steps
        bm = torchsde.BrownianInterval(
            0.0,
            1.0,
            size=(len(self.y0), self.sde.channels),
            dt=dt if self.known_dt else None,
            levy_area_approximation=LEVY.get(self.method, "none"),
        )
        return WAYS[way](self.sde, self.y0, [0.0, 1.0], bm=bm, method=self.method, dt=dt)[-1]

    def gradient(self, y: Tensor) -> tuple[Tensor, ...]:
        """Of a loss at the end."""
        return torch.autograd.grad(y.square().sum(), (self.y0, *self.sde.parameters()))


def measured(problem: Problem, rounds: int) -> dict[str, tuple[float, float]]:
    """By way: the median processor time of forward and backward, in interleaved rounds, and the bytes held between.

    One round more warms up. A slow way takes part in fewer rounds; one that takes a minute, in that one alone.
    """
    first = {way: _seconds(problem, way, "warm-up") for way in WAYS}
    fast = {way: seconds for way, seconds in first.items() if seconds < AFFORDABLE}
    again = {way: lambda n, way=way: _seconds(problem, way, f"round {n + 1} of {rounds}") for way in fast}
    times = first | medians(again, fast, rounds, AFFORDABLE, LEAST)
    return {way: (seconds, _held(problem, way)) for way, seconds in times.items()}


def _seconds(problem: Problem, way: str, which: str) -> float:
    gc.collect()
    start = time.process_time()
    problem.gradient(problem.solve(way))
    found = time.process_time() - start
    _note(f"  {which}, {way}: {found:.2f} s")
    return found


def _held(problem: Problem, way: str) -> float:
    with Account() as account:
        y = problem.solve(way)
    del y
    return account.net


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table and write its figures to a folder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sde_speed", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="100 steps, one round")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--methods", nargs="*", help="default: all")
    parser.add_argument("--out", type=Path, default=Path("benchmark-report"), metavar="DIR", help="folder of results")
    options = parser.parse_args(arguments)
    if options.quick:
        options.steps, options.rounds = 100, 1
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    command = " ".join(["python -m benchmarks.sde_speed", *(sys.argv[1:] if arguments is None else arguments)])
    found: dict[str, Any] = {"command": command, "machine": machine() | {"torchsde": torchsde.__version__}}
    extent = {"steps": options.steps, "batch": options.batch, "state": STATE, "rounds": options.rounds}
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "sde_speed.json"
    found |= {**extent, "rows": [], **_there(file, extent)}
    print(f"{options.steps} steps, batch {options.batch}, state {STATE}, median of {options.rounds}, one thread")
    print("| method | noise | dt known to bm | " + " | ".join(f"{way}: s, × bp, MiB" for way in WAYS) + " |")
    print("|---" * (3 + len(WAYS)) + "|")
    for sde_type, noise_type, method in SETUPS:
        if options.methods and method not in options.methods:
            continue
        for known_dt in (False, True):
            case = {"sde_type": sde_type, "method": method, "noise": noise_type, "known_dt": known_dt}
            if any(case.items() <= row.items() for row in found["rows"]):
                continue
            _note(f"{sde_type} {method}, dt {'known' if known_dt else 'not known'} to bm")
            y0 = torch.randn(options.batch, STATE).requires_grad_()
            problem = Problem(Sde(sde_type, noise_type), y0, method, options.steps, known_dt)
            ways = measured(problem, options.rounds)
            base = ways["back-propagation"][0]
            cells = " | ".join(f"{s:.2f}, {s / base:.2f}, {held / 2**20:.1f}" for s, held in ways.values())
            print(f"| {sde_type} {method} | {noise_type} | {known_dt} | {cells} |", flush=True)
            figures = {way: {"seconds": s, "held": held} for way, (s, held) in ways.items()}
            found["rows"].append({**case, "ways": figures})
            file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def _there(file: Path, extent: dict[str, Any]) -> dict[str, Any]:
    """The rows of a file and the command that began it, if they were measured to the same extent."""
    found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {name: found[name] for name in ("command", "rows")} if extent.items() <= found.items() else {}


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
