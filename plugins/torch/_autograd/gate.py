"""A gate at which gradients end: for a pass inside a pass, whose shares autograd adds up itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Gate:
    """Copies of tensors whose gradients end at them while the gate is closed, and flow on to the tensors afterwards.

    Asked for the gradients in a tensor x and in a parameter that x was computed from, ``torch.autograd.grad`` adds what
    the parameter gains through x to the latter. A backward pass that returns both would let autograd add it once more.
    """

    def __init__(self) -> None:
        self._open = True

    def through(self, x: Tensor) -> Tensor:
        """x, behind the gate."""
        return _Passage.apply(self, x)

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Close the gate for the block."""
        self._open = False
        try:
            yield
        finally:
            self._open = True

    def passed(self, cotangent: Tensor) -> Tensor | None:
        """What is left of a cotangent behind the gate."""
        return cotangent if self._open else None


class _Passage(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Gate, x: Tensor) -> Tensor:
        ctx.gate = gate
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, Tensor | None]:
        return None, ctx.gate.passed(cotangent)
