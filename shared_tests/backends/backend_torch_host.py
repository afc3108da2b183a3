"""Runs a case of a fault with torchdiffeq: a field that reads t as a number."""

from typing import Any

import torch
import torchdiffeq

from steptape.shared_tests.backends.backend_torch import versions
from steptape.shared_tests.backends.backends import Case, Run
from steptape.shared_tests.problems.host_faults import SPAN, WEIGHT
from steptape.torch import odeint_adjoint

__all__ = ["run", "versions"]


class _Field(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(WEIGHT, dtype=torch.float64))

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.weight * torch.tensor([t.item()], dtype=torch.float64) * y


def run(case: Case) -> Run:
    """Solve forward, differentiate, and return the record of the run."""
    field, t = _Field(), torch.tensor(SPAN, dtype=torch.float64)
    y0 = torch.ones(1, dtype=torch.float64)
    settings: dict[str, Any] = {"rtol": case.rtol, "atol": case.rtol, "method": case.solver}
    if case.method == "aca":
        end = odeint_adjoint(field, y0, t, adjoint_method="aca", **settings)[-1]
    else:
        end = torchdiffeq.odeint(field, y0, t, **settings)[-1]
    (by_weight,) = torch.autograd.grad(end, field.weight)
    return Run("torch", case, loss=end.item(), gradient={"params": [by_weight.item()]})
