"""The models in JAX, and their gradients by each method."""

import functools
import math
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.jax_programs import adaptive, solved
from benchmarks.tasks import measure
from benchmarks.tasks.data import Arrays, Task, Weights, flat
from benchmarks.tasks.measure import Gradient
from benchmarks.ways import MATCHED
from steptape.jax import AdaptiveCheckpointAdjoint, QuadratureAdjoint, SeminormAdjoint

# Some more than the longest solve takes: the dense output of the quadrature has as many rows, and zeroes them first.
_MAX_STEPS = 160


def net(layers: list[Any], x: Any) -> Any:
    """A perceptron with tanh between its layers: (..., inputs) to (..., outputs)."""
    for i in range(0, len(layers), 2):
        x = x @ layers[i] + layers[i + 1]
        x = jnp.tanh(x) if i + 2 < len(layers) else x
    return x


def controlled(t: Any, z: Any, weights: Any) -> Any:
    """f(z) of a CDE, shape (batch, hidden, 3)."""
    return jnp.tanh(net(weights["field"], z)).reshape(*z.shape, 3)


def flow(noise: Any, t: Any, state: Any, weights: Any) -> Any:
    """The slope of (z, log density), by one pullback for each dimension, or one in all for a noise."""
    z, _ = state
    slope, pull = jax.vjp(lambda z: net(weights["field"], jnp.concatenate([z, jnp.full_like(z[:, :1], t)], 1)), z)
    if noise is not None:
        return slope, -(pull(noise)[0] * noise).sum(1)
    units = [jnp.broadcast_to(unit, z.shape) for unit in jnp.eye(z.shape[1])]
    return slope, -sum(pull(unit)[0][:, i] for i, unit in enumerate(units))


def hamiltonian(t: Any, state: Any, weights: Any) -> Any:
    """The slope of (angles, momenta, torques)."""
    q, p, u = jnp.split(state, 3, axis=1)

    def energy(q):
        features = jnp.concatenate([jnp.cos(q), jnp.sin(q)], 1)
        a, b, c = net(weights["mass"], features).T
        # The inverse of the mass matrix is L Lᵀ + 0.1, with L = [[a, 0], [c, b]].
        w = jnp.stack([a * p[:, 0] + c * p[:, 1], b * p[:, 1]], 1)
        speed = jnp.stack([a * w[:, 0], c * w[:, 0] + b * w[:, 1]], 1) + 0.1 * p
        push = (net(weights["torque"], features).reshape(-1, 2, 2) @ u[:, :, None])[:, :, 0]
        return (p * speed).sum() / 2 + net(weights["potential"], features).sum(), (speed, push)

    pull, (speed, push) = jax.grad(energy, has_aux=True)(q)
    return jnp.concatenate([speed, push - pull, jnp.zeros_like(u)], 1)


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
        """The vector field: ``controlled``, ``flow`` or ``hamiltonian``."""
        if self.task.kind == "cnf":
            return functools.partial(flow, self.task.noise)
        return controlled if self.task.kind == "cde" else hamiltonian

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
            return (controlled(t, z, args) @ slope[..., None])[..., 0]

        z0, args = net(weights["initial"], path[:, 0]), {"field": weights["field"], "path": coefficients}
        z, tries = self._solve(field, z0, self.task.times[[0, -1]], args, tolerance, counted)
        logit = net(weights["readout"], z[-1])[:, 0]
        loss = jnp.mean(jnp.logaddexp(0, logit) - label * logit)
        return loss, (jnp.mean((logit > 0) == (label == 1)), tries)

    def _cnf(self, weights: Any, batch: Any, tolerance: Any, counted: Any) -> Any:
        y0 = batch[0], jnp.zeros(len(batch[0]))
        (z, change), tries = self._solve(self.field(), y0, self.task.times, weights, tolerance, counted)
        z, change = z[-1], change[-1]
        log_density = -(z**2).sum(1) / 2 - z.shape[1] / 2 * math.log(2 * math.pi) - change
        loss = -log_density.mean() / z.shape[1]
        return loss, (loss, tries)

    def _symplectic(self, weights: Any, batch: Any, tolerance: Any, counted: Any) -> Any:
        series = jnp.swapaxes(batch[0], 0, 1)
        found, tries = self._solve(hamiltonian, series[0], self.task.times, weights, tolerance, counted)
        loss = ((found - series[1:])[:, :, :4] ** 2).mean()
        return loss, (loss, tries)


def _vector(gradient: Any, weights: Weights) -> np.ndarray:
    # JAX sorts the keys of a dict.
    return flat({name: [np.asarray(x) for x in gradient[name]] for name in weights})


cells = functools.partial(measure.cells, model_of=Model)
