"""The faults of torchdiffeq and torchsde: see ``benchmarks.faults``."""

import functools
import math
from typing import Any

import torch
import torchdiffeq
import torchsde

from benchmarks.envelope import Rows
from benchmarks.faults import Fault
from benchmarks.measurements import Cells, Scope
from steptape.torch import odeint_adjoint, sdeint_adjoint

_ACA, _ACA_SDE = (functools.partial(solve, adjoint_method="aca") for solve in (odeint_adjoint, sdeint_adjoint))


def cells(scope: Scope) -> Cells:
    return {"first step": _first_step, "stiff": _stiff, "ito": _ito}


def _first_step() -> Rows:
    fault = Fault("torchdiffeq-first-step.py", "torchdiffeq `odeint`", "closed form", torchdiffeq.odeint, _ACA)
    gradient, right = fault.script()["gradient"], 1.5 * math.exp(0.75)

    def number(t: torch.Tensor) -> torch.Tensor:
        return torch.tensor([t.item()], dtype=torch.float64)

    def found(solve: Any, tolerance: float) -> float:
        return gradient(number, tolerance, solve=solve)

    return [
        fault.row(
            f"dy/dt = w t y, which reads t as a number; dopri5 at {tolerance:g}",
            right,
            functools.partial(found, tolerance=tolerance),
        )
        for tolerance in (1e-6, 1e-10)
    ]


def _stiff() -> Rows:
    known = "back-propagation by dopri8 at 1e-11, 1e-14"
    host = torchdiffeq.odeint_adjoint
    fault = Fault("torchdiffeq-stiff-adjoint.py", "torchdiffeq `odeint_adjoint`", known, host, _ACA)
    gradient = fault.script()["gradient"]
    right = gradient(torchdiffeq.odeint, 1e-11, "dopri8")
    return [
        fault.row(
            f"van der Pol's equation, μ = 5, to t = 20; dopri5 at {rtol:g}, {rtol / 1000:g}",
            right,
            functools.partial(gradient, rtol=rtol),
        )
        for rtol in (1e-5, 1e-9)
    ]


def _ito() -> Rows:
    known, host = "the solution is linear in y(0)", torchsde.sdeint_adjoint
    fault = Fault("torchsde-ito-adjoint.py", "torchsde `sdeint_adjoint`", known, host, _ACA_SDE)
    gradient = fault.script()["gradient"]

    def total(solve: Any, dt: float, which: int = 0) -> float:
        return float(gradient(solve, dt, paths=1)[which])

    return [
        fault.row(
            f"Itô, diagonal noise whose g_2 reads y_1, one path; euler, dt = {dt:g}",
            total(torchsde.sdeint, dt, 1),
            functools.partial(total, dt=dt),
        )
        for dt in (1e-2, 1e-3)
    ]
