"""PyTorch's private names, each with the reason steptape needs it."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar, cast

import torch

from steptape.compat._unsupported import unsupported

try:
    # Unlike debug_unwrap, which is public, it tells a batch from a level of differentiation.
    from torch._C._functorch import is_batchedtensor as is_batched

    # The batches of cotangents are of another kind.
    from torch._C._functorch import is_legacy_batchedtensor

    # The transforms around a call, taken off this thread's stack and put back: the host's solvers hold an
    # autograd.Function that cannot run inside them.
    from torch._functorch.pyfunctorch import (
        temporarily_clear_interpreter_stack,
        temporarily_restore_interpreter_stack,
    )

    # What sees the operations of a block, also those of scripted modules; compiled ones are not compiled anew for it.
    from torch.utils._python_dispatch import TorchDispatchMode

    # Whether there are any transforms.
    transforms_active = torch._C._are_functorch_transforms_active

    # The node of a graph whose backward pass is running: an evaluation in which there is one takes derivatives inside.
    running_node = torch._C._current_autograd_node

    # Whether a block of forward mode is entered, by its level.
    _ = torch.autograd.forward_ad._current_level

    # torch.autograd.grad without its checks, which take as long as the backward pass of a small layer.
    _run_backward = torch.autograd.Variable._execution_engine.run_backward
except (ImportError, AttributeError) as error:
    raise unsupported("torch", error, "torch") from error


def gathers_parameters(module: torch.nn.Module) -> bool:
    """Whether a module has its parameters for the time of an evaluation alone, as those that FSDP wraps do."""
    # By name, since the import of torch.distributed takes longer than that of all else.
    return any(kind.__name__ in ("FullyShardedDataParallel", "FSDPModule") for kind in type(module).__mro__)


def forward_mode_active() -> bool:
    """Whether this is a block of ``torch.autograd.forward_ad.dual_level``."""
    return torch.autograd.forward_ad._current_level >= 0


def is_batch_of_cotangents(x: torch.Tensor) -> bool:
    """Whether ``torch.autograd.grad(..., is_grads_batched=True)`` made this batch."""
    return is_legacy_batchedtensor(x)


def pull(
    outputs: Sequence[torch.Tensor], cotangents: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]
) -> Sequence[torch.Tensor | None]:
    """The cotangents of ``inputs``, None where the outputs do not depend on one; frees the graph."""
    keep_graph = create_graph = accumulate = False
    return _run_backward(
        tuple(outputs), tuple(cotangents), keep_graph, create_graph, tuple(inputs), True, accumulate_grad=accumulate
    )


@contextmanager
def outside_transforms() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """A block without the transforms around it; what it yields gives blocks that are inside them again."""
    with temporarily_clear_interpreter_stack() as stack:
        yield lambda: temporarily_restore_interpreter_stack(stack)


def unwrapped(x: torch.Tensor) -> torch.Tensor | None:
    """The plain tensor inside all transforms, or None if there is a batch of them."""
    while True:
        if is_batched(x):
            return None
        inner = torch.func.debug_unwrap(x, recurse=False)
        if inner is x:
            return x
        x = inner


def sequence_number(node: Any) -> int:
    """The place of a node of a graph in the order in which its thread made them."""
    return node._sequence_nr()


class OperationMode(TorchDispatchMode):
    """A block in which ``operate(run, args)`` is called for each operation on tensors, to run it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not kwargs:
            return self.operate(lambda: func(*args), args)
        return self.operate(lambda: func(*args, **kwargs), (*args, *kwargs.values()))

    def operate(self, run: Callable[[], Any], args: Sequence[Any]) -> Any:
        """Run an operation."""
        raise NotImplementedError


Function = TypeVar("Function", bound=Callable[..., Any])
_NO_GRAPH = (
    "a solve takes its steps by the values of the state, which no graph of torch.compile has, so it runs between two. "
    "Leave out fullgraph=True for what contains the solve, as in torch.compile(model), or compile func alone, by "
    "func.compile()."
)


def between_graphs(function: Function) -> Function:
    """A function that runs as it is when what contains it is compiled; with ``fullgraph=True`` torch says why not."""
    # Not everywhere: inside ``disable`` no compiled func would run compiled. torch 2.4 takes no reason.
    words = {"reason": _NO_GRAPH} if "reason" in inspect.signature(torch.compiler.disable).parameters else {}
    uncompiled = torch.compiler.disable(function, **words)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return uncompiled(*args, **kwargs)
        return function(*args, **kwargs)

    return cast("Function", call)
