"""Two steps of training with a client's own call, under ``install()`` and by back-propagation through the host."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torchdiffeq
from torch import Tensor

from steptape.shared_tests.oracles.distance import distance
from steptape.torch import install, record_solves
from steptape.torch._stats import Solves
from steptape_helpers.clients import MEASURED, Measured

Made = tuple[torch.nn.Module, Callable[[], Tensor]]
"""A model, and its loss as a function of nothing."""


@dataclasses.dataclass(frozen=True)
class Training:
    """Two steps of gradient descent: losses, gradients of all parameters, the solves that were ours, bytes held."""

    losses: list[Tensor]
    gradients: list[Tensor]
    weights: list[Tensor]
    solves: Solves
    held: int


def trained(make: Callable[..., Made], then: list[Tensor] | None = None, **how: Any) -> Training:
    """Train what ``make(**how)`` makes; it draws the same random numbers each time.

    ``then``: the weights after the first step, those of another training. An adaptive solver can make much of a
    difference in the last place.
    """
    _seed(0)
    model, loss = make(**how)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses, gradients = [], []
    with record_solves() as solves:
        for step in range(2):
            _seed(step)
            optimizer.zero_grad(set_to_none=False)
            with _saved() as held:
                losses.append(loss())
                count = held()
            losses[-1].backward()
            gradients += [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
            optimizer.step()
            if step == 0 and then is not None:
                torch.nn.utils.vector_to_parameters(torch.cat([x.flatten() for x in then]), model.parameters())
            if step == 0:
                weights = [p.detach().clone() for p in model.parameters()]
    return Training([x.detach() for x in losses], gradients, weights, solves, count)


def assert_trains_as_by_back_propagation(
    client: str,
    make: Callable[..., Made],
    theirs: dict[str, Any] | None = None,
    solves: int = 1,
    at_most: float = 1e-12,
    **setting: Any,
) -> Training:
    """Hold two steps of training under ``install(**setting)`` against the package's own back-propagation.

    ``theirs``: the arguments of ``make`` by which the package back-propagates, if its call is to be another one.
    ``solves``: how many there are in a step, each of which must be ours.
    """
    expected = trained(make, **(theirs or {}))
    assert not expected.solves
    with install(default="aca", **setting):
        found = trained(make, expected.weights)
    assert len(found.solves) == 2 * solves
    assert found.losses == expected.losses
    assert any(gradient.count_nonzero() for gradient in expected.gradients)
    gap = distance(found.gradients, expected.gradients)
    methods = Counter(f"{x.method}, {x.accepted_steps} steps" for x in found.solves[-solves:])
    told = " and ".join(f"{count} x {method}" for method, count in methods.items())
    MEASURED.append(Measured(client, gap, told, _kib(found.held), _kib(expected.held)))
    assert gap <= at_most
    return found


def first_step(func: Callable[..., Any], y0: Any, t: Tensor, **call: Any) -> float:
    """Return the size that torchdiffeq guesses for the first step of ``odeint(func, y0, t, **call)``."""
    sizes: list[float] = []

    class Watched(torch.nn.Module):
        def forward(self, t: Tensor, y: Any) -> Any:
            return func(t, y)

        def callback_step(self, t: Tensor, y: Any, dt: Tensor) -> None:
            sizes.append(float(dt))

    with torch.no_grad():
        torchdiffeq.odeint(Watched(), y0, t, **call)
    return sizes[0]


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)  # torchsde's Brownian motions take their entropy from it


@contextmanager
def _saved() -> Iterator[Callable[[], int]]:
    """How many bytes live graphs hold of what was saved in the block, but for leaves."""
    noted: list[weakref.ref[Tensor]] = []

    def pack(x: Tensor) -> Tensor:
        if x.is_leaf and x.requires_grad:
            return x
        x = x.detach()
        noted.append(weakref.ref(x))
        return x

    def held() -> int:
        gc.collect()
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in _alive(noted)}
        return sum(storages.values())

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield held


def _alive(noted: list[weakref.ref[Tensor]]) -> list[Tensor]:
    return [x for x in (ref() for ref in noted) if x is not None]


def _kib(count: int) -> str:
    return f"{count / 1024:.3g} KiB"
