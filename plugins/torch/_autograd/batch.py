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
    """The parameters of a solve, for ``size`` cotangents at once."""

    def __init__(self, size: int, params: Sequence[Tensor], call: Call, *about: Any):
        self.batch = (size,)
        super().__init__(params, call, *about)

    def _taken(
        self, ends: Sequence[Tensor], cotangents: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> list[Tensor | None]:
        return _pulled(ends, cotangents, inputs, keep_graph=self.retains)

    def taken_with_graph(
        self, ends: Sequence[Tensor], cotangents: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> list[Tensor | None]:
        return _pulled(ends, cotangents, inputs, create_graph=True)


def _pulled(ends: Sequence[Tensor], cotangents: Sequence[Tensor], inputs: Sequence[Tensor], **how: Any) -> list[Any]:
    try:
        return pull_batch(ends, cotangents, inputs, **how)
    # Whatever an operation raises: what is wrong without a batch as well, one cotangent at a time will show.
    except Exception as error:
        raise Unbatchable from error
