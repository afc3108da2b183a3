"""A latent ODE on irregularly sampled series, as in the ACA paper's time-series task, on damped oscillators.

Each series is a damped cosine with its own phase, amplitude, frequency and damping; of 40 random times in [0, 5],
common to all, each is seen at a random half, with noise of 0.05. A GRU reads it backward, an ODE of dimension 6 carries
the latent state, a linear layer reads the series from it: dopri5 at rtol = atol = 1e-3, Adam at 0.01. The test MSE is
over 100 new series, at all times, against the truth without noise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.envelope import Row, Rows
from benchmarks.measurements import Cells
from benchmarks.papers.ways import ACA, ADJOINT, BACKPROP, SEMINORM, Claim, Counted, median, odeint, values

WAYS = (BACKPROP, ADJOINT, SEMINORM, ACA)
LATENT, HIDDEN, SERIES, POINTS = 6, 32, 100, 40


class LatentODE(torch.nn.Module):
    """Encoder, ODE, reader."""

    def __init__(
        self, solve: Callable[..., Tensor], encoder: Callable[..., torch.nn.RNNBase] = torch.nn.GRU, code: int = HIDDEN
    ):
        super().__init__()
        self.encoder, self.start = encoder(3, code, batch_first=True), torch.nn.Linear(code, LATENT)
        slope = torch.nn.Sequential(torch.nn.Linear(LATENT, HIDDEN), torch.nn.Tanh(), torch.nn.Linear(HIDDEN, LATENT))
        self.field, self.reader = Counted(lambda t, z: slope(z), slope), torch.nn.Linear(LATENT, 1)
        self.solve = solve

    def forward(self, times: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
        """Series (batch, times) from what is seen of them, where ``mask`` is 1."""
        gaps = torch.cat([times[:1], times.diff()]).expand_as(seen)
        _, code = self.encoder(torch.stack([seen * mask, mask, gaps], -1).flip(1))
        path = self.solve(self.field, self.start(code[0]), times)
        return self.reader(path)[..., 0].T


def run(quick: bool) -> Cells:
    """A cell for each seed, with all ways in it, so that their steps interleave."""
    seeds, steps = (1, 8) if quick else (3, 120)
    return {f"seed {seed}": functools.partial(_cell, seed, steps) for seed in range(seeds)}


def _cell(seed: int, steps: int) -> Rows:
    torch.manual_seed(seed)
    times = torch.cat([torch.zeros(1), (5 * torch.rand(POINTS - 1)).sort().values])
    _, *train = data(times)
    truth, *test = data(times)
    nets, optimisers, seconds = {}, {}, {}
    for way in WAYS:
        torch.manual_seed(seed)
        nets[way], seconds[way] = LatentODE(functools.partial(odeint, way, tolerances=(1e-3, 1e-3))), list[float]()
        optimisers[way] = torch.optim.Adam(nets[way].parameters(), lr=0.01)
    for _ in range(steps):
        for way in WAYS:
            with timing.lap(seconds[way]):
                optimisers[way].zero_grad()
                errors = (nets[way](times, *train) - train[0]) * train[1]
                (errors.square().sum() / train[1].sum()).backward()
                optimisers[way].step()
    with torch.no_grad():
        tested = {way: float((net(times, *test) - truth).square().mean()) for way, net in nets.items()}
    return [{"seed": seed, "steps": steps, "way": way, **_row(nets[way], seconds[way], tested[way])} for way in WAYS]


def _row(net: LatentODE, seconds: Sequence[float], error: float) -> Row:
    time = 1e3 * sorted(seconds)[len(seconds) // 2]
    return {"ms a step": time, **net.field.work(), "test MSE": error}


def data(times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of ``SERIES`` of them, (series, times): the truth, what is measured, and where it is seen."""
    phase, size, pitch, damping = torch.rand(4, SERIES, 1)
    truth = (0.5 + size) * torch.exp(-(0.1 + 0.3 * damping) * times) * torch.cos((2 + pitch) * times + 6.3 * phase)
    return truth, truth + 0.05 * torch.randn_like(truth), (torch.rand_like(truth) < 0.5).float()


def claims(rows: Rows) -> list[Claim]:
    """Accuracy and time, as ratios to ACA's."""
    errors = {way: values(rows, "test MSE", way=way) for way in WAYS}
    times = {way: median(rows, "ms a step", way=way) for way in WAYS}
    found = ", ".join(f"{way} {sum(e) / len(e):.4f} ({min(e):.4f} to {max(e):.4f})" for way, e in errors.items())
    return [
        Claim(
            "no figure at hand; by the cost table ACA is reverse-accurate and the adjoint is not",
            f"mean (least to most) of {len(errors[ACA])} seeds: {found}",
            "torchdiffeq's adjoint restarts from the stored solution at each of the 40 times, so its reverse solve "
            "has no time to drift: what the paper shows over a long interval does not arise.",
        ),
        Claim(
            "no figure at hand; by the cost table ACA's N_t·(m + 1) evaluations, the adjoint's (N_t + N_r)·m",
            "time a step over ACA's: " + ", ".join(f"{way} {times[way] / times[ACA]:.2g}" for way in WAYS),
            "The same restarts: at each output time the adjoint starts a solve of its own, ACA none.",
        ),
    ]
