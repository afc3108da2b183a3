"""The models in PyTorch, and their gradients by each method."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torchcde
import torchdiffeq
from torch import Tensor, nn

import steptape.torch
from benchmarks.fields import Field
from benchmarks.tasks import measure
from benchmarks.tasks.data import Arrays, Task, Weights
from benchmarks.tasks.measure import Gradient
from benchmarks.ways import MATCHED

# torchcde calls torchdiffeq by name; so does what follows.
steptape.torch.install()


class Net(nn.Module):
    """A perceptron with tanh between its layers."""

    def __init__(self, layers: list[np.ndarray]):
        super().__init__()
        self.layers = nn.ParameterList(nn.Parameter(torch.tensor(x)) for x in layers)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., inputs) to (..., outputs)."""
        for i in range(0, len(self.layers), 2):
            x = x @ self.layers[i] + self.layers[i + 1]
            x = torch.tanh(x) if i + 2 < len(self.layers) else x
        return x


def _controlled(nets: nn.ModuleDict, noise: None, t: Tensor, z: Tensor) -> Tensor:
    """f(z) of a CDE, shape (batch, hidden, 3), which torchcde multiplies by the slope of the path."""
    return torch.tanh(nets["field"](z)).view(*z.shape, 3)


def _flow(nets: nn.ModuleDict, noise: Tensor | None, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The slope of (z, log density), by one pullback for each dimension, or one in all for a noise."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        z = _leaf(state[0])
        slope = nets["field"](torch.cat([z, t.expand(len(z), 1)], 1))
        if noise is not None:
            trace = (_gradient(slope, z, noise, graph) * noise).sum(1)
        else:
            units = [unit.expand_as(z) for unit in torch.eye(z.shape[1], dtype=z.dtype)]
            trace = torch.stack([_gradient(slope, z, unit, graph)[:, i] for i, unit in enumerate(units)]).sum(0)
    return (slope, -trace) if graph else (slope.detach(), -trace.detach())


def _leaf(x: Tensor) -> Tensor:
    return x if x.requires_grad else x.detach().requires_grad_()


def _gradient(of: Tensor, at: Tensor, cotangent: Tensor, graph: bool) -> Tensor:
    return torch.autograd.grad(of, at, cotangent, create_graph=graph, retain_graph=True)[0]


def _hamiltonian(nets: nn.ModuleDict, noise: None, t: Tensor, state: Tensor) -> Tensor:
    """The slope of (angles, momenta, torques), shape (batch, 6), as the state."""
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        q, p, u = state.split(2, dim=1)
        q = _leaf(q)
        features = torch.cat([torch.cos(q), torch.sin(q)], 1)
        a, b, c = nets["mass"](features).T
        # The inverse of the mass matrix is L Lᵀ + 0.1, with L = [[a, 0], [c, b]].
        w = torch.stack([a * p[:, 0] + c * p[:, 1], b * p[:, 1]], 1)
        speed = torch.stack([a * w[:, 0], c * w[:, 0] + b * w[:, 1]], 1) + 0.1 * p
        energy = (p * speed).sum() / 2 + nets["potential"](features).sum()
        pull = _gradient(energy, q, torch.ones_like(energy), graph)
        push = (nets["torque"](features).view(-1, 2, 2) @ u[:, :, None])[:, :, 0]
        slope = torch.cat([speed, push - pull, torch.zeros_like(u)], 1)
    return slope if graph else slope.detach()


class Model:
    """A task's loss and its gradient, by one of the methods."""

    def __init__(self, task: Task, method: str):
        self.task, self.method = task, method
        self._loss = {"cde": self._cde, "cnf": self._cnf, "symplectic": self._symplectic}[task.kind]

    def gradient(self, weights: Weights, batch: Arrays, tolerance: tuple[float, float], solver: str = "dopri5") -> Any:
        """The loss, its gradient and the evaluations it took, which it counts in any case."""
        field, nets = self.modules(weights)
        loss, _ = self._loss(field, nets, batch, tolerance, solver)
        forward = field.counts["evaluations"]
        vector = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(nets.parameters()))]).numpy()
        # The last call of the hook is for the gradient as a whole.
        backward, pullbacks = field.counts["evaluations"] - forward, field.counts["pullbacks"] - 1
        return Gradient(loss.item(), vector, forward, backward, pullbacks)

    count = gradient

    def reference(self, weights: Weights, batch: Arrays) -> np.ndarray:
        """The gradient of a solve at 1e-11 by a method of order 8."""
        return Model(self.task, "aca").gradient(weights, batch, (1e-11, 1e-11), "dopri8").vector

    def score(self, weights: Weights, batch: Arrays, tolerance: tuple[float, float]) -> float:
        with torch.no_grad():
            return float(self._loss(*self.modules(weights), batch, tolerance, "dopri5")[1])

    def modules(self, weights: Weights) -> tuple[Field, nn.ModuleDict]:
        """The vector field, which also counts the pullbacks to its first parameter, and all nets, in the same order."""
        nets = nn.ModuleDict({name: Net(layers) for name, layers in weights.items()})
        inner = nn.ModuleDict({name: nets[name] for name in self.task.field})
        noise = None if self.task.noise is None else torch.tensor(self.task.noise)
        slopes: dict[str, Callable[..., Any]] = {"cde": _controlled, "cnf": _flow, "symplectic": _hamiltonian}
        slope = slopes[self.task.kind]
        field = Field(functools.partial(slope, inner, noise), inner)
        next(field.parameters()).register_hook(lambda gradient: field.counts.update(["pullbacks"]))
        return field, nets

    def _solve(self, y0: Any, tolerance: tuple[float, float], solver: str) -> dict[str, Any]:
        rtol, atol = tolerance
        options: dict[str, dict[str, Any]] = {
            "default": {},
            "seminorm": {"adjoint_options": {"norm": steptape.torch.seminorm(y0)}},
            MATCHED: {"adjoint_method": "quadrature", "adjoint_atol": atol * self.task.batch},
        }
        chosen = options.get(self.method, {"adjoint_method": self.method})
        return {"rtol": rtol, "atol": atol, "method": solver, **chosen}

    def _cde(self, field: Field, nets: nn.ModuleDict, batch: Arrays, tolerance: Any, solver: str) -> Any:
        path, label = map(torch.tensor, batch)
        times = torch.tensor(self.task.times)
        control = torchcde.CubicSpline(
            torchcde.hermite_cubic_coefficients_with_backward_differences(path, times), times
        )
        z0 = nets["initial"](path[:, 0])
        z = torchcde.cdeint(control, field, z0, control.interval, **self._solve(z0, tolerance, solver))
        logit = nets["readout"](z[:, -1])[:, 0]
        right = ((logit > 0) == (label == 1)).double().mean()
        return nn.functional.binary_cross_entropy_with_logits(logit, label), right

    def _cnf(self, field: Field, nets: nn.ModuleDict, batch: Arrays, tolerance: Any, solver: str) -> Any:
        points = torch.tensor(batch[0])
        y0, times = (points, points.new_zeros(len(points))), torch.tensor(self.task.times)
        solve = self._solve(y0, tolerance, solver)
        z, change = (x[-1] for x in torchdiffeq.odeint_adjoint(field, y0, times, **solve))
        log_density = -(z**2).sum(1) / 2 - z.shape[1] / 2 * math.log(2 * math.pi) - change
        loss = -log_density.mean() / z.shape[1]
        return loss, loss

    def _symplectic(self, field: Field, nets: nn.ModuleDict, batch: Arrays, tolerance: Any, solver: str) -> Any:
        series = torch.tensor(batch[0]).transpose(0, 1)
        solve = self._solve(series[0], tolerance, solver)
        found = torchdiffeq.odeint_adjoint(field, series[0], torch.tensor(self.task.times), **solve)
        loss = ((found - series)[1:, :, :4] ** 2).mean()
        return loss, loss


cells = functools.partial(measure.cells, model_of=Model)
