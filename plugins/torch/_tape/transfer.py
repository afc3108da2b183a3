"""States moved off a GPU and back: into pinned memory, and a step ahead, so that no copy is waited for.

Between other devices they are moved as ``Tensor.to`` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor


def moved(tensors: tuple[Tensor, ...], device: torch.device | None) -> tuple[Tensor, ...]:
    """Tensors on a device, themselves if they are there; off a GPU not to be read before ``settle``."""
    return tensors if device is None else tuple([_moved(x, device) for x in tensors])


def _moved(x: Tensor, device: torch.device) -> Tensor:
    if x.is_cuda and device.type == "cpu":
        # Torch frees neither of the two before the copy is made.
        return torch.empty_like(x, device=device, pin_memory=True).copy_(x, non_blocking=True)
    return x.to(device, non_blocking=device.type == "cuda")


def settle(device: torch.device) -> None:
    """Wait for all that is on its way from a GPU."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def fetched(
    states: Mapping[int, tuple[Tensor, ...]], order: Iterable[int], device: torch.device
) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """States by their numbers in an order, on a device; to a GPU each comes while the one before is in use."""
    if device.type != "cuda":
        for n in order:
            yield n, moved(states[n], device)
        return
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    coming: tuple[int, tuple[Tensor, ...], torch.cuda.Event] | None = None
    for n in order:
        with torch.cuda.stream(side):
            following = (n, moved(states[n], device), side.record_event())
        if coming is not None:
            yield _arrived(*coming, device)
        coming = following
    if coming is not None:
        yield _arrived(*coming, device)


def _arrived(
    n: int, state: tuple[Tensor, ...], arrival: torch.cuda.Event, device: torch.device
) -> tuple[int, tuple[Tensor, ...]]:
    """What was fetched in another stream, for use in the current one."""
    here = torch.cuda.current_stream(device)
    here.wait_event(arrival)
    for x in state:
        x.record_stream(here)
    return n, state
