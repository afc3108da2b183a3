"""The vector field under autograd: evaluate one stage with a graph of its own, pull one cotangent back through it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steptape._errors import GradientError, OptionError
from steptape.compat._torch import pull
from steptape.torch._autograd.ambient import Ambient
from steptape.torch._autograd.side_state import Restored


class Stage(NamedTuple):
    """One evaluation slope = f(t, y) and the graph that leads to it."""

    t: Tensor
    y: Tensor
    slope: Tensor


class Field:
    """func as a function of (t, y, params) whose cotangents in params add up in ``cotangents``.

    ``in_time``: whether cotangents in t are wanted too. ``side``: what to ask before an evaluation of the solve's.
    ``method``: the adjoint_method, for errors. ``checks``: whether ``check`` does, or who differentiates follows all.
    """

    def __init__(
        self,
        func: Any,
        ambient: Ambient,
        side: Restored,
        shape: torch.Size,
        params: Sequence[Tensor],
        in_time: bool,
        method: str = "aca",
        checks: bool = True,
    ):
        self.side = side
        self._func = func
        self._ambient = ambient
        self._shape = shape
        self._params = tuple(params)
        self._in_time = in_time
        self._method = method
        self._checked = not checks
        self.cotangents = [torch.zeros_like(p) for p in params]

    def value(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope at a scalar ``t`` and a flat ``y``, without a graph."""
        return self.slope(t, y.view(self._shape))

    def evaluate(self, t: Tensor, y: Tensor) -> Stage:
        """The stage at a scalar ``t`` and a flat ``y``, with its graph."""
        with torch.enable_grad():
            t = t.detach().requires_grad_() if self._in_time else t
            y = y.detach().view(self._shape).requires_grad_()
            stage = Stage(t, y, self.slope(t, y))
        self.check(stage.slope, (t, y))
        return stage

    def slope(self, t: Tensor, y: Tensor, **side: Any) -> Tensor:
        """f(t, y) for ``y`` in its own shape, as part of the caller's graph if there is one."""
        with self._ambient.around_func():
            slope = self._func(t, y, **side)
        if slope.shape != y.shape:
            raise OptionError(
                f"odeint_adjoint(func, ..., adjoint_method={self._method!r}): func returned shape "
                f"{tuple(slope.shape)} for a state of shape {tuple(y.shape)}. Return the shape of y from func."
            )
        return slope.to(y.dtype)

    def pull(self, stage: Stage, cotangent: Tensor) -> tuple[Tensor, Tensor | None]:
        """The cotangents of the stage's y and t, if wanted, from a flat one of its slope."""
        if self._in_time:
            in_y, in_t = self.pull_graph([(stage.slope, cotangent)], (stage.y, stage.t))
            return in_y, in_t
        return self.pull_graph([(stage.slope, cotangent)], (stage.y,))[0], None

    def pull_graph(self, outputs: Sequence[tuple[Tensor, Tensor]], inputs: Sequence[Tensor]) -> list[Tensor]:
        """The cotangents of ``inputs`` from pairs of an output and its own, flat; the parameters' are added up."""
        with shared_graphs_refused("odeint_adjoint", "func", self._method):
            return pull_into(self.cotangents, self._params, outputs, inputs)

    def check(self, slope: Tensor, known: Sequence[Tensor]) -> None:
        """Raise, the first time, if a slope depends on leaves besides ``known`` and the parameters."""
        if self._checked:
            return
        self._checked = True
        unknown = unknown_leaves(slope, (*known, *self._params))
        if unknown:
            raise GradientError(
                f"{lost(unknown, method=self._method)} Where parameters are sharded (FSDP), wrap the model that "
                "contains the solve, not func, with use_orig_params=True."
            )


@contextmanager
def shared_graphs_refused(function: str, func: str, method: str) -> Iterator[None]:
    """A block in which a graph that is used a second time is an error in words of ours."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, GradientError) or "a second time" not in str(error):
            raise
        raise GradientError(
            f"{function}({func}, ..., adjoint_method={method!r}): {func} uses a tensor that was computed from its "
            "parameters before this evaluation: before the solve, or in an evaluation that kept it. Evaluations cannot "
            "share its graph. Compute it in each of them, or pass it in adjoint_params instead of what it was computed "
            "from."
        ) from error


def pull_into(
    totals: Sequence[Tensor],
    params: Sequence[Tensor],
    outputs: Sequence[tuple[Tensor, Tensor]],
    inputs: Sequence[Tensor],
) -> list[Tensor]:
    """The cotangents of ``inputs`` from pairs of an output and its own; those of ``params`` add to the ``totals``."""
    pairs = [(x, cotangent.view_as(x)) for x, cotangent in outputs if x.requires_grad]
    if not pairs:
        return [torch.zeros_like(x) for x in inputs]
    ends, cotangents = zip(*pairs, strict=True)
    grads = pull(ends, cotangents, (*inputs, *params))
    for total, grad in zip(totals, grads[len(inputs) :], strict=True):
        if grad is not None:
            total.add_(grad)
    return [torch.zeros_like(x) if grad is None else grad for x, grad in zip(inputs, grads, strict=False)]


def lost(
    unknown: Sequence[Tensor],
    function: str = "odeint_adjoint",
    func: str = "func",
    method: str = "aca",
    reader: str | None = None,
) -> str:
    """What is wrong where ``reader``, or ``func`` itself in a call of ``function``, depends on ``unknown`` leaves."""
    shapes = ", ".join(str(tuple(x.shape)) for x in unknown)
    return (
        f"{function}({func}, ..., adjoint_method={method!r}): {reader or func} depends on tensors that require a "
        f"gradient but are not among its parameters (shapes: {shapes}), and their gradient would be lost. Pass all of "
        f"them: adjoint_params=(*{func}.parameters(), x, ...)."
    )


def unknown_leaves(output: Tensor, known: Sequence[Tensor]) -> list[Tensor]:
    """The leaves of the graph of ``output`` that it reaches other than through the ``known`` tensors."""
    leaves = {id(x) for x in known if x.is_leaf}
    seen = {x.grad_fn for x in known if x.grad_fn is not None}
    unknown, front = [], [output.grad_fn]
    while front:
        node = front.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in leaves:
            unknown.append(leaf)
        front.extend(parent for parent, _ in node.next_functions)
    return unknown
