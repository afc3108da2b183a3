"""Memory, by four meters: what torch allocates, what malloc gave out, what is resident, what XLA says it will take."""

import ctypes
import gc
import os
import re
from pathlib import Path
from typing import Any


class Account:
    """The bytes that torch's CPU allocator handed out and took back inside a ``with`` block: ``net`` and ``peak``.

    Exact, and blind to what torch does not allocate itself (Python objects, code).
    """

    def __enter__(self) -> "Account":
        import torch

        gc.collect()
        self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
        self._profile.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._profile.__exit__(*error)
        profiler: Any = self._profile.profiler
        events = profiler.kineto_results.events()
        moves = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
        self.net = self.peak = 0
        for _, size in moves:
            self.net += size
            self.peak = max(self.peak, self.net)


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def in_use() -> int | None:
    """Bytes that malloc has handed out and not taken back: tensors, the graph's nodes, what else is not Python's own.

    None where the C library, not glibc, does not say.
    """
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):
        return None
    mallinfo2.restype = _Mallinfo2
    found = mallinfo2()
    return found.uordblks + found.hblkhd


# Every tensor in pages of its own, given back when it is freed: else the peak of what is resident counts what glibc
# keeps for later, too: a third more for back-propagation, about twice as much for the lean methods. An environment for
# a process to be measured.
RETURN_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def reset_peak() -> int:
    """Let the peak of resident memory start again, where the system can; return the memory resident now, in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return peak()
    return _status("VmRSS")


def peak() -> int:
    if Path("/proc/self/status").exists():
        return _status("VmHWM")
    import resource

    # In KiB on Linux, in bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if os.uname().sysname == "Darwin" else 1024)


def _status(field: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{field}:\s+(\d+) kB", text)
    return int(found[1]) * 1024 if found else 0


def temporary(compiled: Any) -> int:
    """Bytes that a program compiled by XLA allocates besides its inputs and outputs, forward and backward together."""
    return compiled.memory_analysis().temp_size_in_bytes
