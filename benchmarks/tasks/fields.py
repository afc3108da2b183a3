"""The vector fields and losses of the tasks, the same in both frameworks, whose pullbacks they are given."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from array_api_compat import array_namespace

# At a point the value of a function, and the map from cotangents to its pullbacks.
Vjp = Callable[[Callable[[Any], Any], Any], tuple[Any, Callable[[Any], Any]]]
# At a point the gradient of a function's first result, and the second.
Grad = Callable[[Callable[[Any], tuple[Any, Any]], Any], tuple[Any, Any]]


def net(layers: Sequence[Any], x: Any) -> Any:
    """A perceptron with tanh between its layers: (..., inputs) to (..., outputs)."""
    for i in range(0, len(layers), 2):
        x = x @ layers[i] + layers[i + 1]
        x = array_namespace(x).tanh(x) if i + 2 < len(layers) else x
    return x


def controlled(weights: Any, z: Any) -> Any:
    """f(z) of a CDE, shape (batch, hidden, 3), to be multiplied by the slope of the path."""
    xp = array_namespace(z)
    return xp.reshape(xp.tanh(net(weights["field"], z)), (*z.shape, 3))


def flow(vjp: Vjp, weights: Any, noise: Any, t: Any, state: tuple[Any, Any]) -> tuple[Any, Any]:
    """The slope of (z, log density), by one pullback for each dimension, or one in all for a noise."""

    def slope_at(z: Any) -> Any:
        xp = array_namespace(z)
        return net(weights["field"], xp.concat([z, xp.zeros_like(z[:, :1]) + t], axis=1))

    slope, pull = vjp(slope_at, state[0])
    if noise is not None:
        return slope, -(pull(noise) * noise).sum(1)
    xp = array_namespace(slope)
    units = [xp.broadcast_to(unit, slope.shape) for unit in xp.eye(slope.shape[1], dtype=slope.dtype)]
    return slope, -sum(pull(unit)[:, i] for i, unit in enumerate(units))


def hamiltonian(grad: Grad, weights: Any, state: Any) -> Any:
    """The slope of (angles, momenta, torques), shape (batch, 6), as the state."""
    q, p, u = state[:, :2], state[:, 2:4], state[:, 4:]

    def energy(q: Any) -> tuple[Any, Any]:
        xp = array_namespace(q)
        features = xp.concat([xp.cos(q), xp.sin(q)], axis=1)
        a, b, c = net(weights["mass"], features).T
        # The inverse of the mass matrix is L Lᵀ + 0.1, with L = [[a, 0], [c, b]].
        w = xp.stack([a * p[:, 0] + c * p[:, 1], b * p[:, 1]], axis=1)
        speed = xp.stack([a * w[:, 0], c * w[:, 0] + b * w[:, 1]], axis=1) + 0.1 * p
        push = (xp.reshape(net(weights["torque"], features), (-1, 2, 2)) @ u[:, :, None])[:, :, 0]
        return (p * speed).sum() / 2 + net(weights["potential"], features).sum(), (speed, push)

    pull, (speed, push) = grad(energy, q)
    xp = array_namespace(pull)
    return xp.concat([speed, push - pull, xp.zeros_like(pull)], axis=1)


def cross_entropy(logit: Any, label: Any) -> tuple[Any, Any]:
    """And the accuracy."""
    xp = array_namespace(logit)
    loss = (xp.logaddexp(xp.zeros_like(logit), logit) - label * logit).mean()
    return loss, xp.mean(xp.astype((logit > 0) == (label == 1), logit.dtype))


def nats(z: Any, change: Any) -> Any:
    """The negative log likelihood, a dimension, of points that a flow takes to ``z``."""
    log_density = -(z**2).sum(1) / 2 - z.shape[1] / 2 * math.log(2 * math.pi) - change
    return -log_density.mean() / z.shape[1]
