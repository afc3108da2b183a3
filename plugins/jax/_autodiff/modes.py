"""A function given with its vector-Jacobian product, differentiated in every mode and to every order.

JAX derives reverse mode from forward mode by transposing it, which it cannot do to a loop of unknown length. Here the
transpose is given: the tangent of y = f(x) is an operation that is linear in it, which forward mode evaluates, as
J(x) v, and whose transpose is J(x)^T w. Both may be differentiated forward, and that is enough for all that follows:
the derivative of J(x)^T w in x is symmetric, so that its transpose is itself, d/de J(x + e v)^T w, forward over
reverse, and in w it is J(x)^T, whose transpose is J(x) v. These are again a function and its vector-Jacobian product.

Values are in flat sequences, and so are the flags that mark some of them.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from steptape.jax._autodiff.batches import Batch, BatchedFunction, BatchedLinear

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


class Derived(NamedTuple):
    """A function's derivative: the Jacobian, of the values that ``moving`` marks, and what it is found with.

    ``function`` gives the values and, after them, what ``linear()`` is told beside x; it is asked for afterwards.
    """

    function: "Function"
    linear: Callable[[], Linear]
    moving: Flags | None = None  # None for all


@runtime_checkable
class Function(Protocol):
    """A function that knows its own derivative."""

    def value(self, x: Arrays) -> Arrays:
        """f(x)."""

    def derived(self, mask: Flags) -> Derived:
        """The derivative in those of x that are marked."""


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
    """The Jacobian of ``value`` in those of x that are marked, as JAX has it in either mode: a ``Linear``."""

    value: Callable[[Arrays], Sequence]
    mask: Flags

    def push(self, x: Arrays, v: Arrays) -> Arrays:
        """J(x) v."""
        return along(self.value, x, self.mask, v)[1]

    def pull(self, x: Arrays, w: Arrays) -> Arrays:
        """J(x)^T w."""
        return pulled(self.value, x, self.mask)[1](w)

    def of_push(self, in_x: Flags, in_v: Flags) -> "Native":
        """JAX's own."""
        return Native(lambda xv: self.push(xv[: len(in_x)], xv[len(in_x) :]), in_x + in_v)

    def of_pull(self, in_x: Flags, in_w: Flags) -> "Native":
        """JAX's own."""
        return Native(lambda xw: self.pull(xw[: len(in_x)], xw[len(in_x) :]), in_x + in_w)


@dataclasses.dataclass(frozen=True, eq=False)
class _Pull:
    """J(x)^T w as a function of (x, w)."""

    linear: Linear
    count: int  # of x

    def value(self, xw: Arrays) -> Arrays:
        return self.linear.pull(xw[: self.count], xw[self.count :])

    def derived(self, mask: Flags) -> Derived:
        return Derived(self, lambda: self.linear.of_pull(mask[: self.count], mask[self.count :]))


def call(function: Function, x: Arrays) -> Sequence:
    """f(x), to be differentiated as the function says."""
    return _bind(function, function.value, x)


def _bind(function: Function, value: Callable, x: Arrays) -> Sequence:
    jaxpr = jax.make_jaxpr(lambda *x: list(value(x)))(*x)
    return _call_p.bind(*x, function=function, jaxpr=jaxpr)


def _call(*x: Any, function: Function, jaxpr: ClosedJaxpr) -> Sequence:
    return jaxpr_as_fun(jaxpr)(*x)


def _call_shapes(*_: Any, function: Function, jaxpr: ClosedJaxpr) -> tuple:
    return jaxpr.out_avals, jaxpr.effects


def _call_jvp(x, tangents, *, function, jaxpr):
    mask = tuple(type(t) is not ad.Zero for t in tangents)
    function, linear, moving = function.derived(mask)
    values = call(function, x)
    y, more = values[: len(jaxpr.out_avals)], values[len(jaxpr.out_avals) :]
    moving = moving or (True,) * len(y)
    out = tuple((jnp.shape(a), jnp.result_type(a)) for a in marked(y, moving))
    v = marked(tangents, mask)
    pushed = iter(_push_p.bind(*x, *more, *v, linear=linear(), count=len(x) + len(more), out=out) if out else ())
    return y, [
        next(pushed) if m else ad.Zero(a.to_tangent_aval()) for a, m in zip(jaxpr.out_avals, moving, strict=True)
    ]


def _call_batch(size, name, _, x, axes, *, function, jaxpr):
    if all(axis is None for axis in axes):
        return _call_p.bind(*x, function=function, jaxpr=jaxpr), (None,) * len(jaxpr.out_avals)
    batched = BatchedFunction(function, Batch(size, name), tuple(axes))
    return _bind(batched, lambda x: batched.through(jaxpr_as_fun(jaxpr), x), x), batched.axes


def _push(*args: Any, linear: Linear, count: int, out: tuple) -> Sequence:
    return linear.push(args[:count], args[count:])


def _push_shapes(*_: Any, linear: Linear, count: int, out: tuple) -> Sequence:
    return [jax.core.ShapedArray(*each) for each in out]


def _push_jvp(args, tangents, *, linear, count, out):
    values = _push_p.bind(*args, linear=linear, count=count, out=out)
    mask = tuple(type(t) is not ad.Zero for t in tangents)
    if not any(mask[:count]):
        v = map(ad.instantiate_zeros, tangents[count:])
        return values, _push_p.bind(*args[:count], *v, linear=linear, count=count, out=out)
    linear = linear.of_push(mask[:count], mask[count:])
    return values, _push_p.bind(*args, *marked(tangents, mask), linear=linear, count=len(args), out=out)


def _push_transpose(cotangents, *args, linear, count, out):
    w = map(ad.instantiate_zeros, cotangents)
    return [None] * count + list(call(_Pull(linear, count), (*args[:count], *w)))


def _push_batch(size, name, _, args, axes, *, linear, count, out):
    if all(axis is None for axis in axes):
        return _push_p.bind(*args, linear=linear, count=count, out=out), (None,) * len(out)
    linear = BatchedLinear(linear, Batch(size, name), tuple(axes[:count]), tuple(axes[count:]), ())
    out = tuple(((size, *shape), dtype) for shape, dtype in out)
    return _push_p.bind(*args, linear=linear, count=count, out=out), (0,) * len(out)


_call_p, _push_p = Primitive("steptape_call"), Primitive("steptape_push")
_call_p.multiple_results = _push_p.multiple_results = True

_call_p.def_impl(_call)
_call_p.def_effectful_abstract_eval(_call_shapes)
ad.primitive_jvps[_call_p] = _call_jvp
batching.axis_primitive_batchers[_call_p] = _call_batch
mlir.register_lowering(_call_p, mlir.lower_fun(_call, multiple_results=True))

_push_p.def_impl(_push)
_push_p.def_abstract_eval(_push_shapes)
ad.primitive_jvps[_push_p] = _push_jvp
ad.primitive_transposes[_push_p] = _push_transpose
batching.axis_primitive_batchers[_push_p] = _push_batch
mlir.register_lowering(_push_p, mlir.lower_fun(_push, multiple_results=True))
