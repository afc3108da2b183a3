"""The bytes of what is held between the passes: each storage once, and none that is alive anyway."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Token:
    """A share in the storage of a tensor, given back when the token is gone."""

    __slots__ = ("_address", "_ledger")

    def __init__(self, ledger: Ledger, x: Tensor):
        self._ledger = ledger
        self._address = ledger.add(x)

    def __del__(self) -> None:
        self._ledger.remove(self._address)


class Ledger:
    """Counts the bytes ``used``, within a ``limit`` if there is one; ``alive``: tensors that do not count.

    ``reserve``: how much of the limit graphs leave to what comes meanwhile and cannot wait.
    """

    def __init__(self, alive: Iterable[Tensor], limit: int | None = None, reserve: int = 0):
        self.limit, self.used, self._reserve = limit, 0, reserve
        self._alive = {_address(part) for x in alive for part in _parts(x)}
        self._held: dict[int, list[int]] = {}

    @property
    def storages(self) -> set[tuple[int, int]]:
        """The addresses and sizes of all that is held."""
        return {(address, size) for address, (size, _) in self._held.items()}

    def has_room(self, size: int) -> bool:
        """Whether so many bytes more are within the limit."""
        return self.limit is None or self.used + size <= self.limit

    def has_room_for_graph(self, size: int) -> bool:
        """The same of a graph."""
        return self.has_room(size + self._reserve)

    def size_of(self, x: Tensor) -> int:
        """How many bytes more there are with a tensor."""
        address = _address(x)
        return 0 if address in self._alive or address in self._held else x.untyped_storage().nbytes()

    def spend(self, size: int) -> None:
        """Count bytes that are never given back."""
        self.used += size

    def add(self, x: Tensor) -> int:
        """Count the storage of a tensor once more; its address, to be removed again, or 0."""
        address = _address(x)
        if address in self._alive:
            return 0
        entry = self._held.get(address)
        if entry is None:
            size = x.untyped_storage().nbytes()
            self._held[address] = [size, 1]
            self.used += size
        else:
            entry[1] += 1
        return address

    def remove(self, address: int) -> None:
        """Count it once less."""
        if not address:
            return
        entry = self._held[address]
        entry[1] -= 1
        if not entry[1]:
            self.used -= entry[0]
            del self._held[address]

    def token(self, x: Tensor) -> Token:
        """Count the storage of a tensor as long as the token is there."""
        return Token(self, x)

    @contextmanager
    def counting(self) -> Iterator[Counted]:
        """A block that counts what graphs save."""
        counted = Counted(self)
        with torch.autograd.graph.saved_tensors_hooks(counted.pack, _unpacked):
            yield counted


class Counted:
    """What a block's graphs save; ``complete``: whether there was room for all of it."""

    def __init__(self, ledger: Ledger):
        self._ledger = ledger
        self.complete = True

    def pack(self, x: Tensor) -> _Saved:
        """What a graph saves instead of a tensor, which may be its own output, so that the graph would hold itself."""
        x, ledger = x.detach(), self._ledger
        if x.layout != torch.strided:
            # Of several storages; most are the caller's own.
            parts = _parts(x)
            tokens = [ledger.token(part) for part in parts]
            self.complete = self.complete and ledger.has_room_for_graph(0)
            return _Saved(x, x._version, tokens)
        if self.complete and (ledger.limit is None or ledger.has_room_for_graph(ledger.size_of(x))):
            return _Saved(x, x._version, Token(ledger, x))
        # This graph will not be kept, but func may need it to differentiate inside.
        self.complete = False
        return _Saved(x, x._version, None)


class _Saved:
    """A saved tensor. Torch looks for changes in place only where nothing comes between."""

    __slots__ = ("token", "version", "x")

    def __init__(self, x: Tensor, version: int, token: Any):
        self.x, self.version, self.token = x, version, token


def _unpacked(saved: _Saved) -> Tensor:
    if saved.x._version != saved.version:
        raise RuntimeError("one of the variables needed has been modified by an inplace operation")
    return saved.x


def _address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _parts(x: Tensor) -> tuple[Tensor, ...]:
    """The tensors that a sparse one consists of."""
    if x.layout == torch.strided:
        return (x,)
    if x.layout == torch.sparse_coo:
        return (x._indices(), x._values())
    rows = x.crow_indices, x.col_indices
    columns = x.ccol_indices, x.row_indices
    by_row = x.layout in (torch.sparse_csr, torch.sparse_bsr)
    return (*(part() for part in (rows if by_row else columns)), x.values())
