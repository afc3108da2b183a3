"""The seminorm for torchsde's own adaptive adjoint: the parameters' channels leave its error estimate.

What the host solves backward is one flat state: y, its cotangent, and the cotangents of the parameters, which are plain
integrals that nothing else depends on. The host has no norm to choose, but its tolerances may be tensors. An infinite
one takes a channel out of the error, and since the host's mean square goes on to count these channels, the others'
tolerances shrink by the root of their share.

Source: Kidger et al., "Hey, that's not an ODE", arXiv 2009.09457.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from steptape._errors import OptionError, UnsupportedError


def with_seminorm(call: dict[str, Any], y0: Tensor, params: list[Tensor]) -> dict[str, Any]:
    """The keyword arguments of a call of the host's sdeint_adjoint, its adjoint option ``"norm"`` put into effect."""
    options = dict(call["adjoint_options"])
    norm = options.pop("norm")
    _check(call, norm)
    states = 2 * (y0.numel() + (len(y0) if call["logqp"] else 0))
    integrals = sum(p.numel() for p in params)
    share = (states / (states + integrals)) ** 0.5
    atol = y0.new_full((1, states + integrals), torch.inf, requires_grad=False)
    atol[:, :states] = share * call["adjoint_atol"]
    return {**call, "adjoint_options": options, "adjoint_rtol": share * call["adjoint_rtol"], "adjoint_atol": atol}


def _check(call: dict[str, Any], norm: Any) -> None:
    words = f"sdeint_adjoint(..., adjoint_options={{'norm': {norm!r}}}"
    if norm != "seminorm":
        raise OptionError(f"{words}): must be 'seminorm', or left out for the host's norm of all channels.")
    if not call["adjoint_adaptive"]:
        raise OptionError(
            f"{words}, adjoint_adaptive=False): the backward solve takes fixed steps and estimates no error. Pass "
            "adjoint_adaptive=True, or leave out 'norm'."
        )
    if call["method"] == "reversible_heun" and call["adjoint_method"] in (None, "adjoint_reversible_heun"):
        raise UnsupportedError(
            f"{words}, method='reversible_heun'): its adjoint has other channels than states and parameters. Use "
            "adjoint_method='aca', which is exact as well and takes adaptive steps, or leave out 'norm'."
        )
