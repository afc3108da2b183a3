"""The solves that are measured: an MLP vector field, a size, a tolerance, the times of output."""

import dataclasses
import functools
import gc
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import meters, timing
from benchmarks.envelope import Row


class Field(torch.nn.Module):
    """dy/dt = ``slope(t, y)``; ``parts``: the parameters in it. Counts its evaluations and the host's steps.

    Not the evaluations that are compiled, which call it once for all of them.
    """

    def __init__(self, slope: Callable[[Tensor, Any], Any], *parts: torch.nn.Module | torch.nn.Parameter):
        super().__init__()
        self.slope, self.counts = slope, Counter[str]()
        for i, part in enumerate(parts):
            setattr(self, f"part{i}", part)

    def forward(self, t: Tensor, y: Any) -> Any:
        """The slope at ``y``, in its shape."""
        if not torch.compiler.is_compiling():
            self.counts["evaluations"] += 1
        return self.slope(t, y)

    def callback_accept_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        self.counts["accepted"] += 1

    def callback_reject_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        self.counts["rejected"] += 1


def perceptron(dim: int, width: int, turning: bool, dtype: torch.dtype) -> Field:
    """dy/dt = an MLP of y, (batch, dim), with two hidden tanh layers.

    ``turning``: weights with which the flow turns more than it contracts, so that continuous adjoints can follow it
    backward. Random weights contract, and there those adjoints lose the trajectory.
    """
    sizes = list(itertools.pairwise((dim, width, width, dim)))
    first, hidden, last = (torch.nn.Linear(*ends, dtype=dtype) for ends in sizes)
    net = torch.nn.Sequential(first, torch.nn.Tanh(), hidden, torch.nn.Tanh(), last)
    weights = _turning(dim, width) if turning else [1.5 * _random(m, n, n) for n, m in sizes]
    for i, (layer, weight) in enumerate(zip((first, hidden, last), weights, strict=True)):
        layer.weight.data.copy_(weight)
        layer.bias.data.copy_(0.1 * _random(len(weight), 1, 1, seed=i).squeeze(1))
    return Field(lambda t, y: net(y), net)


def _random(rows: int, columns: int, fan_in: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=random, dtype=torch.float64) / fan_in**0.5


def _turning(dim: int, width: int) -> list[Tensor]:
    # With S skew and M the first two layers, S Mᵀ M has imaginary eigenvalues: so has the Jacobian, but for the tanh.
    first, hidden = _random(width, dim, width), torch.linalg.qr(_random(width, width, 1))[0]
    skew = _random(dim, dim, 1) - _random(dim, dim, 1).T
    return [first, hidden, 2 * skew / torch.linalg.matrix_norm(skew, 2) @ (hidden @ first).T]


def loss_of(solution: Tensor) -> Tensor:
    """The mean square of the outputs after the first."""
    return solution[1:].square().mean()


@dataclasses.dataclass(frozen=True)
class Problem:
    """One solve: ``tolerance`` is both the relative and the absolute one. ``y0`` is (batch, dim), ``t`` (outputs,)."""

    field: Field
    y0: Tensor
    t: Tensor
    tolerance: float

    def inputs(self) -> tuple[Tensor, ...]:
        return (self.y0, *self.field.parameters())

    def solved(self, solve: Callable[..., Tensor], **settings: Any) -> Tensor:
        """The solution at ``t``, (outputs, batch, dim); by Dormand and Prince's method unless it is told otherwise."""
        how = {"rtol": self.tolerance, "atol": self.tolerance, "method": "dopri5"}
        return solve(self.field, self.y0, self.t, **(settings or how))

    def measured(
        self, solve: Callable[..., Tensor], loss: Callable[[Tensor], Tensor] = loss_of, **settings: Any
    ) -> tuple[Row, Tensor]:
        """A forward and a backward pass: seconds, bytes held between them, evaluations, steps; the gradient, flat."""
        counts, now = self.field.counts, functools.partial(timing.now, self.y0.device)
        counts.clear()
        gc.collect()
        before, start = meters.in_use(), now()
        value = loss(self.solved(solve, **settings))
        forward = now() - start
        gc.collect()
        held, evaluations, accepted = meters.in_use(), counts["evaluations"], counts["accepted"]
        start = now()
        gradient = torch.autograd.grad(value, self.inputs())
        backward = now() - start
        return {
            **{"seconds": forward + backward, "forward": forward, "backward": backward},
            "held": None if held is None or before is None or held < before else held - before,
            "evaluations": (evaluations, counts["evaluations"] - evaluations),
            "accepted": accepted,
        }, torch.cat([part.flatten() for part in gradient])


def relative_error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The Euclidean norm of the difference over that of ``exact``, over all tensors together."""
    one, other = (torch.cat([x.detach().double().flatten() for x in each]) for each in (found, exact))
    return float((one - other).norm() / other.norm())


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
    device: str = "cpu"

    def problem(self, batch: int | None = None, dtype: torch.dtype | None = None) -> Problem:
        """The problem, or the same with another batch or dtype."""
        dtype = dtype or self.dtype
        random = torch.Generator().manual_seed(1)
        y0 = torch.randn(batch or self.batch, self.dim, generator=random, dtype=torch.float64)
        # Rounded to the set-up's own dtype first, so that a reference in a wider one solves the same problem.
        y0 = y0.to(self.dtype).to(self.device, dtype).requires_grad_()
        field = perceptron(self.dim, self.width, self.turning, self.dtype).to(self.device, dtype)
        t = torch.linspace(0, self.span, self.outputs, dtype=dtype, device=self.device)
        return Problem(field, y0, t, self.tolerance)

    @property
    def parameters(self) -> int:
        return (self.dim + 1) * self.width + (self.width + 1) * self.width + (self.width + 1) * self.dim

    @property
    def text(self) -> str:
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
    Setup("tiny", 2, 32, 8, 1e-6, torch.float64, span=10),
    Setup("50,000 parameters", 2, 222, 1, 1e-6, torch.float64, span=6),
    *(dataclasses.replace(x, name=f"{x.name}, random weights", span=1.4 * x.span, turning=False) for x in _PLAIN),
)
_MEMORY = Setup("104 evaluations", 64, 256, 4096, 1e-5, torch.float32, span=5.2)
MEMORY = (
    _MEMORY,
    dataclasses.replace(_MEMORY, name="404 evaluations", span=23.3),
    dataclasses.replace(_MEMORY, name="104 evaluations, 100 outputs", outputs=100),
)
