"""A solve inside the transforms of ``torch.func``, which differentiate what runs and see no backward pass of ours.

The host solves with the plain values, and what the transforms get to see is the chain of its accepted steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steptape._errors import UnsupportedError
from steptape.compat import _torch
from steptape.compat import _torchdiffeq as host
from steptape.torch._autograd.graph import Parameters
from steptape.torch._autograd.surroundings import Surroundings
from steptape.torch._hosts.torchdiffeq import OdeSolve
from steptape.torch._replay.unrolled import unrolled


def solve_in_transforms(solve: OdeSolve, y0: Tensor, t: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """The host's solution at t and the time it ends, differentiable along the accepted steps in every way torch knows.

    Holds the graphs of all accepted steps.
    """
    if solve.tableau is None and solve.options.get("perturb"):
        raise UnsupportedError(
            f"torch.func over odeint_adjoint(..., method={solve.method!r}, options={{'perturb': True}}, "
            "adjoint_method='aca'): the host's own step moves its times in a way that the transforms do not take. "
            "Leave out 'perturb', or use another method."
        )
    surroundings, given = Surroundings(y0.device), (y0, t, points)
    plain_given = [_value(x) for x in given]
    with torch.no_grad(), _torch.outside_transforms() as inside:
        func, event_fn = _Plain(solve.func, inside), solve.event_fn and _inside(solve.event_fn, inside)
        plain = dataclasses.replace(solve, func=func, event_fn=event_fn)
        (solution, end), tape = plain.record(plain_given, surroundings)
    with surroundings.replayed(changed=True):
        parameters = Parameters((), solve.call)
        ys, *_ = unrolled(solve, tape, given, parameters, surroundings, len(solution), checks=False)
    # The host's solution to the bit, with the derivatives of the chain.
    return solution + (ys - ys.detach()), end


class _Plain:
    """A func in the host's normal form for its solver: the user's part of it runs inside the transforms."""

    def __init__(self, func: Any, inside: Callable[[], Any]):
        self._func = func
        self.base_func = _inside(host.without_sides(func), inside)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._func, name)


def _inside(func: Any, inside: Callable[[], Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of plain tensors that runs inside the transforms, as they run it: what it caches has derivatives."""

    def plain(t: Tensor, y: Tensor) -> Tensor:
        with inside(), torch.enable_grad():
            return _value(func(t, y))

    return plain


def _value(x: Tensor) -> Tensor:
    """The plain tensor whose derivatives the transforms follow."""
    value = _torch.unwrapped(x.detach())
    if value is None:
        raise UnsupportedError(
            "torch.vmap(...) over odeint_adjoint(..., adjoint_method='aca'): the host chooses its steps by the values "
            "of one state, not of a batch of them. Make the batch a dimension of y0, and func a function of it."
        )
    return value
