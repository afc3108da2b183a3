"""Where func stores something that it computes, as for the loss, which has its gradient by back-propagation alone.

Plain calls are back-propagated through then. In others what is stored may be read, and is told from what has no
gradient: a backward pass through it is refused where it comes to the state.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor

from steptape._errors import GradientError, UnsupportedError
from steptape.torch._autograd.graph import Call, tensors_of
from steptape.torch._autograd.surroundings import Surroundings, Untouched
from steptape.torch._autograd.used import with_graph

T = TypeVar("T")
# The func of a call that the host would be back-propagated through, and can be still.
_FUNC: ContextVar[Any] = ContextVar("func", default=None)


class StoredByFunc(Exception):
    """func stores what it computes, which has a gradient by back-propagation alone."""


class StoredLate(Exception):
    """func has stored in a solve what it may have computed from the state, and the solve has built no graph of it."""


def check_stored(func: Any, stored: bool) -> None:
    """Raise ``StoredByFunc`` if it does so in a call that the host can be back-propagated through."""
    if stored and func is _FUNC.get():
        raise StoredByFunc


def replayed_or(by_host: Callable[[], T], func: Any, y0: Any, replay: Callable[[], T]) -> T:
    """``replay()``, or where that is refused, or func stores something, ``by_host()``, with all as it was before."""
    device = next((x.device for x in tensors_of(y0)), torch.device("cpu"))
    untouched, token = Untouched(Surroundings(device, func), func), _FUNC.set(func)
    try:
        return replay()
    except (StoredByFunc, GradientError, UnsupportedError):
        untouched.restore()
    finally:
        _FUNC.reset(token)
    return by_host()


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
            "be a part of the state, such as an integral; or detach() it, if it needs no gradient; or differentiate "
            "with the host's own function."
        )
