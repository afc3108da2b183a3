"""Many cotangents at once: each graph is built once, and pulled through for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from steptape.compat._torch import pull_batch
from steptape.torch._autograd.graph import Call, Parameters


class Unbatchable(Exception):
    """Raised where an operation of a graph takes no batch of cotangents."""


class BatchParameters(Parameters):
    """The parameters of a solve, for ``size`` cotangents at once.

    ``needed``: which of them are to have a gradient; the others get none, as each would take the memory of ``size``.
    """

    def __init__(self, params: Sequence[Tensor], call: Call, rough: bool, size: int, needed: Sequence[bool]):
        self.batch = (size,)
        self._left_out = {id(p) for p, need in zip(params, needed, strict=True) if not need}
        super().__init__(params, call, rough)

    def zeros(self, x: Tensor) -> Tensor:
        return x.new_zeros((*self.batch, *((0,) if id(x) in self._left_out else x.shape)))

    def taken(
        self, ends: Sequence[Tensor], cotangents: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> list[Tensor | None]:
        wanted = [x for x in inputs if id(x) not in self._left_out]
        grads = iter(_pulled(ends, cotangents, wanted))
        return [None if id(x) in self._left_out else next(grads) for x in inputs]

    def taken_with_graph(
        self, ends: Sequence[Tensor], cotangents: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> list[Tensor]:
        grads = _pulled(ends, cotangents, inputs, create_graph=True)
        return [self.zeros(x) if grad is None else grad for x, grad in zip(inputs, grads, strict=True)]


def _pulled(ends: Sequence[Tensor], cotangents: Sequence[Tensor], inputs: Sequence[Tensor], **how: Any) -> list[Any]:
    try:
        return pull_batch(ends, cotangents, inputs, **how)
    # Whatever an operation raises: what is wrong without a batch as well, one cotangent at a time will show.
    except Exception as error:
        raise Unbatchable from error
