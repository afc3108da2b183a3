"""What evaluations of func may leave with a history, as for the loss: tensors that it gains, or writes to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from steptape.torch._autograd.constants import is_differentiable, is_plain
from steptape.torch._autograd.graph import tensors_of
from steptape.torch._autograd.held import Held
from steptape.torch._autograd.snapshot import Snapshot


class Gained:
    """Since func referred to what it ``held``, and its modules to what is ``lent`` them.

    ``own``: of its tensors those that may be written to.
    """

    def __init__(self, own: Iterable[Tensor], held: Held, lent: Sequence[Snapshot] = ()):
        self._held, self._lent = held, lent
        self._written = [(x, x._version) for x in own if not x.requires_grad and is_differentiable(x) and is_plain(x)]

    @property
    def written(self) -> list[Tensor]:
        """Those among them that were written to, which had no history."""
        return [x for x, version in self._written if x._version != version]

    @property
    def elsewhere(self) -> list[Tensor]:
        """These, and others that what func held at some other moment does not tell of."""
        found = tensors_of([x for one in self._lent for x in one.changes().values()])
        return [*self.written, *self._held.queued, *filter(is_differentiable, found)]

    @property
    def tensors(self) -> list[Tensor]:
        """And those that func has come to refer to."""
        return [*self.elsewhere, *self._held.gained]
