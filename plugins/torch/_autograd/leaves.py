"""What a replayed step depends on: leaves that are neither its own nor parameters would lose their gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

from torch import Tensor

from steptape._errors import GradientError
from steptape.torch._autograd.graph import BY_HOST, Call, Parameters, edges_from, is_one_of, leaf_at, node_of, place_of


def leaf_of(solve: object, x: Tensor) -> Tensor:
    """What a graph starts from that is kept in a solve, known for it: no other graph may lead there."""
    leaf: Any = x.detach().requires_grad_()
    leaf.of_solve = solve
    return leaf


class Node(NamedTuple):
    """Where a tensor is in a graph that is held elsewhere."""

    grad_fn: Any
    output_nr: int
    requires_grad: bool = True


def is_looked_at(n: int, steps: int) -> bool:
    """Whether what step n depends on is looked at: the ends and some in between, since to look takes time."""
    return n == steps - 1 or n % max(1, steps // 8) == 0


def is_glanced_at(n: int, stages: int) -> bool:
    """Whether one stage of step n is, which takes a hundredth of the time of a step."""
    return n % max(1, 3 // stages) == 0


class LeafCheck:
    """Raises where outputs depend on leaves besides known ones and the parameters of a solve.

    Not where the caller has named what to differentiate in.
    """

    def __init__(self, parameters: Parameters):
        self._parameters = parameters
        self._passing = 0
        self._ends: set[Any] | None = None

    def __call__(
        self,
        outputs: Iterable[Tensor],
        known: Sequence[Tensor],
        again: Callable[[], Iterable[Tensor]],
        first: bool = False,
    ) -> None:
        """``again``: makes the outputs again: leaves that a host or func makes as it is called are others then.

        ``first``: whether the first evaluation of the solve is among those that made the outputs.
        """
        parameters = self._parameters
        unknown, reached = self._found(outputs, known)
        if first:
            self._check_first(reached)
        if any(getattr(x, "of_solve", None) is parameters.solve for x in unknown):
            _refuse_history(parameters.call)
        # As many as were made for themselves before.
        if parameters.call.named or len(unknown) <= self._passing:
            return
        kept = {id(x) for x in self._found(again(), known)[0]}
        self._passing = len(unknown)
        unknown = [x for x in unknown if id(x) in kept]
        if unknown:
            _refuse_unknown(unknown, parameters)

    def glance(self, output: Tensor, known: Sequence[Tensor]) -> bool:
        """Whether a graph leads to nothing but parameters and ``known`` leaves, where that is soon said; else True."""
        params = self._parameters
        if params.call.named or params.replaced or self._passing:
            return True
        if self._ends is None:
            self._ends = {node_of(x) for x in params.params if x.requires_grad}
        seen = self._ends | {x.grad_fn for x in known}
        waiting: list[Any] = [output.grad_fn]
        while waiting:
            for node, _ in waiting.pop().next_functions:
                if node is None or node in seen:
                    continue
                seen.add(node)
                if node.next_functions:
                    waiting.append(node)
                elif (leaf := leaf_at((node, 0))) is not None and not is_one_of(leaf, known):
                    return False
        return True

    def _found(self, outputs: Iterable[Tensor], known: Sequence[Tensor]) -> tuple[list[Tensor], set[Any]]:
        """The leaves besides known ones that outputs depend on, and all places that were reached."""
        known = (*known, *self._parameters.params)
        places, replaced = {place_of(x) for x in known}, {place_of(x) for x in self._parameters.replaced}
        outputs = list(outputs)
        ends = {id(x): x for x in outputs if x.grad_fn is None and x.requires_grad}
        reached: set[Any] = set(ends)
        unknown: dict[Any, Tensor] = {place: x for place, x in ends.items() if place not in places}
        for edge in edges_from(((x.grad_fn, x.output_nr) for x in outputs), places):
            if edge in replaced:
                _refuse_replaced(self._parameters)
            leaf = leaf_at(edge)
            place = edge if leaf is None else id(leaf)
            reached.add(place)
            if leaf is not None and place not in places:
                unknown[place] = leaf
        return list(unknown.values()), reached

    def _check_first(self, reached: set[Any]) -> None:
        """Raise if what the first evaluation of the solve used is not among what was reached."""
        for x in self._parameters.used_first:
            if place_of(x) not in reached:
                _refuse_forgotten(x, self._parameters)


def _refuse_history(call: Call) -> NoReturn:
    raise GradientError(
        f"{call}: an evaluation of {call.func} uses what an earlier one was given or computed from it, and kept. The "
        f"gradient in that would be lost. Let {call.func} compute it in each evaluation; or detach() what it keeps, if "
        "that needs no gradient."
    )


def _refuse_unknown(unknown: Sequence[Tensor], parameters: Parameters) -> NoReturn:
    call, shapes = parameters.call, ", ".join(str(tuple(x.shape)) for x in unknown)
    raise GradientError(
        f"{call}: {call.func} depends on tensors that require a gradient and that its first evaluation did "
        f"not use (shapes: {shapes}), so their gradient would be lost. Name all of them: "
        f"adjoint_params=(*{call.func}.parameters(), x, ...). What an earlier evaluation computed and kept, as for a "
        f"delay, has no name: {BY_HOST}."
    )


def _refuse_forgotten(x: Tensor, parameters: Parameters) -> NoReturn:
    call = parameters.call
    raise GradientError(
        f"{call}: the first evaluation of {call.func} used a tensor of shape {tuple(x.shape)} in the forward pass, and "
        "does not use it in the backward pass: a later evaluation has kept what it computed from it, or something else "
        "was put in its place. Its gradient would be lost. Compute it in each evaluation, or before the solve."
    )


def _refuse_replaced(parameters: Parameters) -> NoReturn:
    call, shapes = parameters.call, ", ".join(str(tuple(x.shape)) for x in parameters.replaced)
    raise GradientError(
        f"{call}: a scripted or custom function, a transform, or a solve in {call.func} uses a tensor (shape: "
        f"{shapes}) that was computed before the solve from another one that {call.func} uses too, and their shares "
        f"cannot be told apart there. Compute it in {call.func}, or have that function in plain operations."
    )
