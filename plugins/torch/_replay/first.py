"""The first evaluation of a solve, taken again, for what it shows of func.

A replay evaluates func as the solve left it. Where that is not as the solve found it, since evaluations count, list or
switch something, the first evaluation tells whether it matters: by its values, and by their derivatives, which may
differ where its values do not, as behind a last layer of zeros.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, NoReturn

import torch
from torch import Tensor

from steptape._errors import GradientError, final
from steptape.compat._torch import uncompiled
from steptape.torch._autograd.graph import Call, Parameters, tensors_of
from steptape.torch._autograd.held import Held
from steptape.torch._autograd.snapshot import given_back
from steptape.torch._autograd.surroundings import Surroundings
from steptape.torch._hosts.base import Solve
from steptape.torch._replay.checks import are_close, check_derivatives, check_values, eps_of, is_linear


class FirstEvaluation:
    """That of a solve from what it is ``given``, by func in its ``surroundings``."""

    def __init__(self, solve: Solve, given: Sequence[Tensor], surroundings: Surroundings, parameters: Parameters):
        self._solve, self._given, self._surroundings, self._parameters = solve, given, surroundings, parameters

    def takes_multiples(self) -> bool:
        """Whether no hook, and no function of the user's, makes something else of a cotangent than a multiple."""
        if self._solve.before is None or not self._solve.before.traits.custom:
            return True
        with self._taken(nullcontext()) as (leaves, values):
            return is_linear(values, [*leaves, *self._parameters.params])

    def note(self, before: Held) -> None:
        """After the solve: its derivatives where func is as it was ``before``, if that is not how it is now."""
        around = self._surroundings
        assert around.first is not None
        # What func raises here it is to raise in the backward pass.
        with suppress(Exception), self._taken(before.as_it_was(around.lent)) as taken:
            around.first = around.first._replace(derivatives=self._derivatives(*taken))

    def check(self) -> None:
        """Raise if func returns other values than it did, or others by their derivatives."""
        first = self._surroundings.first
        if first is not None:
            with self._taken(given_back(first.left)) as (leaves, values):
                check_values(values, first.values, self._parameters)
                if first.derivatives is not None:
                    check_derivatives(self._derivatives(leaves, values), first.derivatives, self._parameters)

    @contextmanager
    def _taken(self, how: AbstractContextManager[Any]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """A block with what it is given, as leaves, and what func returns in it, with its graph.

        What func's backward pass changes in the block is as it was after it, too.
        """
        around, values = self._surroundings, list[Tensor]()

        def enclose(evaluate: Any) -> Any:
            out = evaluate()
            values.extend(tensors_of(out))
            return out

        with around.looked_at(), how:
            with uncompiled(), around.around_func(), self._parameters.in_place(), torch.enable_grad():
                if around.first is not None:
                    around.side.set(around.first.note)
                leaves = [x.detach().requires_grad_() for x in self._given]
                solve = self._solve.around(enclose) if around.first is None else around.first.around(enclose)
                solve.evaluated(0, *leaves)
            yield leaves, values

    def _derivatives(self, leaves: Sequence[Tensor], values: Sequence[Tensor]) -> list[Tensor]:
        """Of each its sum, another one, and what they may differ by."""
        values = [x for x in values if x.requires_grad]
        inputs = [x for x in (*leaves, *self._parameters.params) if x.requires_grad]
        if not values:
            return []
        # In no direction in which they are likely to vanish.
        cotangents = [torch.linspace(1, 2, x.numel(), device=x.device).view(x.shape).to(x.dtype) for x in values]
        found = torch.autograd.grad(values, inputs, cotangents, allow_unused=True)
        return [_sums_of(x, self._parameters.rough) for x in found if x is not None]


class Repeats:
    """Encloses evaluations in a solve that keeps graphs: the first one returns what it returned when it was looked at.

    ``value``: that, of the first call in it, for what was given at its ``place``; a solver's first step may start from
    elsewhere. ``rough``: whether it is of less precision than its dtype.
    """

    def __init__(self, value: Tensor, place: Sequence[Tensor], call: Call, rough: bool):
        self._value: Tensor | None = value
        self._place, self._call, self._rough = place, call, rough

    def __call__(self, evaluate: functools.partial[Any]) -> Any:
        out, value = evaluate(), self._value
        if value is not None:
            self._value = None
            found = next(tensors_of(out)).detach()
            if not torch.equal(found, value) and not are_close([found], [value], self._rough) and self._is_at(evaluate):
                _refuse_counting(self._call)
        return out

    def _is_at(self, evaluate: functools.partial[Any]) -> bool:
        given = list(tensors_of(evaluate.args))
        return len(given) == len(self._place) and all(map(torch.equal, given, self._place))


def _refuse_counting(call: Call) -> NoReturn:
    text = (
        f"{call}: {call.func} returned other values when it was evaluated again at the same time and state. It goes by "
        "something that evaluations advance and that cannot be set back, such as an iterator, which a look at it "
        "before the solve has advanced too. Make it a function of its arguments and of what can be: numbers, lists, "
        "dictionaries, queues of numbers, generators of random numbers; or differentiate with the host's own function."
    )
    raise final(GradientError(text))


def _sums_of(x: Tensor, rough: bool) -> Tensor:
    eps = eps_of(x, rough)
    x = x.to_dense().reshape(-1)
    x = (torch.view_as_real(x).reshape(-1) if x.is_complex() else x).double()
    weighted = x @ torch.linspace(1, 2, len(x), device=x.device, dtype=x.dtype)
    return torch.stack([x.sum(), weighted, 16 * eps * x.abs().sum()])
