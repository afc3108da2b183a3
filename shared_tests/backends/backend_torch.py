"""Runs a case with torchdiffeq: ACA and the host's own ways to a gradient."""

import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
import torchdiffeq

from steptape.shared_tests.backends.backends import CAPABILITIES, Case, Run
from steptape.shared_tests.problems.problems import PROBLEMS, Problem

_MAX_ADJOINT_STEPS = 10_000
# Named options keep the forward solve's first_step, which the host would hand down, from the backward solve.
_HOST_ADJOINTS = {
    "adjoint": {"max_num_steps": _MAX_ADJOINT_STEPS},
    "seminorm": {"max_num_steps": _MAX_ADJOINT_STEPS, "norm": "seminorm"},
}


class _Noticed(torch.autograd.Function):
    """Parameters as they are; the field that uses them counts the cotangents that come back for them."""

    @staticmethod
    def forward(ctx: Any, params: torch.Tensor, field: Any) -> torch.Tensor:
        ctx.field = field
        return params.view_as(params)

    @staticmethod
    def backward(ctx: Any, cotangent: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.field.parameter_pulls += 1
        return cotangent, None


class _Field(torch.nn.Module):
    """The problem's field with its parameters, which counts its calls and collects the accepted steps."""

    def __init__(self, problem: Problem, on_step: str) -> None:
        super().__init__()
        self.problem = problem
        self.params = torch.nn.Parameter(torch.tensor(problem.params, dtype=torch.float64))
        self.evaluations = 0
        self.parameter_pulls = 0
        self.steps: list[tuple[float, float]] = []
        setattr(self, on_step, self._record)

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.evaluations += 1
        return self.problem.field(t, y, _Noticed.apply(self.params, self))

    def _record(self, t0: torch.Tensor, y0: torch.Tensor, dt: torch.Tensor) -> None:
        self.steps.append((t0.item(), dt.item()))


def versions() -> dict[str, str]:
    """Return the versions of everything the figures of this process depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("torch", "torchdiffeq")}}


def run(case: Case) -> Run:
    """Solve forward, differentiate, and return the record of the run."""
    problem, capability = PROBLEMS[case.problem], CAPABILITIES["torch", case.method, case.solver]
    func = _Field(problem, "callback_accept_step" if capability.solver.adaptive else "callback_step")
    y0 = torch.tensor(problem.y0, dtype=torch.float64, requires_grad=True)
    times = torch.tensor(problem.times, dtype=torch.float64, requires_grad=True)

    start = time.perf_counter()
    try:
        ys = _solve(case, func, y0, times)[1:]
    except ValueError as error:
        if "Invalid method" not in str(error):
            raise
        absent = f"torchdiffeq {version('torchdiffeq')} has no {capability.solver.host_name}"
        return Run("torch", case, failure=absent, absent=True)
    forward, func.evaluations = func.evaluations, 0
    grid = _grid(func.steps)
    loss = problem.loss(ys)
    gradient = torch.autograd.grad(loss, (y0, func.params, times))
    seconds = time.perf_counter() - start
    return Run(
        "torch",
        case,
        loss=loss.item(),
        ys=ys.tolist(),
        gradient=dict(zip(("y0", "params", "times"), (part.tolist() for part in gradient), strict=True)),
        grid=grid,
        forward_evaluations=forward,
        backward_evaluations=func.evaluations,
        parameter_pulls=func.parameter_pulls,
        seconds=seconds,
    )


def _solve(case: Case, func: _Field, y0: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    solver = CAPABILITIES["torch", case.method, case.solver].solver
    if case.grid and solver.adaptive:
        settings = _accept_every_step(case, times)
    elif case.grid:
        settings = {"options": {"grid_constructor": lambda func, y0, t: _moving_grid(case, t)}}
    else:
        first_step = {"first_step": PROBLEMS[case.problem].first_step}
        settings = {"rtol": case.rtol, "atol": case.rtol, "options": first_step}
    return _integrator(case.method)(func, y0, times, method=solver.host_name, **settings)


def _integrator(method: str) -> Callable[..., Any]:
    if method == "backprop":
        return torchdiffeq.odeint
    if method in ("aca", "quadrature"):
        from steptape.torch import odeint_adjoint

        return lambda *args, **settings: odeint_adjoint(*args, adjoint_method=method, **settings)
    adjoint_options = _HOST_ADJOINTS[method]
    return lambda *args, **settings: torchdiffeq.odeint_adjoint(*args, adjoint_options=adjoint_options, **settings)


def _accept_every_step(case: Case, times: torch.Tensor) -> dict[str, Any]:
    """Return settings that put an adaptive solver on a grid.

    At these tolerances every try is accepted and the next try is as long as may be, so it is cut at the next
    point of `step_t`.
    """
    span = case.grid[-1] - case.grid[0]
    options = {"step_t": _moving_grid(case, times)[1:], "first_step": 2 * span, "ifactor": 1e9}
    return {"rtol": 1e200, "atol": 1e200, "options": options}


def _moving_grid(case: Case, times: torch.Tensor) -> torch.Tensor:
    """Return the grid; its points at the given times are those times, and so take part in the gradient."""
    index = torch.tensor([case.grid.index(t) for t in PROBLEMS[case.problem].times])
    return torch.tensor(case.grid, dtype=torch.float64).index_put((index,), times)


def _grid(steps: list[tuple[float, float]]) -> list[float]:
    """Return the ends of the accepted steps; each starts exactly where the one before it ended."""
    return [t0 for t0, _ in steps] + [sum(steps[-1])] if steps else []
