"""The bytes in use, by the C library's own account: tensors, the graph's nodes, and what else is not Python's own."""

from __future__ import annotations

import ctypes

_NAMES = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class _Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _NAMES]


def in_use() -> int | None:
    """Bytes that malloc has handed out and not taken back; None where the C library, not glibc, does not say."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):
        return None
    mallinfo2.restype = _Mallinfo2
    found = mallinfo2()
    return found.uordblks + found.hblkhd
