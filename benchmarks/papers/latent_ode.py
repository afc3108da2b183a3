"""A latent ODE on irregularly sampled series, as in the ACA paper's time-series task, on damped oscillators.

Each series is a damped cosine with its own phase, amplitude, frequency and damping; of 40 random times in [0, 5],
common to all, each is seen at a random half, with noise of 0.05. A GRU reads it backward, an ODE of dimension 6 carries
the latent state, a linear layer reads the series from it: dopri5 at rtol = atol = 1e-3, Adam at 0.01. The test MSE is
over 100 new series, at all times, against the truth without noise.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.envelope import Rows
from benchmarks.measurements import Cells
from benchmarks.papers.claims import Claim, means, over_ours
from benchmarks.papers.ways import ACA, ADJOINT, BACKPROP, SEMINORM, Counted, odeint, trained

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
    (_, seen, mask), (truth, *test) = data(times), data(times)

    def step(net: LatentODE, optimiser: torch.optim.Optimizer, number: int) -> None:
        optimiser.zero_grad()
        errors = (net(times, seen, mask) - seen) * mask
        (errors.square().sum() / mask.sum()).backward()
        optimiser.step()

    def build(way: str) -> LatentODE:
        return LatentODE(functools.partial(odeint, way, tolerances=(1e-3, 1e-3)))

    nets, seconds = trained(WAYS, build, functools.partial(torch.optim.Adam, lr=0.01), step, steps, seed)
    rows: Rows = []
    for way, net in nets.items():
        with torch.no_grad():
            error = float((net(times, *test) - truth).square().mean())
        row = {"seed": seed, "steps": steps, "way": way, "ms a step": 1e3 * seconds[way], **net.field.work()}
        rows.append({**row, "test MSE": error})
    return rows


def data(times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of ``SERIES`` of them, (series, times): the truth, what is measured, and where it is seen."""
    phase, size, pitch, damping = torch.rand(4, SERIES, 1)
    truth = (0.5 + size) * torch.exp(-(0.1 + 0.3 * damping) * times) * torch.cos((2 + pitch) * times + 6.3 * phase)
    return truth, truth + 0.05 * torch.randn_like(truth), (torch.rand_like(truth) < 0.5).float()


def claims(rows: Rows) -> list[Claim]:
    return [
        Claim(
            "no figure at hand; by the cost table ACA is reverse-accurate and the adjoint is not",
            means(rows, "test MSE", WAYS, "%.4f (%.4f to %.4f)"),
            "torchdiffeq's adjoint restarts from the stored solution at each of the 40 times, so its reverse solve "
            "has no time to drift: what the paper shows over a long interval does not arise.",
        ),
        Claim(
            "no figure at hand; by the cost table ACA's N_t·(m + 1) evaluations, the adjoint's (N_t + N_r)·m",
            f"time a step over ACA's: {over_ours(rows, 'ms a step', WAYS)}",
            "The same restarts: at each output time the adjoint starts a solve of its own, ACA none.",
        ),
    ]
