"""The models in PyTorch, and their gradients by each method."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torchcde
import torchdiffeq
from torch import Tensor, nn

import steptape.torch
from benchmarks.fields import Field
from benchmarks.tasks import fields, measure
from benchmarks.tasks.data import Arrays, Task, Weights
from benchmarks.tasks.measure import Gradient
from benchmarks.ways import MATCHED

# torchcde calls torchdiffeq by name; so does what follows.
steptape.torch.install()


def _leaf(x: Tensor) -> Tensor:
    return x if x.requires_grad else x.detach().requires_grad_()


def _vjp(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        at = _leaf(at)
        value = function(at)

    def pull(cotangent: Tensor) -> Tensor:
        return torch.autograd.grad(value, at, cotangent, create_graph=graph, retain_graph=True)[0]

    return value if graph else value.detach(), pull


def _grad(function: Callable[[Tensor], tuple[Tensor, Any]], at: Tensor) -> tuple[Tensor, Any]:
    graph = torch.is_grad_enabled()
    with torch.enable_grad():
        at = _leaf(at)
        value, others = function(at)
        gradient = torch.autograd.grad(value, at, create_graph=graph, retain_graph=True)[0]
    return gradient, others if graph else tuple(other.detach() for other in others)


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

    def modules(self, weights: Weights) -> tuple[Field, Any]:
        """The vector field, which also counts the pullbacks to its first parameter, and all nets, in the same order."""
        nets: Any = nn.ModuleDict({name: nn.ParameterList(map(torch.tensor, x)) for name, x in weights.items()})
        inner = nn.ModuleDict({name: nets[name] for name in self.task.field})
        noise = None if self.task.noise is None else torch.tensor(self.task.noise)
        slopes: dict[str, Callable[[Tensor, Any], Any]] = {
            "cde": lambda t, z: fields.controlled(inner, z),
            "cnf": functools.partial(fields.flow, _vjp, inner, noise),
            "symplectic": lambda t, state: fields.hamiltonian(_grad, inner, state),
        }
        field = Field(slopes[self.task.kind], inner)
        next(field.parameters()).register_hook(lambda gradient: field.counts.update(["pullbacks"]))
        return field, nets

    def _how(self, y0: Any, tolerance: tuple[float, float], solver: str) -> dict[str, Any]:
        rtol, atol = tolerance
        options: dict[str, dict[str, Any]] = {
            "default": {},
            "seminorm": {"adjoint_options": {"norm": steptape.torch.seminorm(y0)}},
            MATCHED: {"adjoint_method": "quadrature", "adjoint_atol": atol * self.task.batch},
        }
        chosen = options.get(self.method, {"adjoint_method": self.method})
        return {"rtol": rtol, "atol": atol, "method": solver, **chosen}

    def _cde(self, field: Field, nets: Any, batch: Arrays, *how: Any) -> Any:
        (path, label), times = map(torch.tensor, batch), torch.tensor(self.task.times)
        knots = torchcde.hermite_cubic_coefficients_with_backward_differences(path, times)
        control = torchcde.CubicSpline(knots, times)
        z0 = fields.net(nets["initial"], path[:, 0])
        z = torchcde.cdeint(control, field, z0, control.interval, **self._how(z0, *how))
        return fields.cross_entropy(fields.net(nets["readout"], z[:, -1])[:, 0], label)

    def _cnf(self, field: Field, nets: Any, batch: Arrays, *how: Any) -> Any:
        points = torch.tensor(batch[0])
        y0, times = (points, points.new_zeros(len(points))), torch.tensor(self.task.times)
        loss = fields.nats(*(x[-1] for x in torchdiffeq.odeint_adjoint(field, y0, times, **self._how(y0, *how))))
        return loss, loss

    def _symplectic(self, field: Field, nets: Any, batch: Arrays, *how: Any) -> Any:
        series = torch.tensor(batch[0]).transpose(0, 1)
        times = torch.tensor(self.task.times)
        found = torchdiffeq.odeint_adjoint(field, series[0], times, **self._how(series[0], *how))
        loss = ((found - series)[1:, :, :4] ** 2).mean()
        return loss, loss


cells = functools.partial(measure.cells, model_of=Model)
