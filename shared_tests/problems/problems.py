"""The shared problems: initial value problems with a loss, each written once for every array library.

A field, a loss and a closed form use only the array API standard, through `array_api_compat`, so NumPy,
PyTorch and JAX run the same source. They also accept complex NumPy arrays, because `make_references` takes
derivatives by complex steps.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from array_api_compat import array_namespace

Array = Any
Field = Callable[[Array, Array, Array], Array]
ClosedForm = Callable[[Array, Array, Array, Array], Array]


def mean_square(ys: Array) -> Array:
    """Return the mean over outputs of |y|² as a scalar; `ys` has shape (outputs, dim)."""
    xp = array_namespace(ys)
    return xp.mean(xp.sum(ys * ys, axis=1))


@dataclass(frozen=True)
class Problem:
    """One initial value problem dy/dt = field(t, y, params) with a scalar loss of its outputs.

    `y0` and `params` are flat float64 vectors of shapes (dim,) and (n,), stored as tuples. `times` holds t0,
    the output times and last t1, strictly increasing. `loss` maps the states at `times[1:]`, shape (outputs,
    dim), to a scalar. `first_step` is the size of the first try. `closed_form(t, t0, y0, params)` is the
    solution y(t), shape (dim,), where there is one. `relaxed` is empty, or says why two exact gradients of
    this problem may differ by more than the rounding of a well-conditioned sum.
    """

    name: str
    field: Field
    y0: tuple[float, ...]
    params: tuple[float, ...]
    times: tuple[float, ...]
    loss: Callable[[Array], Array] = mean_square
    first_step: float = 0.01
    closed_form: ClosedForm | None = None
    relaxed: str = ""

    @property
    def exact(self) -> float:
        """The relative difference allowed between two exact gradients on the same steps."""
        return 1e-9 if self.relaxed else 1e-12


def exponential(t: Array, y: Array, params: Array) -> Array:
    """dz/dt = αz, the toy problem of the ACA paper (Zhuang et al. 2020)."""
    return params[0] * y


def _exponential_solution(t: Array, t0: Array, y0: Array, params: Array) -> Array:
    xp = array_namespace(y0)
    return y0 * xp.exp(params[0] * (t - t0))


def rotation(t: Array, y: Array, params: Array) -> Array:
    """dy/dt = (a I + b t J) y with J the quarter turn: linear, non-autonomous, and solved in closed form."""
    xp = array_namespace(y)
    a, b = params[0], params[1]
    return xp.stack([a * y[0] - b * t * y[1], a * y[1] + b * t * y[0]])


def _rotation_solution(t: Array, t0: Array, y0: Array, params: Array) -> Array:
    xp = array_namespace(y0)
    growth = xp.exp(params[0] * (t - t0))
    angle = params[1] * (t * t - t0 * t0) / 2
    cos, sin = xp.cos(angle), xp.sin(angle)
    return growth * xp.stack([cos * y0[0] - sin * y0[1], sin * y0[0] + cos * y0[1]])


def harmonic(t: Array, y: Array, params: Array) -> Array:
    """x'' = -ω² x as a system in (x, x')."""
    xp = array_namespace(y)
    return xp.stack([y[1], -params[0] * params[0] * y[0]])


def _harmonic_solution(t: Array, t0: Array, y0: Array, params: Array) -> Array:
    xp = array_namespace(y0)
    omega = params[0]
    cos, sin = xp.cos(omega * (t - t0)), xp.sin(omega * (t - t0))
    return xp.stack([cos * y0[0] + sin * y0[1] / omega, cos * y0[1] - omega * sin * y0[0]])


def lotka_volterra(t: Array, y: Array, params: Array) -> Array:
    """Prey x' = αx - βxy and predators y' = δxy - γy."""
    xp = array_namespace(y)
    alpha, beta, delta, gamma = params[0], params[1], params[2], params[3]
    eaten = y[0] * y[1]
    return xp.stack([alpha * y[0] - beta * eaten, delta * eaten - gamma * y[1]])


def van_der_pol_mild(t: Array, y: Array, params: Array) -> Array:
    """y1' = y2, y2' = (μ - y1²) y2 - y1, the form of the ACA paper."""
    xp = array_namespace(y)
    return xp.stack([y[1], (params[0] - y[0] * y[0]) * y[1] - y[0]])


def van_der_pol_stiff(t: Array, y: Array, params: Array) -> Array:
    """y1' = y2, y2' = μ (1 - y1²) y2 - y1, the usual form."""
    xp = array_namespace(y)
    return xp.stack([y[1], params[0] * (1 - y[0] * y[0]) * y[1] - y[0]])


def pendulum(t: Array, y: Array, params: Array) -> Array:
    """θ'' = -k sin θ - c θ' as a system in (θ, θ'), with params (k, c)."""
    xp = array_namespace(y)
    return xp.stack([y[1], -params[0] * xp.sin(y[0]) - params[1] * y[1]])


def three_body(t: Array, y: Array, masses: Array) -> Array:
    """Three bodies under gravity with the ACA paper's constants; y holds positions, then velocities."""
    xp = array_namespace(y)
    k1, k2 = 0.200484, 7.239324
    position, velocity = xp.reshape(y[:9], (3, 3)), xp.reshape(y[9:], (3, 3))
    pull = [0 * position[0, :] for _ in range(3)]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        gap = position[j, :] - position[i, :]
        cube = xp.sum(gap * gap) ** 1.5
        pull[i] = pull[i] + k1 * masses[j] * gap / cube
        pull[j] = pull[j] - k1 * masses[i] * gap / cube
    return xp.concat([xp.reshape(k2 * velocity, (9,)), *pull])


def _distance_moved(ys: Array) -> Array:
    """Mean over outputs of 0.01^t Σ|r - r(0)|², weighted in time as in the ACA paper."""
    xp = array_namespace(ys)
    moved = ys[:, :9] - xp.asarray(_POSITIONS, dtype=ys.dtype)
    weights = xp.asarray([0.01**t for t in _THREE_BODY_TIMES[1:]], dtype=ys.dtype)
    return xp.mean(weights * xp.sum(moved * moved, axis=1))


_THREE_BODY_TIMES = (0.0, 0.25, 0.5, 0.75, 1.0)
_POSITIONS = (0.0, 0.2, 0.0, 0.5, 0.0, 0.5, 0.0, 0.0, 0.5)
_VELOCITIES = (0.0, 0.1, 0.0, 0.0, 0.0, 0.1, 0.1, 0.0, 0.0)

_MLP_DIM, _MLP_HIDDEN = 3, 8


def mlp(t: Array, y: Array, params: Array) -> Array:
    """W2 tanh(W1 y + b1) + b2 with 8 hidden units; params holds W1, b1, W2, b2 in this order."""
    xp = array_namespace(y)
    cuts = [0]
    for size in (_MLP_HIDDEN * _MLP_DIM, _MLP_HIDDEN, _MLP_DIM * _MLP_HIDDEN, _MLP_DIM):
        cuts.append(cuts[-1] + size)
    w1, b1, w2, b2 = (params[i:j] for i, j in pairwise(cuts))
    hidden = xp.tanh(xp.reshape(w1, (_MLP_HIDDEN, _MLP_DIM)) @ y + b1)
    return xp.reshape(w2, (_MLP_DIM, _MLP_HIDDEN)) @ hidden + b2


_MLP_WEIGHTS = tuple(0.7 * math.sin(1 + 2.4 * i * i) for i in range(59))

PROBLEMS: dict[str, Problem] = {
    problem.name: problem
    for problem in (
        Problem(
            "exponential",
            exponential,
            y0=(1.5,),
            params=(1.0,),
            times=(0.0, 20.0),
            closed_form=_exponential_solution,
        ),
        Problem(
            "rotation",
            rotation,
            y0=(1.0, 0.5),
            params=(-0.2, 1.2),
            times=(0.5, 1.25, 2.0, 2.75, 3.5),
            closed_form=_rotation_solution,
            loss=lambda ys: mean_square(ys[:, :1] - 1),
        ),
        Problem(
            "harmonic",
            harmonic,
            y0=(1.0, -0.5),
            params=(2.0,),
            times=(0.0, 2.5, 5.0, 7.5, 10.0),
            closed_form=_harmonic_solution,
        ),
        Problem(
            "lotka_volterra",
            lotka_volterra,
            y0=(1.0, 1.0),
            params=(1.5, 1.0, 1.0, 3.0),
            times=(0.0, 2.5, 5.0, 7.5, 10.0),
        ),
        Problem(
            "van_der_pol_mild",
            van_der_pol_mild,
            y0=(2.0, 0.0),
            params=(0.15,),
            times=(0.0, 5.0, 10.0, 15.0, 20.0),
        ),
        Problem(
            "van_der_pol_stiff",
            van_der_pol_stiff,
            y0=(2.0, 0.0),
            params=(5.0,),
            times=(0.0, 2.5, 5.0, 7.5, 10.0),
        ),
        Problem(
            "pendulum",
            pendulum,
            y0=(2.5, 0.0),
            params=(9.81, 0.3),
            times=(0.0, 1.25, 2.5, 3.75, 5.0),
        ),
        Problem(
            "three_body",
            three_body,
            y0=_POSITIONS + _VELOCITIES,
            params=(1.1, 1.1, 0.9),
            times=_THREE_BODY_TIMES,
            loss=_distance_moved,
            relaxed="chaotic: close encounters multiply rounding, an ulp in a mass moves the gradient by 5e-13",
        ),
        Problem(
            "mlp",
            mlp,
            y0=(0.5, -1.0, 0.8),
            params=_MLP_WEIGHTS,
            times=(0.0, 0.75, 1.5, 2.25, 3.0),
        ),
    )
}
