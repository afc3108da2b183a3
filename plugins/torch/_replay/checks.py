"""What a replay is held against, the values of the forward pass, and what it refuses."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from steptape._errors import GradientError, UnsupportedError
from steptape.torch._autograd.constants import is_plain
from steptape.torch._autograd.graph import Call, Parameters
from steptape.torch._tape.tape import sample


def check_end(end: Tensor, fingerprint: Tensor, start: Tensor, parameters: Parameters) -> None:
    """Raise if what was replayed from ``start`` ends elsewhere than in the forward pass, by more than rounding."""
    if not fingerprint.numel():
        return
    with torch.no_grad():
        end = end.reshape(-1)
        found = sample(end)
        allowed = _allowed((end - start.reshape(-1)).abs().max(), end.abs().max(), parameters)
        close = not end.isfinite().all() or (found - fingerprint).abs().max() <= allowed
        if close and torch.equal(found.isfinite(), fingerprint.isfinite()):
            return
    refuse_other_values(parameters)


def check_unchanged(versions: Sequence[tuple[Tensor, int, Tensor]], call: Call) -> None:
    """Raise if one of the tensors, which had these versions and values when the solve ended, has others now."""
    changed = next((x for x, version, values in versions if x._version != version or _is_other(x, values)), None)
    if changed is not None:
        raise GradientError(
            f"{call}: a tensor of shape {tuple(changed.shape)} that {call.func} uses has been modified by an inplace "
            "operation since the solve, such as an optimizer's step, or given other data, such as those of another "
            "dtype. Go backward before that; or, with adjoint_method='aca', keep graphs by adjoint_options={'memory': "
            "'graphs'}, which need no more than those of back-propagation."
        )


def _is_other(x: Tensor, values: Tensor) -> bool:
    """Whether the data of x have been exchanged, as by ``x.data = ...``, and not for equal ones."""
    if x.dtype != values.dtype or x.shape != values.shape or x.device != values.device:
        return True
    return is_plain(x) and x.data_ptr() != values.data_ptr() and not torch.equal(x, values)


def check_values(found: Sequence[Tensor], expected: Sequence[Tensor], parameters: Parameters) -> None:
    """Raise if an evaluation returned other values than the same one did before, by more than rounding."""
    if not are_close(found, expected, parameters.rough):
        refuse_other_values(parameters)


def are_close(found: Sequence[Tensor], expected: Sequence[Tensor], rough: bool) -> bool:
    """Whether these are the same but for rounding: the same operations, which on some devices add in another order."""
    return len(found) == len(expected) and all(map(functools.partial(_is_close, rough), found, expected))


def _is_close(rough: bool, a: Tensor, b: Tensor) -> bool:
    eps, size = eps_of(b, rough), float(b.abs().max()) if b.numel() else math.inf
    return a.shape == b.shape and (
        not math.isfinite(size) or torch.allclose(a.to(b.dtype), b, rtol=0, atol=4 * eps * size)
    )


def eps_of(x: Tensor, rough: bool) -> float:
    """What x is rounded by, if its dtype, or under autocast a narrower one, is that of the operations."""
    dtype = torch.promote_types(x.dtype, torch.float16)
    return max(torch.finfo(dtype).eps, 2.0**-8 if rough else 0.0)


def check_derivatives(found: Sequence[Tensor], expected: Sequence[Tensor], parameters: Parameters) -> None:
    """Raise if sums of an evaluation's derivatives are others than those of the same one, by more than the last."""
    if len(found) != len(expected) or any(
        not torch.allclose(a, b, rtol=0, atol=float(b[-1]))
        for a, b in zip(found, expected, strict=True)
        if b.isfinite().all()
    ):
        refuse_other_values(parameters)


