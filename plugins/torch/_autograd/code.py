"""What code refers to by name: the functions of a class that an evaluation may call, and the names in them."""

from __future__ import annotations

import functools
import sys
import sysconfig
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

# What a host calls.
_CALLED = ("forward", "__call__", "f", "g", "h", "f_and_g", "g_prod", "f_and_g_prod")
_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
_found: WeakKeyDictionary[type, list[FunctionType]] = WeakKeyDictionary()


@functools.lru_cache(maxsize=4096)
def names_in(code: CodeType) -> frozenset[str]:
    """The names of globals and attributes in a function's code, and in that of the functions inside it."""
    inner = (names_in(x) for x in code.co_consts if isinstance(x, CodeType))
    return frozenset(code.co_names).union(*inner)


def functions_of(kind: type) -> list[FunctionType]:
    """Those of a class that an evaluation may call, by their names in the ones that the hosts call."""
    if kind not in _found:
        _found[kind] = list(_functions_of(kind))
    return _found[kind]


def _functions_of(kind: type) -> Iterator[FunctionType]:
    known: dict[str, Any] = {}
    for one in reversed(kind.__mro__):
        if one.__module__.partition(".")[0] not in ("torch", "builtins"):
            known.update(vars(one))
    waiting, seen = [*_CALLED], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in known:
            continue
        seen.add(name)
        for function in _functions_in(known[name]):
            yield function
            waiting += names_in(function.__code__)


def _functions_in(value: Any) -> Iterator[FunctionType]:
    """Itself, or what a property, a static method or a decorator wraps."""
    candidates = (value, *(getattr(value, name, None) for name in ("fget", "func", "__func__", "__wrapped__")))
    yield from (x for x in candidates if isinstance(x, FunctionType))


def is_of_library(function: FunctionType) -> bool:
    """Whether a function is none of the user's program, so that what it refers to is its own business."""
    return function.__code__.co_filename.startswith(_LIBRARIES)


def is_library(module: ModuleType | None) -> bool:
    """The same of a module; what is built in has no file, nor has a program that is typed in."""
    path = getattr(module, "__file__", None)
    return module is not sys.modules["__main__"] and (path is None or path.startswith(_LIBRARIES))
