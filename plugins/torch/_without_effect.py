"""What callers say of a backward solve where there is none: told once, and left aside."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from steptape._errors import SteptapeWarning

_told: set[str] = set()


def tell(function: str, names: Iterable[str]) -> None:
    """Warn, once a process for each name, that a replay solves nothing backward."""
    new = [name for name in names if f"{function} {name}" not in _told]
    if new:
        _told.update(f"{function} {name}" for name in new)
        warnings.warn(
            f"{function}(..., adjoint_method='aca'): {', '.join(new)} have no effect, since a replay solves nothing "
            "backward. Its gradient is that of the solve's own steps.",
            SteptapeWarning,
            stacklevel=4,
        )


def changed(settings: dict[str, tuple[Any, Any]]) -> list[str]:
    """The names of settings, (value, default), that ask for something else than the default."""
    return [name for name, (value, default) in settings.items() if value is not None and not _same(value, default)]


def _same(value: Any, default: Any) -> bool:
    plain = (bool, int, float)
    return value is default or (isinstance(value, plain) and isinstance(default, plain) and value == default)
