"""The faults of torchdiffeq and torchsde: see ``benchmarks.faults``."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torchdiffeq
import torchsde

from benchmarks.envelope import Rows
from benchmarks.faults import row, script
from benchmarks.measurements import Cells, Scope
from steptape.torch import odeint_adjoint, sdeint_adjoint

_ACA = functools.partial(odeint_adjoint, adjoint_method="aca")


def cells(scope: Scope) -> Cells:
    """A cell a fault."""
    return {"first step": _first_step, "stiff": _stiff, "ito": _ito}


def _first_step() -> Rows:
    file = "torchdiffeq-first-step.py"
    gradient = script(file)["gradient"]
    return [
        row(
            file,
            "torchdiffeq `odeint`",
            f"dy/dt = w t y, which reads t as a number; dopri5 at {tolerance:g}",
            1.5 * math.exp(0.75),
            "closed form",
            functools.partial(gradient, _number, tolerance),
            functools.partial(gradient, _number, tolerance, solve=_ACA),
        )
        for tolerance in (1e-6, 1e-10)
    ]


def _number(t: torch.Tensor) -> torch.Tensor:
    return torch.tensor([t.item()], dtype=torch.float64)


def _stiff() -> Rows:
    file = "torchdiffeq-stiff-adjoint.py"
    gradient = script(file)["gradient"]
    right = gradient(torchdiffeq.odeint, 1e-11, "dopri8")
    return [
        row(
            file,
            "torchdiffeq `odeint_adjoint`",
            f"van der Pol's equation, μ = 5, to t = 20; dopri5 at {rtol:g}, {rtol / 1000:g}",
            right,
            "back-propagation by dopri8 at 1e-11, 1e-14",
            functools.partial(gradient, torchdiffeq.odeint_adjoint, rtol),
            functools.partial(gradient, _ACA, rtol),
        )
        for rtol in (1e-5, 1e-9)
    ]


def _ito() -> Rows:
    file = "torchsde-ito-adjoint.py"
    gradient = script(file)["gradient"]

    def total(solve: Any, dt: float, which: int = 0, **how: Any) -> float:
        return float(gradient(solve, dt, paths=1, **how)[which])

    return [
        row(
            file,
            "torchsde `sdeint_adjoint`",
            f"Itô, diagonal noise whose g_2 reads y_1, one path; euler, dt = {dt:g}",
            total(torchsde.sdeint, dt, 1),
            "the solution is linear in y(0)",
            functools.partial(total, torchsde.sdeint_adjoint, dt),
            functools.partial(total, sdeint_adjoint, dt, adjoint_method="aca"),
        )
        for dt in (1e-2, 1e-3)
    ]
