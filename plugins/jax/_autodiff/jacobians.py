"""Jacobians, and theirs: what is pushed forward through a function, and what is pulled back.

Values are in flat sequences, and so are the flags that mark some of them.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax

Arrays: TypeAlias = Sequence[Any]  # constants among them may come back as literals, which are no arrays
Flags: TypeAlias = tuple[bool, ...]


@runtime_checkable
class Linear(Protocol):
    """The Jacobian of a function at x: ``push`` is J(x) v, ``pull`` is J(x)^T w."""

    def push(self, x: Arrays, v: Arrays) -> Arrays:
        """J(x) v."""

    def pull(self, x: Arrays, w: Arrays) -> Arrays:
        """J(x)^T w."""

    def of_push(self, in_x: Flags, in_v: Flags) -> "Linear":
        """The Jacobian of ``push`` as a function of (x, v), in those of them that are marked."""

    def of_pull(self, in_x: Flags, in_w: Flags) -> "Linear":
        """The Jacobian of ``pull`` as a function of (x, w), in those of them that are marked."""


def marked(values: Sequence, mask: Flags) -> tuple:
    """Those of ``values`` that are marked."""
    return tuple(itertools.compress(values, mask))


def along(f: Callable, x: Arrays, mask: Flags, v: Arrays) -> tuple[Any, Any]:
    """``f(x)`` and its derivative where those of ``x`` that are marked move with ``v``."""
    return jax.jvp(_moved(f, x, mask), marked(x, mask), tuple(v))


def pulled(f: Callable, x: Arrays, mask: Flags) -> tuple[Sequence, Callable[[Arrays], Arrays]]:
    """``f(x)`` and what maps its cotangents to those of ``x`` that are marked."""
    values, pull = jax.vjp(lambda *moving: tuple(_moved(f, x, mask)(*moving)), *marked(x, mask))
    return values, lambda w: pull(tuple(w))


def _moved(f: Callable, x: Arrays, mask: Flags) -> Callable:
    """``f`` as a function of those of ``x`` that are marked."""

    def moved(*moving):
        rest = iter(moving)
        return f([next(rest) if m else a for a, m in zip(x, mask, strict=True)])

    return moved


@dataclasses.dataclass(frozen=True, eq=False)
class Jacobian:
    """The Jacobian of ``value``, which maps x to y, in those of x that are marked.

    ``pull_back(x, w, mask)`` is J(x)^T w for those of x that a mask marks, and y.
    """

    value: Callable[[Arrays], Arrays]
    pull_back: Callable[[Arrays, Arrays, Flags], tuple[Arrays, Arrays]]
    mask: Flags

    def push(self, x: Arrays, v: Arrays) -> Arrays:
        """J(x) v."""
        return along(self.value, x, self.mask, v)[1]

    def pull(self, x: Arrays, w: Arrays) -> Arrays:
        """J(x)^T w."""
        return self.pull_back(x, w, self.mask)[0]

    def of_push(self, in_x: Flags, in_v: Flags) -> "Jacobian":
        """In x it is d/de J(x + e v)^T w, in v J(x)^T w."""
        count, places = len(in_x), marked(range(len(in_x)), self.mask)

        def pull_back(xv, w, mask):
            (x, v), by_x, by_v = (
                (xv[:count], xv[count:]),
                marked(range(count), mask[:count]),
                marked(places, mask[count:]),
            )
            asked = tuple(i in by_x or i in by_v for i in range(count))
            (at, _), (moved, y) = along(lambda x: self.pull_back(x, w, asked), x, self.mask, v)
            row = {i: row for row, i in enumerate(marked(range(count), asked))}
            return [moved[row[i]] for i in by_x] + [at[row[i]] for i in by_v], y

        return Jacobian(lambda xv: self.push(xv[:count], xv[count:]), pull_back, in_x + in_v)

    def of_pull(self, in_x: Flags, in_w: Flags) -> "Jacobian":
        """In x it is d/de J(x + e v)^T w, in w J(x) v."""
        count = len(in_x)

        def pull_back(xw, v, mask):
            (x, w), in_x = (xw[:count], xw[count:]), mask[:count]
            asked = tuple(map(max, in_x, self.mask))
            (at, _), (moved, y) = along(lambda x: self.pull_back(x, w, asked), x, self.mask, v)
            by_x, value = (marked(g, marked(m, asked)) for g, m in ((moved, in_x), (at, self.mask)))
            return [*by_x, *marked(y, mask[count:])], value

        return Jacobian(lambda xw: self.pull(xw[:count], xw[count:]), pull_back, in_x + in_w)


@dataclasses.dataclass(frozen=True, eq=False)
class Native:
    """The Jacobian of ``value`` in those of x that are marked, as JAX has it in either mode: a ``Linear``.

    Nothing is pulled back from what there is of w after the values.
    """

    value: Callable[[Arrays], Sequence]
    mask: Flags

    def push(self, x: Arrays, v: Arrays) -> Arrays:
        """J(x) v."""
        return along(self.value, x, self.mask, v)[1]

    def pull(self, x: Arrays, w: Arrays) -> Arrays:
        """J(x)^T w."""
        values, pull = pulled(self.value, x, self.mask)
        return pull(w[: len(values)])

    def of_push(self, in_x: Flags, in_v: Flags) -> "Native":
        """JAX's own."""
        return Native(lambda xv: self.push(xv[: len(in_x)], xv[len(in_x) :]), in_x + in_v)

    def of_pull(self, in_x: Flags, in_w: Flags) -> "Native":
        """JAX's own."""
        return Native(lambda xw: self.pull(xw[: len(in_x)], xw[len(in_x) :]), in_x + in_w)


@dataclasses.dataclass(frozen=True, eq=False)
class Apart:
    """A Jacobian that is pushed by one and pulled by another, where what follows has no symmetry: a ``Linear``."""

    pushed: Linear
    pulled: Linear

    def push(self, x: Arrays, v: Arrays) -> Arrays:
        """J(x) v."""
        return self.pushed.push(x, v)

    def pull(self, x: Arrays, w: Arrays) -> Arrays:
        """J(x)^T w."""
        return self.pulled.pull(x, w)

    def of_push(self, in_x: Flags, in_v: Flags) -> "Apart":
        """That of each."""
        return Apart(self.pushed.of_push(in_x, in_v), self.pulled.of_push(in_x, in_v))

    def of_pull(self, in_x: Flags, in_w: Flags) -> Linear:
        """That of the one which is pulled."""
        return self.pulled.of_pull(in_x, in_w)