class Ends:
    """The ends of replayed steps, held against the states that followed them in one go, after the last."""

    def __init__(self) -> None:
        self._noted: list[Tensor] = []

    def note(self, end: Tensor, following: Tensor, start: Tensor) -> None:
        """Of a step from ``start`` to ``following``, replayed to ``end``."""
        with torch.no_grad():
            end, following, start = end.reshape(-1), following.reshape(-1), start.reshape(-1)
            if end.numel():
                # A norm would take five times as long.
                self.note_gaps(torch.stack([end - following, end - start, end]).abs().amax(1))

    def note_gaps(self, gaps: Tensor) -> None:
        """Of a step, the largest entries of its end less the following state, less its start, and of its end."""
        self._noted.append(gaps)

    def check(self, parameters: Parameters) -> None:
        """Raise if one of them ended elsewhere, by more than rounding."""
        if not self._noted:
            return
        gap, moved, size = torch.stack(self._noted).unbind(1)
        close = ~size.isfinite() | (gap <= _allowed(moved, size, parameters))
        if not close.all():
            refuse_other_values(parameters)


def _allowed(moved: Tensor, size: Tensor, parameters: Parameters) -> Tensor:
    # Half the digits, in which func itself may amplify rounding; autocast has few.
    eps = torch.finfo(size.dtype).eps
    return (0.01 if parameters.rough else min(0.01, 10 * eps**0.5)) * moved + 1e3 * eps * size


def refuse_other_values(parameters: Parameters) -> NoReturn:
    """Raise where func is no function of what a replay can give it again."""
    call = parameters.call
    able = call.method == "aca" and not parameters.has_graphs
    graphs = " Or keep graphs, by adjoint_options={'memory': 'graphs'}, unless it goes by an iterator." * able
    raise GradientError(
        f"{call}: {call.func} returned other values in the backward pass than in the forward pass, so the replay would "
        f"give the gradient of another solution. Make {call.func} a function of its arguments and parameters alone: no "
        "state that evaluations change, and no random numbers but those of torch's default generators or of generators "
        f"that its first evaluation draws from.{graphs}"
    )


def is_linear(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> bool:
    """Whether what is pulled back through a graph with functions of the user's is linear in the cotangents.

    What clips them would clip others, where they are summed in another order, or taken apart.
    """
    outputs = [x for x in outputs if x.requires_grad]
    if not outputs:
        return True
    # By powers of two, which an exact multiple takes without rounding, as far as the dtype has them.
    power = 2.0 ** min(40, *(round(math.log2(torch.finfo(x.dtype).max)) // 4 for x in outputs))

    def pulled(scale: float) -> Sequence[Tensor | None]:
        cotangents = [torch.full_like(x, scale) for x in outputs]
        return torch.autograd.grad(outputs, inputs, cotangents, retain_graph=True, allow_unused=True)

    least, one, most = (pulled(scale) for scale in (1 / power, 1.0, power))
    trios = ((a, b, c) for a, b, c in zip(least, one, most, strict=True) if a is not None)
    return all(
        _are_multiples(a, b, power) and _are_multiples(b, c, power)
        for a, b, c in trios
        if b is not None and c is not None
    )


def _are_multiples(a: Tensor, b: Tensor, power: float) -> bool:
    """Whether b is ``power`` times a, but for what is lost below the least number."""
    a, b = a.to_dense() * power, b.to_dense()
    least = max(1e-4 * float(b.abs().max()) if b.numel() else 0.0, torch.finfo(b.dtype).tiny * power)
    return torch.allclose(a, b, rtol=1e-2, atol=least if math.isfinite(least) else 0.0, equal_nan=True)


def refuse_clipping(call: Call) -> NoReturn:
    """Raise where a second derivative is asked for through what clips cotangents."""
    raise GradientError(
        f"{call}: {call.func} clips or scales cotangents, by a hook or a function with a backward pass of its own. In "
        "a second derivative it would see other sums of them than by back-propagation. Leave out what does so, or "
        "create_graph=True; or differentiate with the host's own function."
    )


def refuse_forward_mode(function: str) -> NoReturn:
    """Raise where ``torch.autograd.forward_ad`` comes to a solve."""
    raise UnsupportedError(
        f"torch.autograd.forward_ad over {function}(..., adjoint_method=...): there is a tape to go back on, none to "
        "go forward with. Use torch.func.jvp with odeint_adjoint and 'aca', or the host's own function on a fixed grid."
    )
