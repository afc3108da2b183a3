"""Functions of a host replaced by ours while an installation is active, and given back without trace."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType, TracebackType
from typing import Any, Protocol

from steptape._errors import HostChangedError


class Place(Protocol):
    """What of a host's is ours while it is open."""

    original: Any
    ours: Any

    def held(self) -> Iterator[tuple[str, Any]]:
        """The names that must stand for one of the two, each with what it stands for now."""

    def put(self, old: Any, new: Any) -> None:
        """Have all that stands for ``old`` stand for ``new``."""


class Door:
    """A function of a host's, and ours in its place.

    ``names``: those of the host's modules that stand for it. Modules called ``keepers``, and steptape's, go on holding
    the original.
    """

    def __init__(
        self, names: Sequence[str], original: Callable[..., Any], ours: Callable[..., Any], keepers: Sequence[str] = ()
    ):
        self.names, self.original, self.ours, self._keepers = tuple(names), original, ours, frozenset(keepers)

    def held(self) -> Iterator[tuple[str, Any]]:
        for name in self.names:
            module, _, function = name.rpartition(".")
            yield name, getattr(sys.modules.get(module), function, None)

    def put(self, old: Any, new: Any) -> None:
        for name, module in list(sys.modules.items()):
            # By type and straight to the dictionary: asking a lazy module for anything would load it.
            if not issubclass(type(module), ModuleType) or name in self._keepers or name.startswith("steptape."):
                continue
            names = object.__getattribute__(module, "__dict__")
            for key, value in dict(names).items():
                if value is old:
                    names[key] = new


class Entry:
    """A name in a table of a host's that stands for nothing of its own."""

    original = None

    def __init__(self, name: str, table: dict[str, Any], key: str, ours: Any):
        self._name, self._table, self._key, self.ours = name, table, key, ours

    def held(self) -> Iterator[tuple[str, Any]]:
        yield self._name, self._table.get(self._key)

    def put(self, old: Any, new: Any) -> None:
        if new is None:
            del self._table[self._key]
        else:
            self._table[self._key] = new


class Installations:
    """The active installations of one half, the latest one last. ``instead``: what to call where one is refused."""

    def __init__(self, instead: str):
        self._instead = instead
        self._lock = threading.RLock()
        self._active: tuple[Installation, ...] = ()
        self.setting: Any = None

    def add(self, installation: Installation) -> None:
        """Open what is not open yet for the others."""
        with self._lock:
            opened = self._opened(self._active)
            closed = [place for place in installation.places if place not in opened]
            _check(opened, f"Undo that, or call {self._instead}.", ours=True)
            _check(closed, f"Call install() before that happens, or call {self._instead}.", ours=False)
            for place in closed:
                place.put(place.original, place.ours)
            self._activate((*self._active, installation))

    def remove(self, installation: Installation) -> None:
        """Close what none of the others needs."""
        with self._lock:
            if installation not in self._active:
                return
            others = tuple(other for other in self._active if other is not installation)
            needed = self._opened(others)
            idle = [place for place in self._opened(self._active) if place not in needed]
            _check(idle, "Undo that first, then call uninstall() again.", ours=True)
            for place in idle:
                place.put(place.ours, place.original)
            self._activate(others)

    def _activate(self, installations: tuple[Installation, ...]) -> None:
        self._active = installations
        settings = [one.setting for one in installations if one.setting is not None]
        self.setting = settings[-1] if settings else None

    @staticmethod
    def _opened(installations: Sequence[Installation]) -> list[Place]:
        return list(dict.fromkeys(place for one in installations for place in one.places))


class Installation:
    """One ``install()``: undone by ``uninstall()``, or at the end of a ``with`` block."""

    def __init__(self, installations: Installations, places: Sequence[Place], setting: Any = None):
        self._installations, self.places, self.setting = installations, tuple(places), setting
        installations.add(self)

    def uninstall(self) -> None:
        """Undo this ``install()``; the last one still standing gives the hosts back as they were found.

        Raises ``HostChangedError``, and changes nothing, where someone else has replaced ours in the meantime. Calling
        it again does nothing.
        """
        self._installations.remove(self)

    def __enter__(self) -> Installation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.uninstall()


def _check(places: Sequence[Place], way_out: str, *, ours: bool) -> None:
    """Raise unless the places hold what they should, be it ours or the hosts' own."""
    for place in places:
        expected = place.ours if ours else place.original
        for name, found in place.held():
            if found is not expected:
                raise HostChangedError(
                    f"{name} is {_described(found)}, not {_described(expected)}: someone else has replaced it. "
                    f"{way_out}"
                )


def _described(found: Any) -> str:
    code = getattr(found, "__code__", None)
    return f"{found!r} of {code.co_filename}:{code.co_firstlineno}" if code else repr(found)
