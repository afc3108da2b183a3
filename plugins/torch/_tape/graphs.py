"""The graphs of accepted steps, kept from the forward pass: the backward pass pulls each once and evaluates nothing.

They are built where func is evaluated anyway, from leaves of their own, so that no graph leads to another one. The
states are on the tape all the same, for what comes after the graphs are gone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from steptape.compat._torch import place_in_order
from steptape.compat._torch_graphs import end_of
from steptape.torch._autograd.field import Stage
from steptape.torch._autograd.graph import tensors_of
from steptape.torch._autograd.leaves import leaf_of
from steptape.torch._tape.ledger import Ledger, Token

T = TypeVar("T")
# Its number, and the states that it starts from and ends at.
Step = tuple[int, tuple[Tensor, ...], tuple[Tensor, ...]]


class Evaluation(NamedTuple):
    """When func was evaluated, and its graph if that is kept; ``tokens``: of what this holds of a ledger's."""

    t: Tensor
    stage: Stage | None = None
    tokens: tuple[Token, ...] = ()


class Whole(NamedTuple):
    """A solve of the host's as one graph: from what it was given to what it returns.

    ``steps``: a few, by their number, and the states in the graph that each starts from and ends at. ``glances``: of
    more steps where a state is in the graph, and an evaluation there.
    """

    given: tuple[Tensor, ...]
    results: tuple[Tensor, ...]
    steps: Sequence[Step]
    tokens: tuple[Token, ...] = ()
    glances: Sequence[tuple[int, Any, Any]] = ()


class Graphs:
    """What keeps graphs in a solve, and after it those of the ``steps`` that it kept, or that of the ``whole`` solve.

    ``in_time``: whether evaluations are functions of their time, too. ``ledger``: counts what is held; where it has a
    limit, graphs are built as long as there is room for them. ``solve``: what their leaves are known by.
    """

    def __init__(self, in_time: bool = False, ledger: Ledger | None = None):
        self.in_time, self.ledger = in_time, ledger
        self.steps: dict[int, Sequence[Any]] = {}
        self.whole: Whole | None = None
        self.solve = object()
        self._most = 0
        self._full = False

    def evaluate(self, func: Callable[[Tensor, Tensor], Tensor], t: Tensor, y: Tensor) -> tuple[Tensor, Evaluation]:
        """What func returns, and its evaluation with a graph if there is room for it."""
        if self.ledger is None:
            with torch.enable_grad():
                slope, stage = self._evaluated(func, t, y)
            return slope.detach(), Evaluation(t, stage)
        (slope, stage), tokens = self._built(lambda: self._evaluated(func, t, y), lambda made: tensors_of(made[1]))
        return slope.detach(), Evaluation(t, None if tokens is None else stage, tokens or ())

    def _evaluated(self, func: Callable[[Tensor, Tensor], Tensor], t: Tensor, y: Tensor) -> tuple[Tensor, Stage | None]:
        t, leaf = leaf_of(self.solve, t) if self.in_time else t, leaf_of(self.solve, y)
        before = place_in_order()
        slope = func(t, leaf)
        nodes = place_in_order() - before
        # Of another shape, the replay sees to it; without a graph, it may be one taken over from elsewhere.
        if not slope.requires_grad or slope.shape != y.shape:
            return slope, None
        end = slope if slope.dtype == y.dtype else slope.to(y.dtype)
        # Where times move, what they gain is asked of the slopes.
        return slope, Stage(t, leaf, end if self.in_time else end_of(end), nodes)

    def keep_whole(
        self,
        solve: Callable[..., Sequence[Tensor]],
        given: Sequence[Tensor],
        steps: Sequence[Step],
        glances: Sequence[tuple[int, Any, Any]] = (),
    ) -> tuple[Tensor, ...]:
        """What ``solve(*given)`` returns, its graph kept; ``steps``, ``glances``: to be filled with a few."""
        leaves = tuple(leaf_of(self.solve, x) for x in given)
        results, tokens = self._built(lambda: tuple(solve(*leaves)), lambda made: made)
        if tokens is not None:
            self.whole = Whole(leaves, results, steps, tokens, glances)
        return tuple(x.detach() for x in results)

    @property
    def keeps_all(self) -> bool:
        """Whether there is room for any graph."""
        return not self._full and (self.ledger is None or self.ledger.limit is None)

    def take_out(self, step: int, retain: bool) -> Sequence[Any] | None:
        """Those of a step, if they are kept; ``retain``: and go on keeping them."""
        return self.steps.get(step) if retain else self.steps.pop(step, None)

    def are_of(self, steps: int) -> bool:
        """Whether they are those of so many steps."""
        return self.whole is not None or len(self.steps) == steps

    def keep(self, step: int, pieces: Sequence[Any]) -> None:
        """Keep those of a step."""
        self.steps[step] = pieces

    def let_go(self) -> bool:
        """Let go of those of a step to make room for others, and build no more; False if there are none."""
        self._full = True
        if self.steps:
            self.steps.popitem()
            return True
        return False

    def handed_over(self) -> Graphs:
        """The same graphs, which are no longer here: each is pulled once."""
        others = copy.copy(self)
        self.steps, self.whole = {}, None
        return others

    def _built(self, run: Callable[[], T], held: Callable[[T], Iterable[Tensor]]) -> tuple[T, tuple[Token, ...] | None]:
        """What ``run()`` returns with its graph, and the tokens of what is ``held`` of it; None if there is no room."""
        ledger = self.ledger
        if ledger is None:
            with torch.enable_grad():
                return run(), ()
        if self._full or not ledger.has_room_for_graph(self._most):
            self._full = True
            return run(), None
        before = ledger.used
        with torch.enable_grad(), ledger.counting() as counted:
            made = run()
        tokens = tuple(ledger.token(x) for x in held(made))
        self._most = max(self._most, ledger.used - before)
        if counted.complete and ledger.has_room_for_graph(0):
            return made, tokens
        self._full = True
        return made, None
