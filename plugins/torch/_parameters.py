"""The tensors besides the state to differentiate with respect to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from steptape._errors import OptionError


def parameters_of(
    func: Any, own: Callable[[Any], Iterable[Tensor]], adjoint_params: Iterable[Tensor] | None, call: str, spelling: str
) -> list[Tensor]:
    """Those given, or else the ``own`` ones of a module; each once, and only those that require a gradient.

    ``call``, which names ``func`` first, and ``spelling``, of the argument to pass them in, word the refusal.
    """
    if adjoint_params is None and not isinstance(func, torch.nn.Module):
        name = call.partition("(")[2].partition("=")[0]
        raise OptionError(
            f"{call}: {name} is no torch.nn.Module, so its parameters are unknown. Make it one, or pass {spelling}, "
            "which is () if there are none."
        )
    params = list(own(func) if adjoint_params is None else adjoint_params)
    if not all(isinstance(p, Tensor) for p in params):
        raise OptionError(f"{call} with {spelling}: must be tensors, such as tuple(func.parameters()).")
    once = list({id(p): p for p in params if p.requires_grad}.values())
    if _depend_on_each_other(once):
        raise OptionError(
            f"{call} with {spelling}: one of these tensors was computed from another, which would count its gradient "
            "twice. Leave out the other one: autograd passes its gradient on. If both are used, compute one from the "
            "other where they are used."
        )
    return once


def _depend_on_each_other(tensors: Sequence[Tensor]) -> bool:
    """Whether the graph of one of the tensors leads to another one of them."""
    nodes: set[Any] = {x.grad_fn for x in tensors} - {None}
    leaves = {id(x) for x in tensors if x.is_leaf}
    seen: set[Any] = set()
    front = [parent for node in nodes for parent, _ in node.next_functions]
    while front:
        node = front.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in nodes or id(getattr(node, "variable", None)) in leaves:
            return True
        front.extend(parent for parent, _ in node.next_functions)
    return False
