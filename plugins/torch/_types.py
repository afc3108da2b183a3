"""What a caller passes and gets back, as type checkers see it: a tensor's solution is a tensor, a tuple's a tuple."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypedDict

from torch import Tensor

Tensors = tuple[Tensor, ...]
Times = Tensor | Sequence[float]
Yes = Literal[True]
No = Literal[False]
Field = Callable[[Tensor, Tensor], Tensor]
# Of a state that is a tuple: its own annotations may say how long that is.
TupleField = Callable[[Tensor, Any], Sequence[Tensor]]
Event = Callable[[Tensor, Tensor], Tensor]
TupleEvent = Callable[[Tensor, Any], Tensor]


class OdeOptions(TypedDict, total=False):
    """The keywords of ``odeint_adjoint`` that do not say what it returns."""

    rtol: float | Tensor | Sequence[float | Tensor]
    atol: float | Tensor | Sequence[float | Tensor]
    method: str | None
    options: dict[str, Any] | None
    adjoint_rtol: float | Tensor | Sequence[float | Tensor] | None
    adjoint_atol: float | Tensor | Sequence[float | Tensor] | None
    adjoint_method: str | None
    adjoint_options: dict[str, Any] | None
    adjoint_params: Iterable[Tensor] | None


class SdeOptions(TypedDict, total=False):
    """The keywords of ``sdeint_adjoint`` that do not say what it returns."""

    method: str | None
    adjoint_method: str | None
    dt: float | Tensor
    adaptive: bool
    adjoint_adaptive: bool
    rtol: float | Tensor
    adjoint_rtol: float | Tensor
    atol: float | Tensor
    adjoint_atol: float | Tensor
    dt_min: float | Tensor
    options: dict[str, Any] | None
    adjoint_options: dict[str, Any] | None
    adjoint_params: Iterable[Tensor] | None
    names: dict[str, str] | None
    extra_solver_state: Sequence[Tensor] | None
