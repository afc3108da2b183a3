"""What evaluations of func change: the states of random number generators, and buffers such as running statistics.

The solve takes notes of it where an accepted step starts; evaluations in their order do the rest. Rejected tries have
changed it too, which is why each step has notes of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from steptape.compat._torch import copied
from steptape.torch._autograd.constants import SMALL, is_written_to
from steptape.torch._autograd.draws import Coded

Note = tuple[Tensor, ...]


class SideState:
    """The default generators of the CPU and of the state's ``device``, and the ``buffers`` of modules.

    ``own``: those generators; ``followed``: more, of others, that func draws from.
    """

    def __init__(self, device: torch.device, buffers: Iterable[Tensor]):
        self.own = [torch.default_generator]
        if device.type == "cuda":
            self.own.append(torch.cuda.default_generators[device.index or 0])
        self.followed: list[Any] = []
        self.buffers = list({id(x): x for x in buffers}.values())
        self._versions: list[int] = []
        self._values: list[Tensor] = []

    def note(self) -> Note:
        """The state now; buffers that have not changed since the last note share its copies."""
        if self._versions != (versions := self.writes):
            self._versions, self._values = versions, list(map(copied, self.buffers))
        return (*(generator.get_state() for generator in self._generators), *self._values)

    def small_note(self) -> Note | None:
        """The state now, if it takes little memory to keep."""
        return self.note() if 0 < sum(x.numel() for x in self.buffers) <= SMALL else None

    def is_written_to(self, note: Note, writes: list[int]) -> bool:
        """Whether any buffer has been since a ``note`` when there were so many ``writes``."""
        return any(map(is_written_to, self.buffers, writes, note[len(self._generators) :]))

    def note_after(self, earlier: Note) -> Note:
        """The state now: an earlier note itself if nothing has changed since, else one that shares the rest with it."""
        note = self.note()
        return earlier if same(earlier, note) else shared(note, earlier)

    @property
    def _generators(self) -> list[Any]:
        return [*self.own, *map(Coded, self.followed)] if self.followed else self.own

    @property
    def writes(self) -> list[int]:
        """How often each of the buffers has been written to."""
        return [buffer._version for buffer in self.buffers]

    def is_untouched_since(self, note: Note, writes: list[int]) -> bool:
        """Whether nothing has changed it, be it to what it was, since a ``note`` when there were so many ``writes``."""
        return self.writes == writes and same(note, self.note())

    def set(self, note: Note) -> None:
        """Make it the state that was noted."""
        generators = self._generators
        count = len(generators)
        for generator, state in zip(generators, note[:count], strict=True):
            generator.set_state(state)
        writes = self.writes
        for i, (buffer, value) in enumerate(zip(self.buffers, note[count:], strict=True)):
            if not self._still_has(i, value, writes):
                # Not a change that autograd is to see: the graphs of earlier evaluations do not read what follows.
                buffer.data.copy_(value)
        self._versions, self._values = self.writes, list(note[count:])

    def _still_has(self, i: int, value: Tensor, writes: list[int]) -> bool:
        """Whether a buffer was noted with a value and has not been written to.

        Batch norm writes to its statistics out of autograd's sight, but not to its count: only of a large one does its
        own version tell.
        """
        if not self._values or self._values[i] is not value:
            return False
        is_large = self.buffers[i].numel() > SMALL
        return self._versions == writes or (is_large and self._versions[i] == writes[i])

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Leave it after the block as it was before."""
        before = self.note()
        try:
            yield
        finally:
            self.set(before)


def same(a: Note, b: Note) -> bool:
    """Whether two notes are of the same state."""
    return all(map(_equal, a, b))


def shared(note: Note, earlier: Note) -> Note:
    """A note that shares with an earlier one what has not changed since."""
    return tuple(y if _equal(x, y) else x for x, y in zip(note, earlier, strict=True))


def _equal(x: Tensor, y: Tensor) -> bool:
    if x is y:
        return True
    if x.dtype is torch.uint8 and y.dtype is torch.uint8 and x.is_cpu and y.is_cpu:
        # States of generators, which torch compares byte by byte.
        return x.numpy().tobytes() == y.numpy().tobytes()
    return torch.equal(x, y)


class Restored:
    """The side state as a replay sets it: as it was when the solve took a stage.

    ``notes``: for each step those before its first evaluations, as far as the solve took them; the others follow in
    order. Empty if nothing changes.
    """

    def __init__(self, side: SideState, notes: Sequence[Sequence[Note]]):
        self._side, self._notes = side, notes
        self._step: int | None = None
        self._known: dict[int, Note] = {}

    def before(self, step: int, stage: int) -> None:
        """Set the state for a stage; a step's stages come in order, and then again in any order."""
        if not self._notes:
            return
        if step != self._step:
            self._step, self._known = step, dict(enumerate(self._notes[step]))
        if stage in self._known:
            self._side.set(self._known[stage])
        else:
            self._known[stage] = self._side.note()
