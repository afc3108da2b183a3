"""The first evaluation of a solve, taken again before the others, for what it shows of func."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steptape.compat._torch import uncompiled
from steptape.torch._autograd.graph import Parameters, tensors_of
from steptape.torch._autograd.looks import Inside
from steptape.torch._autograd.snapshot import given_back
from steptape.torch._autograd.surroundings import Surroundings
from steptape.torch._hosts.base import Solve
from steptape.torch._replay.checks import check_values, is_linear


def takes_multiples(solve: Solve, given: Sequence[Tensor], surroundings: Surroundings, parameters: Parameters) -> bool:
    """Whether no hook, and no function of the user's, makes something else of a cotangent than a multiple."""
    if solve.before is None or not solve.before.traits.custom:
        return True
    with surroundings.looked_at():
        leaves, outputs = _evaluated(solve, given, surroundings, parameters)
    return is_linear(outputs, [*leaves, *parameters.params])


def check_first(solve: Solve, given: Sequence[Tensor], surroundings: Surroundings, parameters: Parameters) -> None:
    """Raise if it returns other values than it did, where func has come to refer to something else in the solve.

    What follows from a counter, a list, a mode that evaluations change may be less than the rounding of a step's end.
    """
    first = surroundings.first
    if first is None:
        return
    with surroundings.looked_at(), given_back(first.left), uncompiled():
        surroundings.side.set(first.note)
        again = Inside()
        _evaluated(solve.around(again), given, surroundings, parameters)
    check_values(again.values, first.values, parameters)


def _evaluated(
    solve: Solve, given: Sequence[Tensor], surroundings: Surroundings, parameters: Parameters
) -> tuple[list[Tensor], list[Tensor]]:
    """What it is given, as leaves, and what it returns, with its graph."""
    with surroundings.around_func(), parameters.in_place(), torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in given]
        return leaves, [*tensors_of(solve.evaluated(0, *leaves))]
