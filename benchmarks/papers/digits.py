"""The ACA paper's image classification, on scikit-learn's 8 × 8 digits: a small network with an ODE block.

The paper's solver settings: Heun and Euler's pair at rtol = atol = 1e-2, t in [0, 1]; SGD with momentum 0.9 and weight
decay 5e-4, its learning rate 0.1 cut to a tenth for the last third. A convolution to 8 channels, the block, a linear
head: 1297 images to train on, 500 to test, batches of 64. Then the trained networks are tested with other solvers.
"""

import functools
import math
from typing import Any

import torch
from torch import Tensor

from benchmarks.envelope import Row, Rows
from benchmarks.measurements import Cells
from benchmarks.papers.claims import Claim, means, median, over_ours, values
from benchmarks.papers.ways import ACA, ADJOINT, BACKPROP, SEARCH, Counted, odeint, trained

WAYS = (BACKPROP, SEARCH, ADJOINT, ACA)
TOLERANCES = (1e-2, 1e-2)
TRAIN, BATCH = 1297, 64
SWAPS = (("dopri5", 1e-3), ("bosh3", 1e-2), ("adaptive_heun", 1e-1), ("rk4", None), ("midpoint", None), ("euler", None))


class Classifier(torch.nn.Module):
    """Convolution, ODE block, head. ``way``, ``method`` and ``tolerances`` are the block's."""

    def __init__(self, way: str):
        super().__init__()
        self.stem, self.head = torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.Linear(512, 10)
        first, second = (torch.nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        block = torch.nn.Sequential(first, torch.nn.Tanh(), second, torch.nn.Tanh())
        self.block = Counted(lambda t, y: block(y), block)
        self.way, self.method, self.tolerances = way, "adaptive_heun", TOLERANCES

    def forward(self, images: Tensor) -> Tensor:
        """Scores, (batch, 10), of images (batch, 1, 8, 8)."""
        # By back-propagation it need not be a module, and is not counted when it is evaluated.
        slope: Any = self.block if self.training else self.block.slope
        times = torch.tensor([0.0, 1.0])
        features = odeint(self.way, slope, self.stem(images).relu(), times, self.tolerances, self.method)[-1]
        return self.head(features.flatten(1))


def run(quick: bool) -> Cells:
    """A cell for each seed, with all ways in it, so that their epochs interleave."""
    seeds, epochs = (1, 2) if quick else (3, 9)
    return {f"seed {seed}": functools.partial(_cell, seed, epochs) for seed in range(seeds)}


def _cell(seed: int, epochs: int) -> Rows:
    (images, labels), test = _data(seed)
    sgd = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=5e-4)

    def epoch(net: Classifier, optimiser: torch.optim.Optimizer, number: int) -> None:
        for group in optimiser.param_groups:
            group["lr"] = 0.1 if number < 2 * epochs / 3 else 0.01
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed * 1000 + number))
        for batch in order.split(BATCH):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(net(images[batch]), labels[batch]).backward()
            optimiser.step()

    nets, seconds = trained(WAYS, Classifier, sgd, epoch, epochs, seed)
    place = {"seed": seed, "epochs": epochs}
    return [{**place, "way": way, "seconds an epoch": seconds[way], **_row(net, test)} for way, net in nets.items()]


def _row(net: Classifier, test: tuple[Tensor, Tensor]) -> Row:
    row = {**net.block.work(), "test error, %": _test(net, test)}
    net.eval().way = BACKPROP
    for method, tolerance in SWAPS:
        # A fixed grid is that of the output times: one step over [0, 1].
        net.method, net.tolerances = method, (tolerance or 1e-2,) * 2
        row[f"{method}{f' {tolerance:g}' if tolerance else ', 1 step'}"] = _test(net, test)
    return row


@torch.no_grad()
def _test(net: Classifier, test: tuple[Tensor, Tensor]) -> float:
    return float((net(test[0]).argmax(1) != test[1]).double().mean() * 100)


def _data(seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = torch.tensor(digits.images / 8 - 1).float().unsqueeze(1), torch.tensor(digits.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    images, labels = images[order], labels[order]
    return (images[-TRAIN:], labels[-TRAIN:]), (images[:-TRAIN], labels[:-TRAIN])


def claims(rows: Rows) -> list[Claim]:
    ways = (ACA, ADJOINT, BACKPROP, SEARCH)

    def a_solve(what: str) -> float:
        return median(rows, what, way=BACKPROP) / (rows[0]["epochs"] * math.ceil(TRAIN / BATCH))

    def swapped(solver: str) -> str:
        found = {way: values(rows, solver, way=way) for way in ways}
        return ", ".join(f"{way} {sum(e) / len(e):.1f}%" for way, e in found.items())

    return [
        Claim(
            "test error about 5% with ACA, about 10% with adjoint and naive (CIFAR-10, ResNet-sized)",
            means(rows, "test error, %", ways, "%.1f%% (%.1f to %.1f)"),
            "Digits, and about 6,000 parameters: at this size the adjoint's error is too small to steer the "
            "training, and the ways differ by less than their seeds do.",
        ),
        Claim(
            "training takes 10.1 h with ACA, 17.4 h (1.7 times) with adjoint, 33.9 h (3.4 times) with naive",
            f"time an epoch over ACA's: {over_ours(rows, 'seconds an epoch', ways[1:])}",
            f"The search is short: {a_solve('evaluations'):.0f} evaluations a solve, {a_solve('pulled back'):.0f} of "
            "them pulled back, so its graph costs little and fits in memory; the paper's naive keeps more tries. The "
            "adjoint pays for its reverse solve in both.",
        ),
        Claim(
            "no figure at hand for testing with another solver than that of the training",
            f"test error with dopri5 at 1e-3: {swapped('dopri5 0.001')}; one step of Euler: {swapped('euler, 1 step')}",
            "Little changes by any way down to one step of rk4: the block is smooth enough for the solvers to agree.",
        ),
    ]
