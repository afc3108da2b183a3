"""Runs a case with torchsde on a given Brownian path: ACA and the host's own back-propagation."""

import functools
import platform
from importlib.metadata import version
from typing import Any

import torch
import torchsde

from steptape.shared_tests.backends.backends import Case, Run
from steptape.shared_tests.backends.sde_schemes import SCHEMES
from steptape.shared_tests.problems.sde_paths import path_values, per_path
from steptape.shared_tests.problems.sde_problems import OUTPUT_TIMES, SDE_PROBLEMS, SdeProblem


class GridBrownian(torchsde.BaseBrownian):
    """A Brownian path given by its values at equidistant times from 0 to 1, linear between them.

    `values` has shape (paths, points, channels).
    """

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values

    def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> torch.Tensor:
        """Return W(tb) - W(ta), or W(ta)."""
        if return_U or return_A:
            raise ValueError("a path on a grid has no Lévy areas")
        return self._at(ta) if tb is None else self._at(tb) - self._at(ta)

    def _at(self, t: Any) -> torch.Tensor:
        cells = self.values.shape[1] - 1
        place = float(t) * cells
        cell = min(int(place), cells - 1)
        low, high = self.values[:, cell], self.values[:, cell + 1]
        return low + (place - cell) * (high - low)

    def __repr__(self) -> str:
        return f"GridBrownian({tuple(self.values.shape)})"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values."""
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        """The device of the values."""
        return self.values.device

    @property
    def shape(self) -> torch.Size:
        """The shape of an increment: (paths, channels)."""
        return self.values[:, 0].shape

    @property
    def levy_area_approximation(self) -> str:
        """None is known."""
        return "none"


class _Sde(torch.nn.Module):
    """A problem as torchsde takes it."""

    def __init__(self, problem: SdeProblem, ito: bool) -> None:
        super().__init__()
        self.problem, self.noise_type = problem, problem.noise
        self.sde_type = "ito" if ito else "stratonovich"
        self.params = torch.nn.Parameter(torch.from_numpy(per_path(problem.params)))

    def f(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.problem.drift(t, y, self.params)

    def g(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.problem.diffusion(t, y, self.params)


def versions() -> dict[str, str]:
    """Return the versions of everything the figures of this process depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("numpy", "torch", "torchsde")}}


def run(case: Case) -> Run:
    """Solve forward, differentiate, and return the record of the run."""
    problem, scheme = SDE_PROBLEMS[case.problem], SCHEMES[case.solver]
    sde, y0 = _Sde(problem, scheme.ito), torch.from_numpy(per_path(problem.y0)).requires_grad_()
    ys = _integrator(case.method)(
        sde,
        y0,
        torch.tensor([0.0, *OUTPUT_TIMES], dtype=torch.float64),
        bm=GridBrownian(torch.from_numpy(path_values(problem.channels))),
        method=scheme.torch_name,
        dt=case.step,
    )[1:]
    loss = problem.loss(ys)
    gradient = torch.autograd.grad(loss, (y0, sde.params))
    return Run(
        "torch",
        case,
        loss=loss.item(),
        ys=ys.flatten(1).tolist(),
        gradient=dict(zip(("y0", "params"), (part.flatten().tolist() for part in gradient), strict=True)),
    )


def _integrator(method: str) -> Any:
    if method == "backprop":
        return torchsde.sdeint
    from steptape.torch import sdeint_adjoint

    return functools.partial(sdeint_adjoint, adjoint_method="aca")
