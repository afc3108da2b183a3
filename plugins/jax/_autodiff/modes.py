"""A function given with its vector-Jacobian product, differentiated in every mode and to every order.

JAX derives reverse mode from forward mode by transposing it, which it cannot do to a loop of unknown length. Here the
transpose is given: the tangent of y = f(x) is an operation that is linear in it, which forward mode evaluates, as
J(x) v, and whose transpose is J(x)^T w. Both may be differentiated forward, and that is enough for all that follows:
the derivative of J(x)^T w in x is symmetric, so that its transpose is itself, d/de J(x + e v)^T w, forward over
reverse, and in w it is J(x)^T, whose transpose is J(x) v. These are again a function and its vector-Jacobian product.
That is so of a true Jacobian; one by a rule of the user's is pulled back by JAX itself (``jacobians.Apart``).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from steptape.jax._autodiff.batches import Batch, BatchedFunction, BatchedLinear
from steptape.jax._autodiff.jacobians import Arrays, Flags, Linear, marked


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
