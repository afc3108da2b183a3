"""The models in JAX, and their gradients by each method."""

import functools
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.jax_programs import adaptive, solved
from benchmarks.tasks import fields, measure
from benchmarks.tasks.data import Arrays, Task, Weights, flat
from benchmarks.tasks.measure import Gradient
from benchmarks.ways import MATCHED
from steptape.jax import AdaptiveCheckpointAdjoint, QuadratureAdjoint, SeminormAdjoint

# Some more than the longest solve takes: the dense output of the quadrature has as many rows, and zeroes them first.
_MAX_STEPS = 160


def _vjp(function: Callable, at: Any) -> tuple[Any, Callable]:
    value, pull = jax.vjp(function, at)
    return value, lambda cotangent: pull(cotangent)[0]


def _grad(function: Callable, at: Any) -> Any:
    return jax.grad(function, has_aux=True)(at)


class Model:
    """A task's loss and its gradient, by one of the methods; compiled once, for all tolerances, counted or not."""

    def __init__(self, task: Task, method: str, max_steps: int = _MAX_STEPS):
        self.task, self.method, self._max_steps = task, method, max_steps
        self._evaluations = 0
        self._loss = {"cde": self._cde, "cnf": self._cnf, "symplectic": self._symplectic}[task.kind]
        self._solver: diffrax.AbstractSolver = diffrax.Dopri5()
        self._program: Any = jax.jit(jax.value_and_grad(self._loss, has_aux=True))

    def gradient(self, weights: Weights, batch: Arrays, tolerance: tuple[float, float]) -> Gradient:
        (loss, _), gradient = jax.block_until_ready(self._program(weights, batch, tolerance, False))
        return Gradient(float(loss), _vector(gradient, weights))

    def count(self, weights: Weights, batch: Arrays, tolerance: tuple[float, float]) -> Gradient:
        """The same, and the evaluations it took, for which each one calls back."""
        self._evaluations = 0
        (loss, (_, tries)), gradient = jax.block_until_ready(self._program(weights, batch, tolerance, True))
        jax.effects_barrier()
        # Dopri5 takes 6 a try; 3 more choose the first step and start. Where diffrax chooses a first step, in equinox's
        # scan_trick, callbacks are lost: two a choice, of which its own adjoints make one for each output.
        forward = 6 * int(tries) + 3
        outputs = len(self.task.times) - 1 if self.task.kind == "symplectic" else 1
        choices = 1 + outputs * (self.method in ("default", "seminorm"))
        return Gradient(float(loss), _vector(gradient, weights), forward, self._evaluations + 2 * choices - forward)

    def reference(self, weights: Weights, batch: Arrays) -> np.ndarray:
        """The gradient of a solve at 1e-11 by a method of order 8."""
        exact = Model(self.task, "aca", max_steps=4096)
        exact._solver = diffrax.Dopri8()
        return exact.gradient(weights, batch, (1e-11, 1e-11)).vector

    def score(self, weights: Weights, batch: Arrays, tolerance: tuple[float, float]) -> float:
        return float(self._program(weights, batch, tolerance, False)[0][1][0])

    def _call(self) -> None:
        self._evaluations += 1

    def field(self) -> Callable:
        """The vector field of the task; of a CDE, what the slope of the path is multiplied by."""
        slopes: dict[str, Callable] = {
            "cde": lambda t, z, weights: fields.controlled(weights, z),
            "cnf": lambda t, state, weights: fields.flow(_vjp, weights, self.task.noise, t, state),
            "symplectic": lambda t, state, weights: fields.hamiltonian(_grad, weights, state),
        }
        return slopes[self.task.kind]

    def how(self, rtol: Any, atol: Any) -> dict[str, Any]:
        """The step sizes of a solve at these tolerances, and the method's adjoint."""
        adjoints: dict[str, Callable[[], diffrax.AbstractAdjoint]] = {
            "default": diffrax.BacksolveAdjoint,
            "seminorm": SeminormAdjoint,
            "quadrature": QuadratureAdjoint,
            MATCHED: functools.partial(QuadratureAdjoint, **adaptive(rtol, atol * self.task.batch)),
            "aca": AdaptiveCheckpointAdjoint,
        }
        return {"adjoint": adjoints[self.method](), **adaptive(rtol, atol)}

    def _solve(self, field: Callable, y0: Any, times: Any, args: Any, tolerance: Any, counted: Any) -> Any:
        def vector_field(t, y, args):
            jax.lax.cond(args[1], lambda: jax.debug.callback(self._call), lambda: None)
            return field(t, y, args[0])

        saveat = diffrax.SaveAt(ts=times[1:]) if len(times) > 2 else diffrax.SaveAt(t1=True)
        how = {"t0": times[0], "dt0": None, "solver": self._solver, "saveat": saveat, **self.how(*tolerance)}
        how["max_steps"] = self._max_steps
        solution = solved(vector_field, times[-1], y0, (args, counted), **how)
        return solution.ys, solution.stats["num_steps"]

    def _cde(self, weights: Any, batch: Any, tolerance: Any, counted: Any) -> Any:
        path, label = batch
        # Among args, as diffrax's own adjoint refuses a closure: it integrates for the gradient of the path as well.
        knots = jnp.asarray(self.task.times)
        coefficients = jax.vmap(functools.partial(diffrax.backward_hermite_coefficients, knots))(path)

        def field(t, z, args):
            knots = jnp.asarray(self.task.times)
            slope = jax.vmap(lambda c: diffrax.CubicInterpolation(knots, c).derivative(t))(args["path"])
            return (fields.controlled(args, z) @ slope[..., None])[..., 0]

        z0, args = fields.net(weights["initial"], path[:, 0]), {"field": weights["field"], "path": coefficients}
        z, tries = self._solve(field, z0, self.task.times[[0, -1]], args, tolerance, counted)
        loss, accuracy = fields.cross_entropy(fields.net(weights["readout"], z[-1])[:, 0], label)
        return loss, (accuracy, tries)

    def _cnf(self, weights: Any, batch: Any, tolerance: Any, counted: Any) -> Any:
        y0 = batch[0], jnp.zeros(len(batch[0]))
        (z, change), tries = self._solve(self.field(), y0, self.task.times, weights, tolerance, counted)
        loss = fields.nats(z[-1], change[-1])
        return loss, (loss, tries)

    def _symplectic(self, weights: Any, batch: Any, tolerance: Any, counted: Any) -> Any:
        series = jnp.swapaxes(batch[0], 0, 1)
        found, tries = self._solve(self.field(), series[0], self.task.times, weights, tolerance, counted)
        loss = ((found - series[1:])[:, :, :4] ** 2).mean()
        return loss, (loss, tries)


def _vector(gradient: Any, weights: Weights) -> np.ndarray:
    # JAX sorts the keys of a dict.
    return flat({name: [np.asarray(x) for x in gradient[name]] for name in weights})


cells = functools.partial(measure.cells, model_of=Model)
