"""What evaluations of func may leave with a history, as for the loss: tensors that it gains, or writes to."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from steptape.torch._autograd.constants import is_plain
from steptape.torch._autograd.held import Held


class Gained:
    """Since func referred to what it ``held``; ``own``: of its tensors those that are looked at."""

    def __init__(self, own: Iterable[Tensor], held: Held):
        self._held = held
        self._written = [(x, x._version) for x in own if _has_none(x) and is_plain(x)]

    @property
    def written(self) -> list[Tensor]:
        """Those among them that were written to, which had no history."""
        return [x for x, version in self._written if x._version != version]

    @property
    def tensors(self) -> list[Tensor]:
        """And those that func has come to refer to."""
        return [*self.written, *self._held.gained]


def _has_none(x: Tensor) -> bool:
    return not x.requires_grad and (x.is_floating_point() or x.is_complex())
