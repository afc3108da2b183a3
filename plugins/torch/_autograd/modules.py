"""The modules that func calls: itself, or those that a closure, a partial, a bound method or an object refers to."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from itertools import islice
from types import FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import torch

# A func refers to an object, which holds a container, which holds modules; long containers are data.
DEPTH = 3
LONG = 100


def modules_of(func: Any) -> list[torch.nn.Module]:
    """All of them, but for those that belong to another one."""
    if isinstance(func, torch.nn.Module):
        return [func]
    found = {id(module): module for module in _reached(func, DEPTH, set())}
    inner = {id(part) for module in found.values() for part in all_of([module])[1:]}
    return [module for key, module in found.items() if key not in inner]


def all_of(modules: Iterable[torch.nn.Module]) -> list[torch.nn.Module]:
    """Modules and all that they consist of, each once; in less time than ``modules()`` takes."""
    found: dict[int, torch.nn.Module] = {}
    waiting = [*modules]
    while waiting:
        module = waiting.pop()
        if id(module) not in found:
            found[id(module)] = module
            waiting += [part for part in module._modules.values() if part is not None]
    return [*found.values()]


def _reached(holder: Any, depth: int, seen: set[int]) -> Iterator[torch.nn.Module]:
    if isinstance(holder, torch.nn.Module):
        yield holder
    elif depth and id(holder) not in seen:
        seen.add(id(holder))
        for part in parts_of(holder):
            yield from _reached(part, depth - 1, seen)


def parts_of(holder: Any) -> Iterator[Any]:
    """What an object refers to, as far as it may be called through it."""
    if isinstance(holder, FunctionType):
        named = (holder.__globals__.get(name) for name in holder.__code__.co_names)
        # Of the names of a module those alone that are called: a function would lead on through all of a program.
        yield from (x for x in named if isinstance(x, (torch.nn.Module, functools.partial, MethodType)))
        for cell in holder.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # Not filled yet.
                continue
        yield from holder.__defaults__ or ()
        yield from (holder.__kwdefaults__ or {}).values()
    elif isinstance(holder, MethodType):
        yield from (holder.__self__, holder.__func__)
    elif isinstance(holder, functools.partial):
        yield from (holder.func, *holder.args, *holder.keywords.values())
    elif isinstance(holder, (list, tuple)):
        yield from holder[:LONG]
    elif isinstance(holder, dict):
        yield from islice(holder.values(), LONG)
    elif not isinstance(holder, (torch.Tensor, type, ModuleType)):
        yield from (getattr(holder, name) for name in slots_of(holder))
        yield from getattr(holder, "__dict__", {}).values()


def slots_of(holder: Any) -> list[str]:
    """The names of what an object holds besides its dictionary."""
    if type(holder).__module__ == "builtins":
        return []
    slots = [getattr(kind, "__slots__", ()) for kind in type(holder).__mro__]
    names = [name for some in slots for name in ((some,) if isinstance(some, str) else some)]
    # A subclass may have a property in the place of a slot.
    own = (name for name in names if isinstance(getattr(type(holder), name, None), MemberDescriptorType))
    return [name for name in own if hasattr(holder, name)]
