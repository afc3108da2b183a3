"""The graphs of accepted steps, kept from the forward pass: the backward pass pulls each once and evaluates nothing.

They are built where func is evaluated anyway, from leaves of their own, so that no graph leads to another one. The
states are on the tape all the same, for what comes after the graphs are gone.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from steptape.compat._torch_graphs import end_of
from steptape.torch._autograd.field import Stage
from steptape.torch._autograd.graph import tensors_of
from steptape.torch._autograd.leaves import leaf_of
from steptape.torch._tape.ledger import Ledger, Token

T = TypeVar("T")


class Evaluation(NamedTuple):
    """When func was evaluated, and its graph if that is kept; ``tokens``: of what this holds of a ledger's."""

    t: Tensor
    stage: Stage | None = None
    tokens: tuple[Token, ...] = ()


class Piece(NamedTuple):
    """A step of the host's, or a half of one: from its start to its end.

    ``chained``: whether it starts from the end of the one before, and not from leaves.
    """

    start: tuple[Tensor, ...]
    end: tuple[Tensor, ...]
    chained: bool
    tokens: tuple[Token, ...] = ()


# Of how many steps of a host a graph is: each run of autograd takes as long as a small step, and frees its graph.
_CHAIN = 16
# The last tries: a whole step and its two halves.
_TRIES = 3


class _Recent(NamedTuple):
    """The state ``after`` a piece, its ``end`` with the graph, and its place in the chain."""

    after: tuple[Tensor, ...]
    end: tuple[Tensor, ...]
    place: int

    def leads_to(self, state: tuple[Tensor, ...]) -> bool:
        return len(state) == len(self.after) and all(x is y for x, y in zip(state, self.after, strict=True))


class Graphs:
    """What keeps graphs in a solve, and after it those of the ``steps`` that it kept, each a tuple of its pieces.

    ``in_time``: whether evaluations are functions of their time, too. ``ledger``: counts what is held; where it has a
    limit, graphs are built as long as there is room for them. ``solve``: what their leaves are known by.
    """

    def __init__(self, in_time: bool = False, ledger: Ledger | None = None):
        self.in_time, self.ledger = in_time, ledger
        self.steps: dict[int, Sequence[Any]] = {}
        self._recent: deque[_Recent] = deque(maxlen=_TRIES)
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
        slope = func(t, leaf)
        # Of another shape, the replay sees to it; without a graph, it may be one taken over from elsewhere.
        if not slope.requires_grad or slope.shape != y.shape:
            return slope, None
        end = slope if slope.dtype == y.dtype else slope.to(y.dtype)
        # Where times move, what they gain is asked of the slopes.
        return slope, Stage(t, leaf, end if self.in_time else end_of(end))

    def take(
        self, step: Callable[..., tuple[Tensor, Iterable[Tensor]]], state: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], Piece | None]:
        """The state after a step from ``state``, and the step with its graph if there is room for it."""
        before = next((one for one in self._recent if one.leads_to(state)), None)
        chained = before is not None and before.place + 1 < _CHAIN

        def run() -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            start = before.end if before and chained else tuple(leaf_of(self.solve, x) for x in state)
            y, extra = step(start[0], start[1:])
            return start, (y, *extra)

        made, tokens = self._built(run, lambda made: (*made[0], *made[1]))
        after = tuple(x.detach() for x in made[1])
        if tokens is None:
            return after, None
        self._recent.append(_Recent(after, made[1], before.place + 1 if before and chained else 0))
        return after, Piece(*made, chained, tokens)

    def take_out(self, step: int, retain: bool) -> Sequence[Any] | None:
        """Those of a step, if they are kept; ``retain``: and go on keeping them."""
        return self.steps.get(step) if retain else self.steps.pop(step, None)

    def are_of(self, steps: int) -> bool:
        """Whether they are those of so many steps."""
        return len(self.steps) == steps

    def keep(self, step: int, pieces: Sequence[Any]) -> None:
        """Keep those of a step."""
        self.steps[step] = pieces

    def finish(self) -> None:
        """Let go, after the solve, of what another step would go on from."""
        self._recent.clear()

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
        self.steps = {}
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
