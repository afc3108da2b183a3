"""The solves that are measured: an MLP vector field, a size, a tolerance, the times of output."""

from __future__ import annotations

import dataclasses
import itertools

import torch
from torch import Tensor


class Field(torch.nn.Module):
    """dy/dt = an MLP of y with two hidden tanh layers. Counts its evaluations, and the host's steps, in ``counts``.

    ``turning``: weights with which the flow turns more than it contracts, so that continuous adjoints can follow it
    backward. Random weights contract, and there those adjoints lose the trajectory.
    """

    def __init__(self, dim: int, width: int, turning: bool, dtype: torch.dtype):
        super().__init__()
        sizes = list(itertools.pairwise((dim, width, width, dim)))
        first, hidden, last = (torch.nn.Linear(*ends, dtype=dtype) for ends in sizes)
        self.net = torch.nn.Sequential(first, torch.nn.Tanh(), hidden, torch.nn.Tanh(), last)
        weights = _turning(dim, width) if turning else [1.5 * _random(m, n, n) for n, m in sizes]
        for i, (layer, weight) in enumerate(zip((first, hidden, last), weights, strict=True)):
            layer.weight.data.copy_(weight)
            layer.bias.data.copy_(0.1 * _random(len(weight), 1, 1, seed=i).squeeze(1))
        self.counts = {"evaluations": 0, "accepted": 0, "rejected": 0}

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope at ``y``, in its shape (batch, dim)."""
        self.counts["evaluations"] += 1
        return self.net(y)

    def callback_accept_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        """Called by torchdiffeq."""
        self.counts["accepted"] += 1

    def callback_reject_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        """Called by torchdiffeq."""
        self.counts["rejected"] += 1


def _random(rows: int, columns: int, fan_in: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=random, dtype=torch.float64) / fan_in**0.5


def _turning(dim: int, width: int) -> list[Tensor]:
    # With S skew and M the first two layers, S Mᵀ M has imaginary eigenvalues: so has the Jacobian, but for the tanh.
    first, hidden = _random(width, dim, width), torch.linalg.qr(_random(width, width, 1))[0]
    skew = _random(dim, dim, 1) - _random(dim, dim, 1).T
    return [first, hidden, 2 * skew / torch.linalg.matrix_norm(skew, 2) @ (hidden @ first).T]


@dataclasses.dataclass(frozen=True)
class Problem:
    """One solve: ``tolerance`` is both the relative and the absolute one. ``y0`` is (batch, dim), ``t`` (outputs,)."""

    field: Field
    y0: Tensor
    t: Tensor
    tolerance: float

    def inputs(self) -> tuple[Tensor, ...]:
        """The tensors to differentiate with respect to."""
        return (self.y0, *self.field.parameters())


def loss_of(solution: Tensor) -> Tensor:
    """The mean square of the outputs after the first."""
    return solution[1:].square().mean()


@dataclasses.dataclass(frozen=True)
class Setup:
    """A problem by its sizes. ``span``: from t = 0; ``outputs``: evenly spread, both ends included."""

    name: str
    dim: int
    width: int
    batch: int
    tolerance: float
    dtype: torch.dtype
    span: float
    outputs: int = 2
    turning: bool = True

    def problem(self, batch: int | None = None, dtype: torch.dtype | None = None) -> Problem:
        """The problem, or the same with another batch or dtype."""
        dtype = dtype or self.dtype
        random = torch.Generator().manual_seed(1)
        y0 = torch.randn(batch or self.batch, self.dim, generator=random, dtype=torch.float64)
        # Rounded to the set-up's own dtype first, so that a reference in a wider one solves the same problem.
        y0 = y0.to(self.dtype).to(dtype).requires_grad_()
        field = Field(self.dim, self.width, self.turning, self.dtype).to(dtype)
        return Problem(field, y0, torch.linspace(0, self.span, self.outputs, dtype=dtype), self.tolerance)

    @property
    def parameters(self) -> int:
        """How many numbers the field's parameters hold."""
        return (self.dim + 1) * self.width + (self.width + 1) * self.width + (self.width + 1) * self.dim

    @property
    def text(self) -> str:
        """The sizes in words."""
        return (
            f"dim {self.dim}, width {self.width} ({self.parameters} parameters), batch {self.batch}, tolerance "
            f"{self.tolerance:g}, {str(self.dtype).removeprefix('torch.')}, t in [0, {self.span:g}], "
            f"{self.outputs} output times"
        )


SMALL = Setup("small", 16, 64, 32, 1e-6, torch.float64, span=10)
_LARGE = Setup("large", 64, 256, 512, 1e-5, torch.float32, span=16)
_PLAIN = (SMALL, _LARGE, dataclasses.replace(SMALL, name="100 outputs", outputs=100))
SPEED = (
    *_PLAIN,
    Setup("50,000 parameters", 2, 222, 1, 1e-6, torch.float64, span=6),
    *(dataclasses.replace(x, name=f"{x.name}, random weights", span=1.4 * x.span, turning=False) for x in _PLAIN),
)
_MEMORY = Setup("104 evaluations", 64, 256, 4096, 1e-5, torch.float32, span=5.2)
MEMORY = (
    _MEMORY,
    dataclasses.replace(_MEMORY, name="404 evaluations", span=23.3),
    dataclasses.replace(_MEMORY, name="104 evaluations, 100 outputs", outputs=100),
)
