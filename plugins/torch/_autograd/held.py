"""What func refers to, as the solve left it: a replay finds it so, whatever has been put in its place since.

A closure over a loop's variable, an attribute that is set for each solve, a cache that is cleared: between the passes
they come to hold other values, and back-propagation does not mind, since its graph holds the old ones.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from types import CellType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steptape.compat._torch import PARAMETRIZE
from steptape.torch._autograd.modules import DEPTH, LONG, parts_of

_MISSING = object()
_OF_TORCH = frozenset(vars(torch.nn.Module())) - {"training"}
_LOCK = threading.RLock()
# Others may load what they hold when it is asked for.
_DICTIONARIES = (dict, OrderedDict, defaultdict)
# Of what holds more, the rest is left as it is.
_MANY = 2000


class _Place(NamedTuple):
    """Where a value is held: a cell, or a key of a dictionary or an index of a list."""

    holder: Any
    key: Any
    value: Any

    def now(self) -> Any:
        try:
            return self.holder.cell_contents if isinstance(self.holder, CellType) else self.holder[self.key]
        except (ValueError, LookupError):
            return _MISSING

    def put(self, value: Any) -> None:
        if isinstance(self.holder, CellType):
            self.holder.cell_contents = value
        elif isinstance(self.holder, list):
            if value is not _MISSING and self.key < len(self.holder):
                self.holder[self.key] = value
        elif value is not _MISSING:
            self.holder[self.key] = value
        else:
            self.holder.pop(self.key, None)


class Held:
    """All of it as it is now; ``tensors``: those among it."""

    def __init__(self, func: Any):
        self._places: list[_Place] = []
        self.tensors: list[Tensor] = []
        self._seen: set[int] = set()
        self._left = _MANY
        self._walk(func, DEPTH)
        if PARAMETRIZE["_cache_enabled"]:
            self._places += [_Place(PARAMETRIZE, name, PARAMETRIZE[name]) for name in ("_cache", "_cache_enabled")]

    @contextmanager
    def given_back(self) -> Iterator[None]:
        """A block in which it is so again; whole numbers that are counted on in it are counted on after it."""
        if all(_same(place.now(), place.value) for place in self._places):
            yield
            return
        with _LOCK:
            changed = [(place, now) for place in self._places if not _same(now := place.now(), place.value)]
            try:
                for place, _ in changed:
                    place.put(place.value)
                yield
            finally:
                for place, now in changed:
                    place.put(_counted_on(place, now))

    @contextmanager
    def kept(self) -> Iterator[None]:
        """A block after which it is so again."""
        try:
            yield
        finally:
            for place in self._places:
                if not _same(place.now(), place.value):
                    place.put(place.value)

    def _walk(self, holder: Any, depth: int) -> None:
        self._left -= 1
        if id(holder) in self._seen or self._left < 0:
            return
        if isinstance(holder, Tensor):
            self.tensors.append(holder)
        elif isinstance(holder, torch.nn.Module):
            for module in islice(holder.modules(), self._left):
                self._note(vars(module), (name for name in vars(module) if name not in _OF_TORCH), depth)
        elif depth:
            self._seen.add(id(holder))
            if isinstance(holder, FunctionType):
                self._note(holder.__globals__, (x for x in holder.__code__.co_names if x in holder.__globals__), 0)
                for cell in holder.__closure__ or ():
                    self._note_one(_Place(cell, None, _MISSING), depth)
            elif type(holder) is list:
                # Of a list, which may be a log, what has a gradient alone.
                self._note(holder, [i for i, x in enumerate(holder[:LONG]) if _has_gradient(x)], depth)
            elif type(holder) in _DICTIONARIES:
                self._note(holder, list(islice(holder, LONG)), depth)
            elif hasattr(holder, "__dict__") and not isinstance(holder, type):
                self._note(vars(holder), list(vars(holder)), depth)
            for part in parts_of(holder):
                self._walk(part, depth - 1)

    def _note(self, holder: Any, keys: Any, depth: int) -> None:
        for key in keys:
            self._note_one(_Place(holder, key, _MISSING), depth)

    def _note_one(self, place: _Place, depth: int) -> None:
        self._left -= 1
        if self._left < 0:
            return
        value = place.now()
        self._places.append(place._replace(value=value))
        if isinstance(value, Tensor):
            self.tensors.append(value)
        elif type(value) not in (list, tuple, *_DICTIONARIES):
            return
        elif depth > 1:
            self._walk(value, depth - 1)
        else:
            entries = value.items() if isinstance(value, dict) else enumerate(value)
            found = [(key, x) for key, x in islice(entries, LONG) if isinstance(x, Tensor)]
            self.tensors += [x for _, x in found]
            if not isinstance(value, tuple):
                self._places += [_Place(value, key, x) for key, x in found if _has_gradient(x)]


def _has_gradient(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and isinstance(a, (bool, int, float, str)) and a == b)


def _counted_on(place: _Place, now: Any) -> Any:
    after = place.now()
    return now + (after - place.value) if all(type(x) is int for x in (after, now, place.value)) else now
