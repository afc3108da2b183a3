"""What an error says, for a table."""

from __future__ import annotations

import re


def words(error: Exception) -> str:
    """The words of an error; equinox's are deep in a traceback that JAX quotes."""
    found = re.search(r"EquinoxRuntimeError: (.+)", str(error))
    return found[1] if found else str(error)
