"""Plain tensors and arrays that func refers to, which others may write to between the passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
# So many numbers in them, and so many of them, are kept between the passes.
SMALL = 2**16
_FEW = 64


class Constants:
    """Some ``tensors`` that no gradient goes to, and ``arrays`` of NumPy's, as they are now: the smallest ones."""

    def __init__(self, tensors: Iterable[Tensor], arrays: Iterable[Any]):
        self._tensors = [(x, x._version, x.detach().clone()) for x in _smallest(tensors, Tensor.numel)]
        self._arrays = [(x, x.copy()) for x in _smallest(arrays, lambda x: x.size)]

    def restore(self) -> None:
        """Have those that were written to hold what they did, without a history."""
        for x, n, then in self._tensors:
            if is_written_to(x, n, then):
                forget(x)
                x.data.copy_(then)
        for x, then in self._arrays:
            if (x != then).any():
                x[...] = then

    @contextmanager
    def given_back(self) -> Iterator[None]:
        """A block in which those that were written to have the numbers they had, as no change that autograd is to see.

        After it they have those again that they have now.
        """
        tensors = [(x.data, x.detach().clone(), then) for x, n, then in self._tensors if is_written_to(x, n, then)]
        arrays = [(x, x.copy(), then) for x, then in self._arrays if (x != then).any()]
        try:
            for x, _, then in tensors:
                x.copy_(then)
            for x, _, then in arrays:
                x[...] = then
            yield
        finally:
            for x, now, _ in tensors:
                x.copy_(now)
            for x, now, _ in arrays:
                x[...] = now


def forget(x: Tensor) -> None:
    """Have a tensor no history, if it has come to one by being written to."""
    if x.grad_fn is not None and not x._is_view():
        x.detach_()


def _smallest(xs: Iterable[T], size: Callable[[T], int]) -> list[T]:
    """As many as are to be kept."""
    ordered = sorted(xs, key=size)[:_FEW]
    totals = accumulate(map(size, ordered))
    return [x for x, total in zip(ordered, totals, strict=True) if total <= SMALL]


def is_written_to(x: Tensor, version: int, then: Tensor) -> bool:
    """Whether a tensor has been written to since it had a version and values; out of autograd's sight, on the CPU."""
    return x._version != version or (x.is_cpu and not torch.equal(x, then))


def is_plain(x: Tensor) -> bool:
    """Whether a tensor has numbers of its own that can be kept."""
    plain = type(x) in (Tensor, torch.nn.Parameter) and x.layout is torch.strided
    return plain and not (x.is_meta or x.is_inference())


def is_differentiable(x: Tensor) -> bool:
    """Whether a tensor is of numbers that may have a gradient."""
    return x.is_floating_point() or x.is_complex()


def is_array(x: Any) -> bool:
    """Whether it is an array of NumPy's, of numbers."""
    return type(x).__module__ == "numpy" and type(x).__name__ == "ndarray" and x.dtype.kind in "biufc"
