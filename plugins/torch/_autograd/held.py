"""What func refers to, as the solve left it: a replay finds it so, whatever has been put in its place since.

A closure over a loop's variable, an attribute that is set for each solve, a cache that is cleared, a hook that is
removed: between the passes they come to hold other values, and back-propagation does not mind, since its graph holds
the old ones.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from types import BuiltinMethodType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor

from steptape.compat._torch import PARAMETRIZE
from steptape.torch._autograd.code import functions_of, is_library, is_of_library, names_in
from steptape.torch._autograd.constants import is_array, is_differentiable
from steptape.torch._autograd.draws import (
    Draws,
    drawn_again,
    draws_of,
    draws_of_all,
    entries_of,
    is_generator,
    is_queue,
)
from steptape.torch._autograd.graph import tensors_of
from steptape.torch._autograd.modules import DEPTH, LONG, all_of, parts_of, slots_of
from steptape.torch._autograd.snapshot import CONTAINERS, DICTIONARIES, Length, Snapshot, held_by, restore

_OF_TORCH = frozenset(vars(torch.nn.Module()))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_CHANGING = ("_modules", *_HOOKS)
# What threads wait for is not as it was: another one would wait for ever.
_OF_THREADS = frozenset(("_thread", "threading", "queue", "logging", "multiprocessing", "concurrent", "asyncio"))
_PLAIN = frozenset((bool, int, float, str, type(None)))
_OF_GRAPHS = frozenset(("is_grad_enabled", "requires_grad", "grad_fn"))
_DEFAULTS = ("__defaults__", "__kwdefaults__")
# Short containers in each other may be settings, or such as a register of terms; long ones are data.
_DEEPER = 2
# No log yet.
_SHORT = 16
# Of what holds more, the rest is left as it is.
_MANY = 2000


class Held:
    """All of it as it is now; ``tensors``: those among it that are no parameters; ``arrays``: of NumPy's.

    ``followed``: generators of random numbers that are none of its business. ``queues``: containers of other kinds than
    lists and dictionaries. ``asks_for_graphs``: whether code in it goes by whether a graph is built.
    """

    def __init__(self, func: Any, followed: Sequence[Any] = ()):
        self._snapshots: list[Snapshot] = []
        # Of most layers all hooks.
        self._empty: list[dict[Any, Any]] = []
        self.values: list[Snapshot] = []
        self.lengths: list[Length] = []
        self.tensors: list[Tensor] = []
        self.arrays: list[Any] = []
        self._draws = draws_of_all()
        self.queues: list[Draws] = []
        self.asks_for_graphs = False
        self._seen: set[int] = set()
        self._objects: set[int] = set()
        # Of modules of the user's program, and in them.
        self._named: set[tuple[int, str]] = set()
        # How many objects the walk is in.
        self._inside = 0
        self._left = _MANY
        self._walk(func, DEPTH + _DEEPER)
        if PARAMETRIZE["_cache_enabled"]:
            self._note(PARAMETRIZE, ("_cache", "_cache_enabled"), 0)
        self.leave(followed)

    def let_go(self, tensors: Sequence[Tensor], keep_values: bool) -> None:
        """Hold some tensors no longer, nor what has one of them; and note no tensors.

        ``keep_values``: go on holding what they were, without their history, in ``values``. Of containers that had some
        the ``lengths`` are held.
        """
        self.tensors, self.arrays = [], []
        if not tensors:
            return
        those = set(map(id, tensors))
        gone = {id(x) for one in self._snapshots for x in one.values.values() if _has_one_of(x, those, DEPTH)}
        self._snapshots = [one for one in self._snapshots if id(one.holder) not in gone]
        for one in self._snapshots:
            lost = {key: one.values.pop(key) for key in [key for key, x in one.values.items() if id(x) in gone]}
            values = {key: x.detach() for key, x in lost.items() if keep_values and id(x) in those}
            self.lengths += [Length.of(one.holder, key, x) for key, x in lost.items() if type(x) in CONTAINERS]
            if values:
                self.values.append(Snapshot(one.holder, values))

    def clear(self) -> None:
        """Hold nothing."""
        self.tensors, self.arrays, self.values, self._snapshots, self._empty = [], [], [], [], []
        self.lengths, self._draws, self.queues = [], [], []

    @property
    def snapshots(self) -> list[Snapshot]:
        """All of it but for what was empty and still is."""
        return [*self._snapshots, *(Snapshot(one, {}, 0) for one in self._empty if one)]

    @property
    def holds(self) -> bool:
        """Whether func still refers to all of it, and to nothing else."""
        changed = any(self._empty) or self.drawn or not all(one.holds for one in self.queues)
        return not changed and all(one.holds for one in self._snapshots)

    @property
    def drawn(self) -> list[Draws]:
        """The generators that have been drawn from since."""
        return [one for one in self._draws if not one.holds]

    @property
    def gained(self) -> list[Tensor]:
        """The tensors of numbers that func has come to hold since, but for those that are ``queued``."""
        known = set(map(id, self.tensors))
        held = tensors_of([(*one.changes().values(), *one.tail) for one in self.snapshots])
        return [x for x in held if id(x) not in known and is_differentiable(x)]

    @property
    def queued(self) -> list[Tensor]:
        """The tensors in containers of other kinds than lists and dictionaries, which held none."""
        return list(tensors_of([entries_of(one.generator) for one in self.queues]))

    def leave(self, generators: Sequence[Any]) -> None:
        """Leave some generators to others."""
        if generators:
            those = set(map(id, generators))
            self._draws = [one for one in self._draws if id(one.generator) not in those]

    def restore(self) -> None:
        """Have all be as it was."""
        restore(self.snapshots)
        for one in self._snapshots:
            if one.tail:
                del one.holder[one.size :]
        for draws in (*self._draws, *self.queues):
            draws.restore()

    @contextmanager
    def as_it_was(self, more: Sequence[Snapshot] = ()) -> Iterator[None]:
        """A block in which all of it, and ``more``, is as it was, and after which all is as before the block."""
        snapshots = [*self.snapshots, *more]
        now = [(one, one.changes(), one.tail) for one in snapshots]
        with drawn_again([*self._draws, *self.queues]):
            self.restore()
            restore(more)
            try:
                yield
            finally:
                self.restore()
                restore(more)
                for one, values, tail in now:
                    one.put(values)
                    if tail:
                        one.holder[one.size :] = tail

    def _walk(self, holder: Any, depth: int) -> None:
        self._left -= 1
        if id(holder) in self._seen or self._left < 0 or _is_of_threads(holder) or isinstance(holder, ModuleType):
            return
        if self._is_listed(holder):
            return
        if isinstance(holder, torch.nn.Module):
            for module in all_of([holder])[: self._left]:
                if id(module) not in self._seen:
                    self._note_module(module, depth)
        elif (depth := depth - _DEEPER if _is_long(holder) else depth) > 0:
            self._seen.add(id(holder))
            self._note_parts(holder, depth)
            for part in parts_of(holder):
                self._walk(part, depth - 1)

    def _is_listed(self, x: Any) -> bool:
        """Whether it is one of those of which there is a list, in which it now is."""
        if isinstance(x, Tensor):
            self.tensors.append(x)
        elif is_generator(x):
            self._draws.append(draws_of(x))
        elif is_queue(x):
            self.queues.append(draws_of(x))
        elif is_array(x):
            self.arrays.append(x)
        else:
            return False
        return True

    def _note_module(self, module: torch.nn.Module, depth: int) -> None:
        self._seen.add(id(module))
        attributes = vars(module)
        self._snapshots.append(Snapshot.of(attributes))
        for name in _CHANGING:
            one: Any = attributes.get(name)
            if type(one) in DICTIONARIES:
                self._note_all(one)
                for hook in one.values() if name in _HOOKS else ():
                    self._look(hook, depth)
        self._note_class(type(module))
        for name, value in attributes.items():
            if name not in _OF_TORCH and type(value) not in _PLAIN:
                self._look(value, depth)

    def _note_parts(self, holder: Any, depth: int) -> None:
        if isinstance(holder, FunctionType):
            names = names_in(holder.__code__)
            self.asks_for_graphs |= not _OF_GRAPHS.isdisjoint(names)
            self._note(holder.__globals__, [x for x in names if x in holder.__globals__], _DEEPER, names=names)
            for cell in holder.__closure__ or ():
                self._note(cell, (None,), depth, names=names)
            for value in holder.__defaults__ or ():
                self._look(value, depth)
            self._note(holder, [x for x in _DEFAULTS if getattr(holder, x)], 0)
            self._note_all(vars(holder))
        elif type(holder) is list:
            self._note(holder, [i for i, x in enumerate(holder[:LONG]) if _is_noted(x, holder)], depth, len(holder))
        elif type(holder) in DICTIONARIES:
            self._note(holder, list(islice(holder, LONG)), depth, len(holder))
        elif not isinstance(holder, type):
            self._note_class(type(holder))
            self._note(holder, slots_of(holder), depth)
            if (attributes := _attributes(holder)) is not None:
                self._snapshots.append(Snapshot.of(attributes))
                for value in self._snapshots[-1].values.values():
                    self._look(value, depth)

    def _note_all(self, dictionary: dict[Any, Any]) -> None:
        """All that a dictionary holds, most often nothing."""
        self._snapshots.append(Snapshot.of(dictionary)) if dictionary else self._empty.append(dictionary)

    def _note_object(self, value: Any) -> None:
        """What an object holds, such as a schedule or a configuration, and what the objects in it hold in turn."""
        others = (type, FunctionType, MethodType, ModuleType, Tensor, torch.nn.Module)
        seen = id(value) in self._seen or id(value) in self._objects or _is_of_threads(value)
        has_any = _attributes(value) is not None or slots_of(value)
        if self._inside < DEPTH and has_any and not seen and not isinstance(value, others):
            self._objects.add(id(value))
            self._inside += 1
            self._note_parts(value, 1 + _DEEPER)
            self._inside -= 1

    def _note_class(self, kind: type) -> None:
        """What a class of the user's holds for all its objects, and what its functions refer to."""
        for one in kind.__mro__:
            if one.__module__.partition(".")[0] in ("torch", "builtins"):
                return
            if id(one) not in self._seen:
                self._seen.add(id(one))
                self._note(one, [name for name, x in vars(one).items() if _is_data(name, x)], 0)
                for function in functions_of(one):
                    self._walk(function, DEPTH)

    def _note(
        self,
        holder: Any,
        keys: Iterable[Any],
        depth: int,
        size: int | None = None,
        names: Collection[str] = (),
    ) -> None:
        """``names``: in the code that goes by it, such as those of what it uses of a module of the user's program."""
        values = {key: held_by(holder, key) for key in keys}
        if values or size is not None:
            self._snapshots.append(Snapshot(holder, values, size))
        for value in values.values():
            if isinstance(value, ModuleType):
                self._note_program(value, names)
            else:
                self._look(value, depth)

    def _note_program(self, module: ModuleType, names: Collection[str]) -> None:
        """Of a module of the user's program what code refers to by some names."""
        if is_library(module):
            return
        new = {(id(module), name) for name in names if name in vars(module)} - self._named
        self._named |= new
        self._note(module, [name for _, name in new], 0, names=names)

    def _look(self, value: Any, depth: int) -> None:
        self._left -= 1
        if self._left < 0:
            return
        if self._is_listed(value):
            return
        if isinstance(value, (functools.partial, MethodType)):
            self._walk(value, depth - 1)
        elif isinstance(value, BuiltinMethodType):
            # As of a list, to append to it.
            if type(value.__self__) in (list, *DICTIONARIES):
                self._look(value.__self__, depth)
        elif isinstance(value, FunctionType):
            if not is_of_library(value):
                self._walk(value, depth - 1)
        elif isinstance(value, type):
            if not is_library(sys.modules.get(value.__module__)):
                self._note_class(value)
        elif type(value) not in (list, tuple, *DICTIONARIES):
            self._note_object(value)
        elif depth > (1 + _DEEPER if _is_long(value) else 1):
            self._walk(value, depth - 1)
        else:
            entries = value.items() if isinstance(value, dict) else enumerate(value)
            found = dict(islice(entries, LONG))
            self.tensors += [x for x in found.values() if isinstance(x, Tensor)]
            for x in found.values():
                self._note_object(x)
            if not isinstance(value, tuple):
                noted = {key: x for key, x in found.items() if _is_noted(x, value)}
                self._snapshots.append(Snapshot(value, noted, len(value)))


def _is_long(x: Any) -> bool:
    return isinstance(x, (list, tuple, dict)) and len(x) > _SHORT


def _is_of_threads(x: Any) -> bool:
    return type(x).__module__.partition(".")[0] in _OF_THREADS


def _attributes(x: Any) -> dict[str, Any] | None:
    """Those of an object's own; others pass on what is not theirs."""
    found = getattr(x, "__dict__", None)
    return found if type(found) is dict else None


def _has_one_of(holder: Any, tensors: set[int], depth: int) -> bool:
    if isinstance(holder, (Tensor, torch.nn.Module)) or not depth:
        return id(holder) in tensors
    return any(_has_one_of(part, tensors, depth - 1) for part in parts_of(holder))


def _is_noted(x: Any, holder: Collection[Any]) -> bool:
    """Of a long list, which may be a log, no tensors are but those that have a gradient."""
    return x.requires_grad or len(holder) <= _SHORT if isinstance(x, Tensor) else type(x) in _PLAIN


def _is_data(name: str, x: Any) -> bool:
    return not name.startswith("__") and not callable(x) and not hasattr(type(x), "__get__")
