"""Sizes of memory as they are written, such as ``"2 GiB"``."""

from __future__ import annotations

import re
from typing import Any

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def bytes_of(size: Any) -> int | None:
    """So many bytes; None where it is neither a positive number of them nor such a text."""
    if type(size) is int and size > 0:
        return size
    found = re.fullmatch(r"(\d+(?:\.\d*)?) ?([KMG]?i?B)", size, re.IGNORECASE) if isinstance(size, str) else None
    count = 0 if found is None else int(float(found[1]) * _UNITS[found[2].upper()])
    return count or None
