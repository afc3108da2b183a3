"""The vector field under autograd: evaluate one stage with a graph of its own, pull one cotangent back through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steptape.compat._torch import place_in_order
from steptape.torch._autograd.graph import Parameters, check_hooks
from steptape.torch._autograd.leaves import LeafCheck, is_glanced_at, is_looked_at, leaf_of
from steptape.torch._autograd.side import Note, Restored
from steptape.torch._autograd.surroundings import Surroundings


class Stage(NamedTuple):
    """One evaluation slope = f(t, y) and the graph that leads to it; ``slope``: or that graph's end alone.

    ``nodes``: how many were made for it, where it was kept from the solve.
    """

    t: Tensor
    y: Tensor
    slope: Any
    nodes: int = 0


class Field:
    """func as a function of (t, y, params) whose cotangents in params add up in ``parameters``.

    ``side``: what to ask before an evaluation of the solve's, of which the tape has ``notes``. ``in_time``: whether
    cotangents in t are wanted too. ``checks``: whether what func depends on is looked at, in the first evaluation and
    now and then; not where who differentiates follows all.
    """

    def __init__(
        self,
        func: Any,
        surroundings: Surroundings,
        notes: Sequence[Sequence[Note]],
        shape: torch.Size,
        parameters: Parameters,
        in_time: bool,
        checks: bool = True,
    ):
        self.side, self.parameters = Restored(surroundings.side, notes), parameters
        self._func = func
        self._surroundings = surroundings
        self._shape = shape
        self._in_time = in_time
        self._check_leaves = LeafCheck(parameters) if checks else None
        self._looks, self._glances = checks, False
        # One of another size is likely to depend on something else.
        self._sizes: set[int] = set()

    def value(self, t: Tensor, y: Tensor) -> Tensor:
        """The slope at a scalar ``t`` and a flat ``y``, without a graph."""
        return self.slope(t, y.detach().view(self._shape))

    def evaluate(self, t: Tensor, y: Tensor, first: bool = False) -> Stage:
        """The stage at a scalar ``t`` and a flat ``y``, with its graph; ``first``: whether it is that of the solve."""
        with torch.enable_grad():
            t = t.detach().requires_grad_() if self._in_time else t
            y = leaf_of(self.parameters.solve, y.view(self._shape))
            return Stage(t, y, self._checked(self.slope, t, y, first))

    def within(self, t: Tensor, y: Tensor, first: bool = False) -> Tensor:
        """What func returns at ``y`` in its own shape, as a part of a larger graph, checked as a stage is."""
        if self.parameters.rough:
            # Each casts weights anew: the gradients of one cast are summed in few digits.
            torch.clear_autocast_cache()
        return self._checked(self.returned, t, y, first)

    def _checked(self, evaluate: Callable[[Tensor, Tensor], Tensor], t: Tensor, y: Tensor, first: bool) -> Tensor:
        before = place_in_order()
        slope = evaluate(t, y)
        self._note_size(place_in_order() - before)
        self.check(slope, t, y, first)
        check_hooks((y,), self.parameters.call)
        return slope

    def slope(self, t: Tensor, y: Tensor) -> Tensor:
        """f(t, y) for ``y`` in its own shape, as part of the caller's graph if there is one, in the dtype of ``y``."""
        return self.returned(t, y).to(y.dtype)

    def returned(self, t: Tensor, y: Tensor, **side: Any) -> Tensor:
        """The same as func returns it, which under autocast may be in another dtype."""
        with self._surroundings.around_func(), self.parameters.in_place():
            slope = self._func(t, y, **side)
        # The arithmetic of a fixed grid adds what broadcasts.
        return slope if slope.shape == y.shape else slope.expand(y.shape)

    def pull(self, stage: Stage, cotangent: Tensor) -> tuple[Tensor, Tensor | None]:
        """The cotangents of the stage's y and t, if wanted, from that of its slope, (*batch, *shape)."""
        if not self._in_time:
            return self.parameters.pull_one(stage.slope, cotangent, (stage.y,))[0], None
        in_y, in_t = self.parameters.pull_one(stage.slope, cotangent, (stage.y, stage.t))
        return in_y, in_t

    def check_kept(self, stages: Iterable[Stage | None]) -> None:
        """The same as of a stage that is evaluated, of those whose graphs were kept."""
        for stage in stages:
            if stage is None:
                continue
            self._note_size(stage.nodes)
            if self._looks or self._glances:
                with torch.enable_grad():
                    self.check(stage.slope, stage.t, stage.y)

    def _note_size(self, nodes: int) -> None:
        if nodes not in self._sizes:
            self._sizes.add(nodes)
            self._glances = True

    def look_at(self, n: int, steps: int, stages: int) -> None:
        """Before step n: whether to look at what its next evaluation depends on, as func may use other tensors now."""
        if is_looked_at(n, steps):
            self._looks = True
        elif is_glanced_at(n, stages):
            self._glances = True

    def check(self, slope: Tensor, t: Tensor, y: Tensor, first: bool = False) -> None:
        """Raise, the next time, if a slope depends on leaves besides ``t``, ``y`` and the parameters.

        ``first``: whether it is the first evaluation of the solve, which must use what it used there.
        """
        check = self._check_leaves
        if check and self._glances and not (self._looks or first) and slope.grad_fn is not None:
            self._looks = not check.glance(slope, (t, y))
        if check and (self._looks or first):
            check([slope], (t, y), lambda: [self._unnoticed(t, y)], first)
        self._looks = self._glances = False

    def _unnoticed(self, t: Tensor, y: Tensor) -> Tensor:
        with self._surroundings.side.kept():
            return self.slope(t, y)
