"""PyTorch's private names, each with the reason steptape needs it.

The host's solvers hold an autograd.Function that cannot run inside torch.func's transforms: they are left for the time
of a solve, and entered again for each evaluation of func.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from steptape.compat._unsupported import unsupported

try:
    # Unlike debug_unwrap, which is public, it tells a batch from a level of differentiation.
    from torch._C._functorch import is_batchedtensor as is_batched

    # The transforms around a call, taken off this thread's stack and put back.
    from torch._functorch.pyfunctorch import (
        temporarily_clear_interpreter_stack,
        temporarily_restore_interpreter_stack,
    )

    # Whether there are any.
    transforms_active = torch._C._are_functorch_transforms_active
except (ImportError, AttributeError) as error:
    raise unsupported("torch", error, "torch") from error


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
