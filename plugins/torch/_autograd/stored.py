"""Where func stores something that it computes, as for the loss, which has its gradient by back-propagation alone.

Plain calls are back-propagated through then. In others what is stored may be read, and is told from what has no
gradient: a backward pass through it is refused where it comes to the state.
"""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor

from steptape._errors import GradientError, UnsupportedError, is_final
from steptape.compat._torch_graphs import saved_tensors_are_hooked
from steptape.torch._autograd.graph import BY_HOST, Call
from steptape.torch._autograd.surroundings import Untouched
from steptape.torch._autograd.used import with_graph

T = TypeVar("T")


class Tried:
    """A call of func that the host can still be back-propagated through, ``is_plain`` if it would have been.

    ``untouched``: func before it was evaluated, once that is known.
    """

    def __init__(self, func: Any, is_plain: bool, untouched: Untouched | None):
        self.func, self.is_plain, self.untouched = func, is_plain, untouched


_TRIED: ContextVar[Tried | None] = ContextVar("tried", default=None)


def tried(func: Any) -> Tried | None:
    """The call of func that is tried, if there is one."""
    found = _TRIED.get()
    return found if found is not None and found.func is func else None


class StoredByFunc(Exception):
    """func stores what it computes, which has a gradient by back-propagation alone; ``found``: in a look at it."""

    def __init__(self, found: Sequence[weakref.ref[Tensor]] = ()):
        super().__init__()
        self.found = found


class StoredLate(Exception):
    """func has stored in a solve what it may have computed from the state, and the solve has built no graph of it."""


def check_stored(func: Any, stored: bool, found: Sequence[weakref.ref[Tensor]] = (), calls_back: bool = False) -> None:
    """Raise ``StoredByFunc`` if it does so in a call that the host can be back-propagated through.

    ``calls_back``: whether functions of the user's that the host calls may, which counts where that would have been.
    """
    call = tried(func)
    if call is not None and (stored or (calls_back and call.is_plain)):
        raise StoredByFunc(found)


def replayed_or(
    by_host: Callable[[], T],
    func: Any,
    replay: Callable[[], T],
    is_plain: bool = True,
    as_it_is: Callable[[], Untouched | None] = lambda: None,
) -> T:
    """``replay()``, or where that is refused, or func stores something, ``by_host()``, with all as it was before.

    ``is_plain``: whether the call asks for the host itself, and names no adjoint. ``as_it_is``: notes func; None if
    nothing evaluates it until a solve with its parameters is made, which does so.
    """
    # Hooks that act on what is saved are to act on states alone.
    if tried(func) is not None or (saved_tensors_are_hooked() and not is_plain):
        return replay()
    call = Tried(func, is_plain, as_it_is())
    token = _TRIED.set(call)
    found: Sequence[weakref.ref[Tensor]] = ()
    try:
        return replay()
    except StoredByFunc as stored:
        found = stored.found
    except (GradientError, UnsupportedError) as error:
        if is_final(error):
            raise
    finally:
        _TRIED.reset(token)
    if call.untouched is not None:
        call.untouched.restore()
        known = set(map(id, (*call.untouched.held.tensors, *call.untouched.side.buffers)))
        _check_gone(func, [x for x in found if id(x()) not in known])
    return by_host()


def _check_gone(func: Any, stored: Sequence[weakref.ref[Tensor]]) -> None:
    """Raise if something is still held that was stored when func was looked at, for it would be there twice."""
    if any(x() is not None for x in stored):
        gc.collect()
    if any(x() is not None for x in stored):
        raise UnsupportedError(
            f"func={func!r} stores what it computes, as for a loss, in a place where it is not found again, such as "
            "deep in containers, so that a first evaluation which shows what func uses cannot be taken back. Store it "
            "in an attribute, a list or a dictionary of func or of its object; or make the call as the host's own, "
            "outside of install(override=True)."
        )


class Apart:
    """Encloses the evaluations of a solve that builds no graph: that of what func stores ends at the state.

    ``inputs``: what the solve is differentiated in. To ask for one of them alone leads to that end too. ``in_time``:
    whether times are among them. ``is_open``: while the solve runs, in which hosts may ask for derivatives.
    """

    def __init__(self, call: Call, inputs: Sequence[Tensor], in_time: bool):
        self.call, self._in_time = call, in_time
        self._inputs = _Joined.apply(*(x for x in inputs if x.requires_grad))
        self.is_open = True

    def __call__(self, evaluate: functools.partial[Any]) -> Any:
        """An evaluation; as it is, where it is a part of a graph that is kept, and after the solve."""
        t, y, *others = evaluate.args
        if not self.is_open or (torch.is_grad_enabled() and (hasattr(y, "of_solve") or not y.is_leaf)):
            return evaluate()
        # A host that asks for a derivative does so of y itself.
        state = y if torch.is_grad_enabled() else y.detach()
        with torch.enable_grad():
            state = _End.apply(self, state, self._inputs)
            if self._in_time:
                t = _End.apply(self, t.detach(), self._inputs)
        return with_graph(functools.partial(evaluate.func, t, state, *others, **evaluate.keywords))


class _Joined(torch.autograd.Function):
    """A tensor whose graph leads to some others."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.count = len(tensors)
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, ...]:
        return (None,) * ctx.count


class _End(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, apart: Apart, y: Tensor, inputs: Tensor) -> Tensor:
        ctx.apart = apart
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.apart.is_open:
            return None, cotangent, None
        call = ctx.apart.call
        raise GradientError(
            f"{call}: a tensor that {call.func} computed from the state y and stored, in a list or an attribute, is "
            "differentiated. The solve builds no graph, so what it gains through y, or its time, would be lost. Let it "
            "be a part of the state, such as an integral; or detach() it, if it needs no gradient; or "
            f"{BY_HOST}."
        )
