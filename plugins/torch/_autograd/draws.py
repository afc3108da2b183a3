"""Generators of random numbers that func may draw from and that are not torch's default ones, and their states.

Those are Python's, NumPy's, and objects of theirs and torch's that func refers to. A queue, a set or a counter of plain
numbers is like a generator: its state is what it holds.
"""

from __future__ import annotations

import pickle
import random
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

_CONTAINERS = (deque, set, Counter)
_PLAIN = frozenset((bool, int, float, complex, str, bytes, type(None)))
# Those of more are logs.
_LONG = 256


class Draws(NamedTuple):
    """A ``generator``, and its ``state`` at some moment."""

    generator: Any
    state: Any

    @property
    def holds(self) -> bool:
        """Whether nothing has been drawn since."""
        return _equal(_state_of(self.generator), self.state)

    def restore(self) -> None:
        """Have it draw the same again."""
        _set_state(*self)

    @property
    def coded(self) -> Tensor:
        """The state as torch's generators tell theirs, in bytes."""
        if isinstance(self.state, Tensor):
            return self.state
        return torch.frombuffer(bytearray(pickle.dumps(self.state)), dtype=torch.uint8)


class Coded:
    """A generator that is asked for its state, and told it, as torch's own ones are."""

    def __init__(self, generator: Any):
        self._generator = generator

    def get_state(self) -> Tensor:
        """In bytes."""
        return draws_of(self._generator).coded

    def set_state(self, state: Tensor) -> None:
        """Go on from that."""
        is_own = isinstance(self._generator, torch.Generator)
        _set_state(self._generator, state if is_own else pickle.loads(state.numpy().tobytes()))


def draws_of(generator: Any) -> Draws:
    """A generator as it is now."""
    return Draws(generator, _state_of(generator))


def draws_of_all() -> list[Draws]:
    """Python's own generator and that of NumPy, if that is used at all, as they are now."""
    numpy = sys.modules.get("numpy")
    return [draws_of(one) for one in ((random,) if numpy is None else (random, numpy.random))]


def is_generator(x: Any) -> bool:
    """Whether an object draws random numbers."""
    if isinstance(x, (torch.Generator, random.Random)):
        return not isinstance(x, random.SystemRandom)
    return type(x).__module__.startswith("numpy.random") and (hasattr(x, "bit_generator") or hasattr(x, "set_state"))


def is_queue(x: Any) -> bool:
    """Whether an object is a container of plain numbers or words, and no list or dictionary."""
    return type(x) in _CONTAINERS and len(x) <= _LONG and _is_plain(x)


def entries_of(queue: Any) -> tuple[Any, ...]:
    """What a container has, and what it counts."""
    return (*queue, *(queue.values() if isinstance(queue, dict) else ()))


def _is_plain(queue: Any) -> bool:
    return all(type(entry) in _PLAIN for entry in entries_of(queue))


@contextmanager
def drawn_again(draws: Sequence[Draws]) -> Iterator[list[Draws]]:
    """A block after which generators draw as before it; yields how they are then."""
    now = [draws_of(one.generator) for one in draws]
    try:
        yield now
    finally:
        for one in now:
            one.restore()


@contextmanager
def as_they_were(draws: Sequence[Draws]) -> Iterator[None]:
    """A block in which changed containers are as they were; after it they are as before it, with what they gain."""
    changed = [(one, _state_of(one.generator)) for one in draws if not one.holds]
    for one, _ in changed:
        one.restore()
    try:
        yield
    finally:
        for one, before in changed:
            container = one.generator
            gained = [*container][len(one.state) :] if isinstance(container, deque) else container - one.state
            _set_state(container, before)
            (container.extend if isinstance(container, deque) else container.update)(gained)


def _state_of(generator: Any) -> Any:
    if isinstance(generator, _CONTAINERS):
        return generator.copy()
    if generator is random or isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    return generator.get_state() if hasattr(generator, "get_state") else generator.bit_generator.state


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, _CONTAINERS):
        generator.clear()
        (generator.update if isinstance(generator, (set, dict)) else generator.extend)(state)
    elif generator is random or isinstance(generator, random.Random):
        generator.setstate(state)
    elif hasattr(generator, "set_state"):
        generator.set_state(state)
    else:
        generator.bit_generator.state = state


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, _CONTAINERS):
        return len(a) == len(b) and _is_plain(a) and bool(a == b)
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return all(_equal(x, b[key]) for key, x in a.items())
    if type(a).__module__ == "numpy":
        return bool((a == b).all())
    if isinstance(a, tuple) and any(type(x).__module__ == "numpy" for x in a):
        return all(map(_equal, a, b))
    return bool(a == b)
