"""The seminorm for the hosts' own adjoints: the norm of the state and its cotangent, and of no integral.

What torchdiffeq solves backward is one tuple: the time's cotangent, y, its cotangent a, and the cotangents of the
parameters. But for y and a these are plain integrals, on which nothing depends, so their error need not gate a step.

torchsde solves one flat state backward: y, a, and the cotangents of the parameters. It has no norm to choose, but its
tolerances may be tensors. An infinite one takes a channel out of the error, and since the host's mean square goes on to
count these channels, the others' tolerances shrink by the root of their share.

Source: Kidger et al., "Hey, that's not an ODE", arXiv 2009.09457.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from steptape._errors import OptionError, UnsupportedError

Norm = Callable[[Any], Tensor]


class Seminorm:
    """What ``seminorm`` returns: the norm of a backward solve, and ``forward``, that of the solve itself."""

    def __init__(
        self, shapes: Sequence[torch.Size], is_tuple: bool, norm: Norm | None, joint: bool, left_out: set[int]
    ):
        self._shapes, self._is_tuple, self._norm, self._joint, self._left_out = shapes, is_tuple, norm, joint, left_out

    def __call__(self, channels: Sequence[Tensor]) -> Tensor:
        """The seminorm of (a_t, y, a, *a_params), where y and a take a place for each tensor of the state."""
        count = len(self._shapes)
        y, a = channels[1 : 1 + count], channels[1 + count : 1 + 2 * count]
        if [x.shape for x in (*y, *a)] != [*self._shapes, *self._shapes]:
            raise OptionError(
                f"seminorm(y0, ...) was made for a state of shapes {_tuples(self._shapes)}, and the adjoint's channels "
                f"have shapes {_tuples([x.shape for x in channels])}. Pass the y0 of the solve, and use the norm as "
                "odeint_adjoint(..., adjoint_options={'norm': seminorm(y0)})."
            )
        if self._joint:
            return _rms(torch.cat([x.reshape(-1) for x in (*self._counted(y), *self._counted(a))]))
        return max(self._of(y), self._of(a))

    def forward(self, state: Any) -> Tensor:
        """The norm of a state, the integrals left out: ``odeint_adjoint(..., options={"norm": seminorm.forward})``."""
        return self._of(state if self._is_tuple else (state,))

    def of_cotangent(self, a: Any) -> Tensor:
        """The same of the cotangent of a state alone, which is all that the quadrature adjoint solves for."""
        channels = a if self._is_tuple else (a,)
        if self._joint:
            return _rms(torch.cat([x.reshape(-1) for x in self._counted(channels)]))
        return self._of(channels)

    def _of(self, state: Sequence[Tensor]) -> Tensor:
        counted = self._counted(state)
        if self._norm is not None:
            return self._norm(tuple(counted) if self._is_tuple else counted[0])
        return max(map(_rms, counted))

    def _counted(self, state: Sequence[Tensor]) -> list[Tensor]:
        return [x for i, x in enumerate(state) if i not in self._left_out]


def seminorm(
    y0: Tensor | Sequence[Tensor],
    *,
    reduction: Literal["mixed", "joint"] = "mixed",
    norm: Norm | None = None,
    integrals: Collection[int] = (),
) -> Seminorm:
    """A norm for torchdiffeq's adjoint in which its integrals do not count, so that they do not gate its steps.

    ``torchdiffeq.odeint_adjoint(func, y0, t, adjoint_options={"norm": seminorm(y0)})``, or steptape's.

    Args:
        y0: the state of the solve, a tensor or a tuple of them; its shapes alone are read.
        reduction: ``"mixed"``: the larger of the norms of y and of its cotangent, which is the host's own
            ``"seminorm"`` but for the time's cotangent, an integral as well. ``"joint"``: the root mean square of both
            together, as in diffrax.
        norm: of a state, as ``options["norm"]`` of the solve; by default the host's, the root mean square of a tensor
            and the largest of them of a tuple. Not with ``"joint"``.
        integrals: the places, in a tuple state, of tensors that are integrals themselves, such as the log-density of a
            continuous normalising flow or a running cost; they are left out as well. ``options={"norm":
            seminorm(...).forward}`` leaves them out of the forward solve, and ``norm`` does not see them.

    Returns:
        The norm, a callable of the adjoint's channels.

    Supports:
        Every adaptive solver of the host. A replay (``adjoint_method="aca"``) has no norm to choose; the quadrature
        adjoint, whose state is the cotangent alone, takes the norm of that.

    Raises:
        OptionError: for an unknown reduction, ``norm`` with ``"joint"``, and integrals that are no places in the state
            or all of them; when the norm is taken, where y0 was of other shapes than the state.

    Source:
        Kidger et al., arXiv 2009.09457.

    Example:
        >>> import torch, torchdiffeq
        >>> from steptape.torch import seminorm
        >>> rate, y0, t = torch.ones(2, requires_grad=True), torch.ones(2), torch.tensor([0.0, 1.0])
        >>> call = dict(adjoint_params=(rate,), adjoint_options={"norm": seminorm(y0)})
        >>> ys = torchdiffeq.odeint_adjoint(lambda t, y: -rate * y, y0, t, **call)
        >>> ys[-1].sum().backward()
        >>> print(f"{rate.grad[0]:.3f}")  # -exp(-1)
        -0.368
    """
    is_tuple = not isinstance(y0, Tensor)
    shapes = [y0.shape] if isinstance(y0, Tensor) else [x.shape for x in y0]
    call = f"seminorm(y0, reduction={reduction!r}"
    if reduction not in ("mixed", "joint"):
        raise OptionError(f"{call}): must be 'mixed' or 'joint'.")
    if norm is not None and reduction == "joint":
        raise OptionError(
            f"{call}, norm={norm!r}): the mean of y and its cotangent together is known for the root mean square "
            "alone. Pass reduction='mixed'."
        )
    left_out = set(integrals)
    if not left_out < set(range(len(shapes))):
        raise OptionError(
            f"seminorm(y0, integrals={integrals!r}): must be some, and not all, of the places 0 to {len(shapes) - 1} "
            "of the tensors in y0."
        )
    return Seminorm(shapes, is_tuple, norm, reduction == "joint", left_out)


def _rms(x: Tensor) -> Tensor:
    return x.abs().square().mean().sqrt()


def _tuples(shapes: Sequence[torch.Size]) -> list[tuple[int, ...]]:
    return [tuple(shape) for shape in shapes]


def with_seminorm(call: dict[str, Any], y0: Tensor, params: list[Tensor]) -> dict[str, Any]:
    """The keyword arguments of a call of torchsde's sdeint_adjoint, its adjoint option ``"norm"`` put into effect."""
    options = dict(call["adjoint_options"])
    norm = options.pop("norm")
    _check_sde(call, norm)
    states = 2 * (y0.numel() + (len(y0) if call["logqp"] else 0))
    integrals = sum(p.numel() for p in params)
    share = (states / (states + integrals)) ** 0.5
    atol = y0.new_full((1, states + integrals), torch.inf, requires_grad=False)
    atol[:, :states] = share * call["adjoint_atol"]
    return {**call, "adjoint_options": options, "adjoint_rtol": share * call["adjoint_rtol"], "adjoint_atol": atol}


def _check_sde(call: dict[str, Any], norm: Any) -> None:
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
