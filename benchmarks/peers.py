"""Every way to a gradient that is measured, as a function from a problem to its solution at ``t``.

All step by Dormand and Prince's method of order 5 with the problem's tolerance as both the relative and the absolute
one, forward and, where they solve backward, there too.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
from collections.abc import Callable
from typing import Any

import torch
import torchdiffeq
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import steptape.torch
from benchmarks.fields import Problem, Setup
from benchmarks.ways import HOST, HOST_ADJOINT, OURS


@dataclasses.dataclass(frozen=True)
class Method:
    """``solve`` maps a problem to its solution, (outputs, batch, dim). ``package``: what it needs installed."""

    name: str
    solve: Callable[[Problem], Tensor]
    package: str = "torchdiffeq"
    per_sample: bool = False

    @property
    def ours(self) -> bool:
        """Whether it is one of steptape's."""
        return self.package == "steptape"

    def why_not(self, setup: Setup) -> str | None:
        """Why it cannot be measured on a set-up, if so."""
        try:
            importlib.import_module(self.package)
        except ImportError as error:
            return f"not installed ({error})"
        if self.per_sample and setup.batch * setup.parameters > 1e6:
            return f"not run: carries the parameters' gradient once a sample, {setup.batch} x {setup.parameters}"
        return None


def _host(problem: Problem, func: Any = None) -> Tensor:
    return torchdiffeq.odeint(func or problem.field, problem.y0, problem.t, **_settings(problem))


def _settings(problem: Problem) -> dict[str, Any]:
    return {"rtol": problem.tolerance, "atol": problem.tolerance, "method": "dopri5"}


def _checkpointed(problem: Problem) -> Tensor:
    return _host(problem, lambda t, y: checkpoint(problem.field, t, y, use_reentrant=False))


def _host_adjoint(problem: Problem, **options: Any) -> Tensor:
    return torchdiffeq.odeint_adjoint(
        problem.field, problem.y0, problem.t, **_settings(problem), adjoint_options=options or None
    )


def _seminorm(problem: Problem) -> Tensor:
    return _host_adjoint(problem, norm="seminorm")


def _steptape(**options: Any) -> Callable[[Problem], Tensor]:
    def solve(problem: Problem) -> Tensor:
        return steptape.torch.odeint_adjoint(
            problem.field,
            problem.y0,
            problem.t,
            **_settings(problem),
            adjoint_method="aca",
            adjoint_options=options or None,
        )

    return solve


def _zuko(problem: Problem) -> Tensor:
    from zuko.utils import odeint

    phi = tuple(problem.field.parameters())
    ys = [problem.y0]
    for start, end in itertools.pairwise(problem.t):
        ys.append(odeint(problem.field, ys[-1], start, end, phi, atol=problem.tolerance, rtol=problem.tolerance))
    return torch.stack(ys)


def _torchode(adjoint: str) -> Callable[[Problem], Tensor]:
    def solve(problem: Problem) -> Tensor:
        import torchode

        term = torchode.ODETerm(problem.field)
        step = torchode.Dopri5(term=term)
        controller = torchode.IntegralController(atol=problem.tolerance, rtol=problem.tolerance, term=term)
        machinery = (step, controller) if adjoint == "AutoDiffAdjoint" else (term, step, controller)
        solver = getattr(torchode, adjoint)(*machinery).to(problem.y0.dtype)
        times = problem.t.expand(len(problem.y0), -1)
        start = torchode.InitialValueProblem(y0=problem.y0, t_start=times[:, 0], t_end=times[:, -1], t_eval=times)
        return solver.solve(start, term=term if adjoint == "AutoDiffAdjoint" else None).ys.transpose(0, 1)

    return solve


def _torchdyn(problem: Problem) -> Tensor:
    from torchdyn.numerics import DormandPrince45, odeint

    solver = DormandPrince45(problem.y0.dtype)
    settings = {"atol": problem.tolerance, "rtol": problem.tolerance, "interpolator": "4th"}
    return odeint(problem.field, problem.y0, problem.t, solver, **settings)[1]


def _torchdyn_adjoint(problem: Problem) -> Tensor:
    # Its public door, torchdyn.core.ODEProblem, is this function behind an import of pytorch_lightning.
    from torchdyn.numerics import DormandPrince45
    from torchdyn.numerics.sensitivity import _gather_odefunc_adjoint

    solver, tolerance = DormandPrince45(problem.y0.dtype), problem.tolerance
    params = torch.cat([p.flatten() for p in problem.field.parameters()])
    solve = _gather_odefunc_adjoint(
        problem.field, params, solver, tolerance, tolerance, "4th", solver, tolerance, tolerance, None, "standard"
    )
    return solve.apply(params, problem.y0, problem.t, None, ())[1]


# Those named adjoint, backsolve or zuko solve the continuous adjoint. Its error control leaves out the parameters in
# the seminorm's and in torchdyn's; zuko's is by the maximum norm, so that its steps are smaller, and over each step.
# torchode controls errors and steps per sample, but for the joint one: one norm over the batch, and the parameters.
METHODS = (
    Method(HOST, _host),
    Method(OURS, _steptape(), "steptape"),
    Method(f"{OURS}, checkpoints=8", _steptape(checkpoints=8), "steptape"),
    Method(f'{OURS}, graph="stage"', _steptape(graph="stage"), "steptape"),
    Method(f'{OURS}, checkpoints=8, graph="stage"', _steptape(checkpoints=8, graph="stage"), "steptape"),
    Method(f"{HOST}, checkpointed func", _checkpointed),
    Method(HOST_ADJOINT, _host_adjoint),
    Method(f"{HOST_ADJOINT}, seminorm", _seminorm),
    Method("zuko", _zuko, "zuko"),
    Method("torchode, autograd", _torchode("AutoDiffAdjoint"), "torchode"),
    Method("torchode, joint backsolve", _torchode("JointBacksolveAdjoint"), "torchode"),
    Method("torchode, backsolve", _torchode("BacksolveAdjoint"), "torchode", per_sample=True),
    Method("torchdyn, autograd", _torchdyn, "torchdyn"),
    Method("torchdyn, adjoint", _torchdyn_adjoint, "torchdyn"),
)
