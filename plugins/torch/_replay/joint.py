"""A step of an explicit Runge–Kutta method together with its vector-Jacobian product, compiled as one function."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steptape.compat import _torch_compile


class CannotCompile(Exception):
    """Raised where a step cannot be compiled, saying why."""


class Kind(NamedTuple):
    """What kind of step there is.

    ``rows``: those of the tableau. ``stages``: how many are taken. ``carried``: whether the first slope is given.
    ``inside``: whether slopes have cotangents of their own. ``autocast``: that of func, if any.
    """

    rows: tuple[tuple[float, ...], ...]
    stages: int
    carried: bool
    inside: bool
    autocast: tuple[Any, ...] | None

    def step(self) -> Callable[..., tuple[Tensor, ...]]:
        """A function of func, and of when it is evaluated, the step's size, its start, and its first slope.

        Returns the end of the step, and its slopes if they are asked for.
        """
        rows, stages, _, inside, autocast = self

        def step(func: Any, times: Tensor, h: Tensor, y: Tensor, first: Tensor | None) -> tuple[Tensor, ...]:
            k = [] if first is None else [first]
            for i in range(len(k), stages):
                place = _moved(y, h, rows[i], k)
                if autocast is None:
                    slope = func(times[i], place)
                else:
                    with torch.autocast(*autocast):
                        slope = func(times[i], place)
                k.append(slope.to(y.dtype).expand_as(y))
            end = _moved(y, h, rows[-1], k)
            return (end, torch.stack(k)) if inside else (end,)

        return step


def _moved(y: Tensor, h: Tensor, row: Sequence[float], k: Sequence[Tensor]) -> Tensor:
    for a, slope in zip(row, k, strict=False):
        if a:
            y = y + (h * a) * slope
    return y


class Own(NamedTuple):
    """What a step is taken from: when func is evaluated, its size, its start, and its ``first`` slope if given."""

    times: Tensor
    h: Tensor
    y: Tensor
    first: Tensor | None = None


class Asked(NamedTuple):
    """What is asked of a step: the cotangent of its end, and the state it should end at.

    Where slopes have cotangents, ``block``: those of the start and of each slope; ``weights``: the shares of the start
    and of each slope in an output inside the step.
    """

    end: Tensor
    following: Tensor
    block: Tensor | None = None
    weights: Tensor | None = None


class Pulled(NamedTuple):
    """What a step gives: the cotangents of its start and its first slope, and the ``totals`` of func's tensors.

    ``gaps``: the largest entries of its end less the state it should be, of its end less its start, and of its end.
    ``output``: the one inside it.
    """

    start: Tensor
    first: Tensor | None
    end: Tensor
    gaps: Tensor
    output: Tensor | None
    totals: Sequence[Tensor]


class Joint:
    """A captured step with its backward pass.

    ``places``: where among the ``count`` inputs of the graph is what a step is taken from; the others are tensors that
    func uses. ``wanted``: those of them to differentiate in. ``used``: of these, those that the step depends on.
    ``is_checked``: whether what it is compiled to has been compared with the step as it is.
    """

    def __init__(self, graph: Any, kind: Kind, count: int, places: Sequence[int | None], wanted: Sequence[int]):
        self._graph, self._kind, self._places, self._wanted = graph, kind, places, wanted
        self._others = [i for i in range(count) if i not in places]
        self.used: list[bool] = []
        self.is_checked = False
        self._lock = threading.Lock()
        self._run: Callable[..., Any] | None = None

    def compile(self, own: Own, asked: Asked, rest: Sequence[Tensor], options: dict[str, Any]) -> None:
        """Compile it, once, for what it will be called with; raise ``CannotCompile`` where it cannot be."""
        with self._lock:
            if self._run is None:
                self._run = self._compiled(_flat(own, asked, rest), options)

    def _compiled(self, given: Sequence[Tensor], options: dict[str, Any]) -> Callable[..., Any]:
        try:
            with _torch_compile.LOCK:
                with torch.enable_grad():
                    graph = _torch_compile.graph_of(self._results, given)
                if _torch_compile.draws(graph):
                    raise CannotCompile("it draws random numbers, which would be others than those of the solve")
                return _torch_compile.compiled(graph, given, options)
        except CannotCompile:
            raise
        # Whatever torch raises where it traces and compiles: as it is, func was evaluated without an error.
        except Exception as error:
            raise CannotCompile(in_short(error)) from error

    def __call__(self, own: Own, asked: Asked, rest: Sequence[Tensor]) -> Pulled:
        """Take a step and pull through it; ``rest``: what the gradients are added to, and func's tensors."""
        assert self._run is not None
        start, end, gaps, *found = self._run(*_flat(own, asked, rest))
        first = found.pop(0) if self._kind.carried else None
        output = found.pop(0) if self._kind.inside else None
        return Pulled(start, first, end, gaps, output, found)

    def _results(self, *given: Tensor) -> tuple[Tensor, ...]:
        """What a call takes up."""
        own, asked, totals, inputs = self._taken_up(given)
        versions = [x._version for x in inputs]
        end, *slopes = self._graph(*inputs)
        if [x._version for x in inputs] != versions:
            raise CannotCompile("it changes a tensor in place that it has not made, such as a buffer")
        leaves = [inputs[self._others[i]] for i in self._wanted]
        in_y, in_first, *grads = _grads(own, asked, end, slopes, leaves)
        self.used = [grad is not None for grad in grads]
        with torch.no_grad():
            gaps = [end - asked.following, end - own.y, end]
            norms = torch.stack([torch.linalg.vector_norm(x.reshape(-1), torch.inf) for x in gaps])
            results = [in_y if asked.block is None else in_y + asked.block[0], end, norms]
            if in_first is not None:
                results.append(in_first)
            if asked.weights is not None:
                results.append(asked.weights[0] * own.y + torch.tensordot(asked.weights[1:], slopes[0], 1))
            results += [total if g is None else total + g for total, g in zip(totals, grads, strict=True)]
        return tuple(x.detach() for x in results)

    def _taken_up(self, given: Sequence[Tensor]) -> tuple[Own, Asked, Sequence[Tensor], list[Any]]:
        """What the list consists of, with the leaves to differentiate in; and the inputs of the graph."""
        waiting = iter(given)
        times, h, y = (next(waiting).detach() for _ in range(3))
        first = next(waiting).detach().requires_grad_() if self._kind.carried else None
        own = Own(times, h, y.requires_grad_(), first)
        asked = Asked(*(next(waiting) for _ in range(4 if self._kind.inside else 2)))
        totals = [next(waiting) for _ in self._wanted]
        others = [x.detach().requires_grad_(i in self._wanted) for i, x in enumerate(waiting)]
        inputs = dict(zip(self._others, others, strict=True))
        for place, x in zip(self._places, own, strict=True):
            if place is not None and x is not None:
                inputs[place] = x
        return own, asked, totals, [inputs[i] for i in range(len(inputs))]


def in_short(error: Exception) -> str:
    """What torch says of it, for the most part."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0].rstrip('.')}"


def cotangents_of(asked: Asked) -> tuple[Tensor, ...]:
    """Those of what a captured step returns."""
    return (asked.end,) if asked.block is None else (asked.end, asked.block[1:])


def _flat(own: Own, asked: Asked, rest: Sequence[Tensor]) -> list[Tensor]:
    return [*(x for x in (*own, *asked) if x is not None), *rest]


def _grads(own: Own, asked: Asked, end: Tensor, slopes: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Any]:
    """The cotangents of the start, of the first slope, and of the ``leaves``."""
    pairs = [(x, c) for x, c in zip((end, *slopes), cotangents_of(asked), strict=True) if x.requires_grad]
    ends, cotangents = zip(*pairs, strict=True)
    first = [] if own.first is None else [own.first]
    grads = torch.autograd.grad(ends, [own.y, *first, *leaves], cotangents, allow_unused=True)
    return [grads[0], grads[1] if first else None, *grads[1 + len(first) :]]
