"""Graphs: pull cotangents back through one, see what it depends on, and end it at a gate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steptape._errors import GradientError
from steptape.compat._torch import pull


class Call(NamedTuple):
    """What an error calls a solve; ``func`` is the name of its vector field."""

    function: str = "odeint_adjoint"
    func: str = "func"
    method: str = "aca"

    def __str__(self) -> str:
        return f"{self.function}({self.func}, ..., adjoint_method={self.method!r})"


class Parameters:
    """The parameters of a solve, whose ``cotangents`` add up.

    ``rough``: whether func computes with them in less precision than the state's, as under autocast. ``batch``: the
    leading dimensions of cotangents, none where they come one at a time.
    """

    batch: tuple[int, ...] = ()

    def __init__(self, params: Sequence[Tensor], call: Call, rough: bool = False):
        self.params, self.call, self.rough = tuple(params), call, rough
        self.cotangents = [self.zeros(p) for p in params]

    def zeros(self, x: Tensor) -> Tensor:
        """The cotangent of what nothing depends on."""
        return torch.zeros_like(x)

    def taken(
        self, ends: Sequence[Tensor], cotangents: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        """The cotangents of ``inputs``, none added up; frees the graph."""
        return pull(ends, cotangents, inputs)

    def taken_with_graph(
        self, ends: Sequence[Tensor], cotangents: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """The same as functions of all that they depend on."""
        settings = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
        return torch.autograd.grad(ends, inputs, cotangents, **settings)

    def pull(self, outputs: Iterable[tuple[Tensor, Tensor]], inputs: Sequence[Tensor]) -> list[Tensor]:
        """The cotangents of ``inputs`` from pairs of an output and its own, in any shape; those of parameters add up.

        Frees the graph.
        """
        pairs = [(x, cotangent.view((*self.batch, *x.shape))) for x, cotangent in outputs if x.requires_grad]
        if not pairs:
            return [self.zeros(x) for x in inputs]
        ends, cotangents = zip(*pairs, strict=True)
        with shared_graphs_refused(self.call):
            grads = self.taken(ends, cotangents, (*inputs, *self.params))
        for total, grad in zip(self.cotangents, grads[len(inputs) :], strict=True):
            if grad is not None:
                total.add_(grad)
        return [self.zeros(x) if grad is None else grad for x, grad in zip(inputs, grads, strict=False)]


@contextmanager
def shared_graphs_refused(call: Call) -> Iterator[None]:
    """A block in which a graph that is used a second time is an error in words of ours."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, GradientError) or "a second time" not in str(error):
            raise
        raise GradientError(
            f"{call}: {call.func} uses a tensor that was computed from its parameters before this evaluation: before "
            "the solve, or in an evaluation that kept it. Evaluations cannot share its graph. Compute it in each of "
            "them, or pass it in adjoint_params instead of what it was computed from."
        ) from error


def lost(unknown: Sequence[Tensor], call: Call, reader: str | None = None) -> str:
    """What is wrong where ``reader``, or the vector field of a call, depends on ``unknown`` leaves."""
    shapes = ", ".join(str(tuple(x.shape)) for x in unknown)
    return (
        f"{call}: {reader or call.func} depends on tensors that require a gradient but are not among its parameters "
        f"(shapes: {shapes}), and their gradient would be lost. Pass all of them: "
        f"adjoint_params=(*{call.func}.parameters(), x, ...)."
    )


def unknown_leaves(outputs: Iterable[Tensor], known: Sequence[Tensor]) -> list[Tensor]:
    """The leaves of the graph of ``outputs`` that they reach other than through the ``known`` tensors."""
    leaves = {id(x) for x in known if x.is_leaf}
    seen = {x.grad_fn for x in known if x.grad_fn is not None}
    unknown, front = {}, [x.grad_fn for x in outputs]
    while front:
        node = front.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in leaves:
            unknown[id(leaf)] = leaf
        front.extend(parent for parent, _ in node.next_functions)
    return list(unknown.values())


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """The tensors of tuples, lists and dictionaries in each other."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for part in tree:
            yield from tensors_of(part)
    elif isinstance(tree, dict):
        yield from tensors_of(list(tree.values()))


class Gate:
    """Copies of tensors whose gradients end at them while the gate is closed, and flow on to the tensors afterwards.

    Asked for the gradients in a tensor x and in a parameter that x was computed from, ``torch.autograd.grad`` adds what
    the parameter gains through x to the latter. A backward pass that returns both would let autograd add it once more.
    """

    def __init__(self) -> None:
        self._open = True

    def through(self, x: Tensor) -> Tensor:
        """x, behind the gate."""
        return _Passage.apply(self, x)

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Close the gate for the block."""
        self._open = False
        try:
            yield
        finally:
            self._open = True

    def passed(self, cotangent: Tensor) -> Tensor | None:
        """What is left of a cotangent behind the gate."""
        return cotangent if self._open else None


class _Passage(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Gate, x: Tensor) -> Tensor:
        ctx.gate = gate
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[None, Tensor | None]:
        return None, ctx.gate.passed(cotangent)
