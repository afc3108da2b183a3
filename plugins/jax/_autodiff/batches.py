"""Functions and Jacobians for each of a batch: as they are, with the axis of each argument, None where all share it."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Axes: TypeAlias = tuple[int | None, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """The size of a batch and the name of its axis."""

    size: int
    name: Any

    def each(self, run: Callable, args: tuple, axes: tuple) -> Any:
        """``run(*args)`` for each of the batch."""
        return jax.vmap(run, in_axes=axes, axis_size=self.size, axis_name=self.name)(*args)


def _completed(axes: Axes, count: int) -> Axes:
    """The axes of ``count`` values: those not named are 0."""
    return axes + (0,) * (count - len(axes))


class BatchedFunction:
    """A ``modes.Function`` for each of a batch.

    ``axes`` are those of its values, once it has been called: None for whole numbers that all share, as those are by
    which a loop counts, and 0 for all others.
    """

    def __init__(self, inner: Any, batch: Batch, of_x: Axes) -> None:
        self.inner, self.batch, self.of_x = inner, batch, of_x
        self.axes: Axes = ()

    def value(self, x):
        """f(x) for each x."""
        return self.through(lambda *x: self.inner.value(x), x)

    def through(self, run, x):
        """``run(*x)`` for each x, which is what ``inner`` does."""
        differs: set[int] = set()

        def note(i):
            differs.add(i)

        def noted(*x):
            return [_noted(a, i, note) for i, a in enumerate(run(*x))]

        values = self.batch.each(noted, tuple(x), self.of_x)
        shared = [not jnp.issubdtype(a.dtype, jnp.inexact) and i not in differs for i, a in enumerate(values)]
        self.axes = tuple(None if common else 0 for common in shared)
        return [a[0] if common else a for a, common in zip(values, shared, strict=True)]

    def derived(self, mask):
        """The derivative, for each."""
        derived = self.inner.derived(mask)
        of_v = tuple(axis for axis, m in zip(self.of_x, mask, strict=True) if m)
        function = BatchedFunction(derived.function, self.batch, self.of_x)

        def linear():
            of_x = self.of_x + function.axes[len(self.axes) :]
            return BatchedLinear(derived.linear(), self.batch, of_x, of_v, ())

        return derived._replace(function=function, linear=linear)


def _noted(x, i, note):
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else _noted_p.bind(x, i=i, note=note)


def _note(args, axes, *, i, note):
    note(i)
    return args[0], axes[0]


_noted_p = Primitive("steptape_noted")
_noted_p.def_impl(lambda x, **_: x)
_noted_p.def_abstract_eval(lambda x, **_: x)
ad.primitive_jvps[_noted_p] = lambda x, t, **_: (x[0], t[0])
batching.primitive_batchers[_noted_p] = _note
mlir.register_lowering(_noted_p, lambda ctx, x, **_: [x])


@dataclasses.dataclass(frozen=True, eq=False)
class BatchedLinear:
    """A ``jacobians.Linear`` for each of a batch; the axes of the last of x and w are 0 if they are not named."""

    inner: Any
    batch: Batch
    of_x: Axes
    of_v: Axes
    of_w: Axes

    def push(self, x, v):
        """J(x) v for each, or the sum of it where all share the result."""
        return self._each(self.inner.push, x, v, self.of_v, self.of_w)

    def pull(self, x, w):
        """J(x)^T w for each, or the sum of it where all share v."""
        return self._each(self.inner.pull, x, w, _completed(self.of_w, len(w)), self.of_v)

    def _each(self, run, x, moving, axes, out):
        results = self.batch.each(run, (tuple(x), tuple(moving)), (_completed(self.of_x, len(x)), axes))
        out = _completed(out, len(results))
        return [
            jnp.sum(a, 0) if axis is None else jnp.moveaxis(a, 0, axis) for a, axis in zip(results, out, strict=True)
        ]

    def of_push(self, in_x, in_v):
        """The Jacobian of ``push``, for each."""
        return self._derived(self.inner.of_push(in_x, in_v), in_x, in_v, self.of_v, self.of_w)

    def of_pull(self, in_x, in_w):
        """The Jacobian of ``pull``, for each."""
        return self._derived(self.inner.of_pull(in_x, in_w), in_x, in_w, _completed(self.of_w, len(in_w)), self.of_v)

    def _derived(self, inner, in_x, in_moving, axes, out):
        of_x = _completed(self.of_x, len(in_x)) + axes
        of_v = tuple(axis for axis, m in zip(of_x, in_x + in_moving, strict=True) if m)
        return BatchedLinear(inner, self.batch, of_x, of_v, out)
