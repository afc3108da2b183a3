"""What a run holds and takes at most, in bytes."""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steptape._compare.rows import in_bytes


class SavedTensors:
    """The storages that autograd saves in a ``with`` block and still holds.

    Raises ``MemoryError`` in the block where they would be more than is ``available``. ``tick``: called when a backward
    pass reads one of them.
    """

    def __init__(self, available: float, tick: Callable[[], None]):
        self._available, self._bytes, self._tick = available, 0, tick
        self._counts = Counter[tuple[int, int]]()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def __enter__(self) -> SavedTensors:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def besides(self, own: Iterable[Tensor]) -> int:
        """Their bytes now, but for those of ``own`` tensors."""
        known = {_storage(x) for x in own}
        return sum(key[1] for key in self._counts if key not in known)

    def _pack(self, x: Tensor) -> _Saved:
        key = _storage(x)
        if key not in self._counts:
            self._bytes += key[1]
        self._counts[key] += 1
        if self._bytes > self._available:
            raise MemoryError(f"its graph holds more than the {in_bytes(self._available)} that are free")
        # Detached, as an output saved by its own node would keep itself alive.
        return _Saved(x.detach(), lambda: self._free(key))

    def _unpack(self, saved: _Saved) -> Tensor:
        self._tick()
        return saved.tensor

    def _free(self, key: tuple[int, int]) -> None:
        self._counts[key] -= 1
        if not self._counts[key]:
            del self._counts[key]
            self._bytes -= key[1]


class _Saved:
    def __init__(self, tensor: Tensor, gone: Callable[[], None]):
        self.tensor, self._gone = tensor, gone

    def __del__(self) -> None:
        self._gone()


def _storage(x: Tensor) -> tuple[int, int]:
    """The address and the bytes of what a tensor keeps alive; none of one that has no storage, as a sparse one has."""
    try:
        storage = x.untyped_storage()
        return storage.data_ptr(), storage.nbytes()
    except (NotImplementedError, RuntimeError):
        return id(x), 0


def available(device: torch.device) -> float:
    """Most of the bytes that are free, as far as the system says."""
    if device.type == "cuda":
        return 0.9 * torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return float("inf")
    return 0.8 * 1024 * next((int(x.split()[1]) for x in lines if x.startswith("MemAvailable:")), 2**60)


def peak_of(run: Callable[[], Any], device: torch.device) -> int:
    """The most bytes that torch has allocated at once in a run, besides those before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()
    with _quiet(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as one:
        run()
    recorded: Any = one.profiler
    moves = sorted((e.start_ns(), e.nbytes()) for e in recorded.kineto_results.events() if e.name() == "[memory]")
    now = peak = 0
    for _, size in moves:
        now += size
        peak = max(peak, now)
    return peak


@contextmanager
def _quiet() -> Iterator[None]:
    """A block in which nothing is written to the standard error, where the profiler says when it starts and ends."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
