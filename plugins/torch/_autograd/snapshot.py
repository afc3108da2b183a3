"""What an object held under some keys, for it to hold the same again for a while."""

from __future__ import annotations

import operator
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from types import CellType
from typing import Any, NamedTuple

# Others may load what they hold when it is asked for.
DICTIONARIES = (dict, OrderedDict, defaultdict)
CONTAINERS = (list, *DICTIONARIES)
_MISSING = object()
# An object by identity, and what it holds something under.
Place = tuple[int, Any]
_LOCK = threading.RLock()


class Snapshot(NamedTuple):
    """Of a cell, a container or the attributes of an object; ``size``: how much a container held, noted or not."""

    holder: Any
    values: dict[Any, Any]
    size: int | None = None

    @classmethod
    def of(cls, dictionary: dict[Any, Any]) -> Snapshot:
        """Of all that a dictionary holds."""
        return cls(dictionary, dict(dictionary), len(dictionary))

    @property
    def holds(self) -> bool:
        """Whether nothing has changed, as far as it was noted."""
        return (self.size is None or len(self.holder) == self.size) and not self.changes()

    def changes(self) -> dict[Any, Any]:
        """What it holds now under the keys where that is something else."""
        holder = self.holder
        # Most often nothing has changed, which takes least time to see so.
        if isinstance(holder, dict) and _same_entries(holder, self.values):
            return {}
        found = {k: now for k, x in self.values.items() if (now := held_by(holder, k)) is not x and not _same(now, x)}
        if self.size == len(self.values) and isinstance(holder, dict):
            missing = sum(x is _MISSING for x in found.values())
            if len(holder) + missing != self.size:
                found.update((k, x) for k, x in list(holder.items()) if k not in self.values)
        return found

    @property
    def tail(self) -> list[Any]:
        """What a list has come to hold besides."""
        return self.holder[self.size :] if isinstance(self.holder, list) and self.size is not None else []

    def restore(self, keys: Any) -> None:
        """Have it hold under some keys what it held."""
        for key in keys:
            _put(self.holder, key, self.values.get(key, _MISSING))

    def put(self, values: dict[Any, Any]) -> None:
        """Have it hold these."""
        for key, value in values.items():
            _put(self.holder, key, value)

    def put_back(self, places: Collection[Place]) -> None:
        """Restore it in some ``places``, but for whole numbers that have been counted on."""
        for key, now in self.changes().items():
            then = self.values.get(key, _MISSING)
            if (id(self.holder), key) in places and not (type(now) is int and type(then) is int):
                _put(self.holder, key, then)

    def count_on(self, changed: dict[Any, Any]) -> None:
        """Undo that; whole numbers that were counted on in between are counted on from what they were.

        What a list has gained in between it keeps.
        """
        gained = self.holder[self.size :] if isinstance(self.holder, list) and _MISSING in changed.values() else ()
        for key, now in changed.items():
            then, after = self.values.get(key, _MISSING), held_by(self.holder, key)
            counted = all(type(x) is int for x in (now, then, after))
            _put(self.holder, key, now + (after - then) if counted else now)
        if gained:
            self.holder.extend(gained)


@contextmanager
def given_back(snapshots: Sequence[Snapshot], places: frozenset[Place] = frozenset()) -> Iterator[None]:
    """A block in which all is as it was, and after which what was not is as before, and so is what is in ``places``.

    Whole numbers that are counted on in it are counted on after it, too, and lists keep what they gain.
    """
    grown = [(one.holder, one.size or 0) for one in snapshots if one.tail]
    is_changed = bool(grown) or any(one.changes() for one in snapshots)
    with _LOCK if is_changed else nullcontext(), cut(grown):
        changed = [(one, changes) for one in snapshots if (changes := one.changes())] if is_changed else []
        try:
            for one, changes in changed:
                one.restore(changes)
            yield
        finally:
            places -= {(id(one.holder), key) for one, changes in changed for key in changes}
            if places:
                for one in snapshots:
                    one.put_back(places)
            for one, changes in changed:
                one.count_on(changes)


class Length(NamedTuple):
    """How much a list or a dictionary held that a ``holder`` had under a ``key``, and which one it was; not itself."""

    holder: Any
    key: Any
    known_as: int
    size: int

    @classmethod
    def of(cls, holder: Any, key: Any, container: Any) -> Length:
        """That of a container as it is now."""
        return cls(holder, key, id(container), len(container))

    @property
    def container(self) -> Any:
        """It, if it is there still and has grown."""
        now = held_by(self.holder, self.key)
        return now if id(now) == self.known_as and len(now) > self.size else None


@contextmanager
def cut(grown: Iterable[tuple[Any, int]]) -> Iterator[None]:
    """A block in which lists and dictionaries hold so many of their entries; what they gain goes before the rest."""
    once = {id(x): (x, size) for x, size in grown}.values()
    tails = [(x, size, x[size:] if isinstance(x, list) else dict(islice(x.items(), size, None))) for x, size in once]
    try:
        for x, size, tail in tails:
            if isinstance(x, list):
                del x[size:]
            else:
                for key in tail:
                    del x[key]
        yield
    finally:
        for x, size, tail in tails:
            if isinstance(x, list):
                x[size:size] = tail
            else:
                x.update(tail)


@contextmanager
def kept(snapshots: Sequence[Snapshot]) -> Iterator[None]:
    """A block after which all is as it was."""
    try:
        yield
    finally:
        restore(snapshots)


def restore(snapshots: Iterable[Snapshot]) -> None:
    """Have all be as it was."""
    for one in snapshots:
        one.restore(one.changes())


def held_by(holder: Any, key: Any) -> Any:
    """What it holds now, if anything."""
    if isinstance(holder, dict):
        return holder.get(key, _MISSING) if type(holder) is not defaultdict or key in holder else _MISSING
    try:
        if isinstance(holder, CellType):
            return holder.cell_contents
        return holder[key] if isinstance(holder, list) else getattr(holder, key)
    except (ValueError, LookupError, AttributeError):
        return _MISSING


def _put(holder: Any, key: Any, value: Any) -> None:
    if isinstance(holder, CellType):
        holder.cell_contents = value
    elif isinstance(holder, list):
        if value is _MISSING:
            del holder[key:]
        elif key <= len(holder):
            holder[key : key + 1] = [value]
    elif isinstance(holder, dict):
        holder.pop(key, None) if value is _MISSING else holder.__setitem__(key, value)
    elif value is _MISSING:
        delattr(holder, key)
    else:
        setattr(holder, key, value)


def _same_entries(a: dict[Any, Any], b: dict[Any, Any]) -> bool:
    return a.keys() == b.keys() and all(map(operator.is_, a.values(), b.values()))


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and isinstance(a, (bool, int, float, str)) and a == b
