"""The adaptive checkpoint adjoint as a solver of torchdiffeq, for call sites that name a solver and no adjoint."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from steptape._errors import OptionError, UnsupportedError
from steptape.compat import _torchdiffeq as host
from steptape.torch._hosts.event import differentiable_time
from steptape.torch._hosts.torchdiffeq import OdeSolve
from steptape.torch._options import keep_of, with_parameters
from steptape.torch._stats import recorded


class AcaSolver:
    """What ``torchdiffeq.odeint(..., method="aca", options={...})`` runs after ``install()``.

    ``options``: ``"method"``, the solver that takes the steps ("dopri5" by default); ``"adjoint_options"`` and
    ``"adjoint_params"``, as in ``odeint_adjoint``; and those of the solver.
    """

    def __init__(
        self,
        func: Any,
        y0: Tensor,
        rtol: Any,
        atol: Any,
        method: str = "dopri5",
        adjoint_options: dict[str, Any] | None = None,
        adjoint_params: Any = None,
        **options: Any,
    ):
        _check_func(func)
        _check_options(method, options)
        self._call = (host.with_callbacks(func), y0, rtol, atol, method, options)
        self._keep = keep_of(adjoint_options)
        self._params = adjoint_params

    @classmethod
    def valid_callbacks(cls) -> set[str]:
        return host.VALID_CALLBACKS

    def integrate(self, t: Tensor) -> Tensor:
        solution, _ = self._replay(t, None)
        return solution

    def integrate_until_event(self, t0: Tensor, event_fn: Any) -> tuple[Tensor, Tensor]:
        solution, end = self._replay(t0.reshape(1), event_fn)
        return end, solution

    def _replay(self, t: Tensor, event_fn: Any) -> tuple[Tensor, Tensor]:
        func, y0, rtol, atol, method, options = self._call
        solve, points = OdeSolve.from_call(func, y0, t, rtol, atol, method, options, self._keep, event_fn)
        spelling = "options={'adjoint_params': (...)}"
        solve, params = with_parameters(solve, (y0, t, points), self._params, spelling)
        solution, end = recorded(solve, y0, t, points, *params)
        if event_fn is not None:
            end = differentiable_time(solve, end.to(t), solution[-1], params)
        return solution, end


def _check_func(func: Any) -> None:
    if host.is_backsolve(func):
        raise UnsupportedError(
            "torchdiffeq.odeint_adjoint(..., adjoint_method='aca'): this call reached the host's own function, which "
            "would solve another equation backward instead. Either it named 'aca' as its method, or it took "
            "odeint_adjoint from where install() did not find it (see there). Pass "
            "torchdiffeq.odeint_adjoint(..., adjoint_method='aca') with a solver of the host's as the method, or call "
            "steptape.torch.odeint_adjoint."
        )


def _check_options(method: Any, options: dict[str, Any]) -> None:
    call = "torchdiffeq.odeint(..., method='aca', options={"
    solvers = {name: solver for name, solver in host.SOLVERS.items() if solver is not AcaSolver}
    if method not in solvers:
        raise OptionError(f"{call}'method': {method!r}}}): no solver of torchdiffeq. Use one of {', '.join(solvers)}.")
    known = host.option_names(solvers[method])
    for name, value in options.items():
        if name not in known:
            raise OptionError(
                f"{call}{name!r}: {value!r}}}): unknown option. 'aca' takes 'method', 'adjoint_options' and "
                f"'adjoint_params', and {method!r} takes {', '.join(map(repr, sorted(known)))}."
            )
