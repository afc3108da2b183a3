"""What torch tells of graphs in names of its own: where they end, what they save, whether they are kept."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

# What acts on the tensors that graphs save, as torch.utils.checkpoint does; torch before 2.5 may not tell.
_saved_tensors_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda ignore_is_tracing: None)


def saved_tensors_are_hooked() -> bool:
    """Whether hooks act on what graphs save."""
    return _saved_tensors_hooks(False) is not None


# Why none may, if so, as within ``disable_saved_tensors_hooks``.
_disabled = getattr(torch._C._autograd, "_saved_tensors_hooks_get_disabled_error_message", lambda: None)


def hooks_act_on_saved_tensors() -> bool:
    """Whether hooks may act on what graphs save."""
    return _disabled() is None


# Without what owns their nodes, torch before 2.7, edges do not keep graphs alive.
_EDGES_OWN = "ownership_token" in GradientEdge._fields


class GraphEnd(GradientEdge):
    """What leads to a tensor, as far as a backward pass asks for it; without its values."""

    requires_grad = True

    @property
    def grad_fn(self) -> Any:
        """The node that made the tensor."""
        return self.node


def end_of(x: torch.Tensor) -> Any:
    """The end of the graph of a tensor that requires a gradient; the tensor itself, where only that keeps its graph."""
    node: Any = x.grad_fn
    if node is None or not _EDGES_OWN:
        return x
    # Of nodes in Python, and of those alone, the edge has to own the graph.
    edge = get_gradient_edge(x) if isinstance(node, torch._C._FunctionBase) else (node, x.output_nr, None)
    return GraphEnd(*edge)


# Whether the backward pass that is running keeps its graph for another one, which torch before 2.6 does not tell.
graph_is_retained: Callable[[], bool] = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


class WritesAgain(TorchFunctionMode):
    """A block in which a write of the values that tensors are ``known`` to hold is none: graphs stay as valid."""

    def __init__(self, known: Sequence[tuple[torch.Tensor, torch.Tensor]]):
        super().__init__()
        self._known = [(x, x._version, _unsafe_preserve_version_counter(x), values) for x, values in known]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x, version, preserved, values in self._known:
            if x._version != version and torch.equal(x, values):
                preserved.__exit__(None, None, None)
        return result
