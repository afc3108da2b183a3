"""What a replay is held against, the values of the forward pass, and what it refuses."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from steptape._errors import GradientError, UnsupportedError
from steptape.torch._autograd.graph import Parameters
from steptape.torch._tape.tape import sample


def check_end(end: Tensor, fingerprint: Tensor, start: Tensor, parameters: Parameters) -> None:
    """Raise if what was replayed from ``start`` ends elsewhere than in the forward pass, by more than rounding."""
    if not fingerprint.numel():
        return
    with torch.no_grad():
        end = end.reshape(-1)
        found = sample(end)
        moved = (end - start.reshape(-1)).abs().max()
        eps = torch.finfo(end.dtype).eps
        # Half the digits, in which func itself may amplify rounding; autocast has few.
        allowed = (0.01 if parameters.rough else min(0.01, 10 * eps**0.5)) * moved + 1e3 * eps * end.abs().max()
        close = not end.isfinite().all() or (found - fingerprint).abs().max() <= allowed
        if close and torch.equal(found.isfinite(), fingerprint.isfinite()):
            return
    call = parameters.call
    raise GradientError(
        f"{call}: {call.func} returned other values in the backward pass than in the forward pass, so the replay would "
        f"give the gradient of another solution. Make {call.func} a function of its arguments and parameters alone: no "
        "state that evaluations change, and no random numbers but those of torch's default generators."
    )


def refuse_forward_mode(function: str) -> NoReturn:
    """Raise where ``torch.autograd.forward_ad`` comes to a solve."""
    raise UnsupportedError(
        f"torch.autograd.forward_ad over {function}(..., adjoint_method=...): there is a tape to go back on, none to "
        "go forward with. Use torch.func.jvp with odeint_adjoint and 'aca', or the host's own function on a fixed grid."
    )
