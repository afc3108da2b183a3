"""Hu's theorem in NumPy, apart from all that it is to judge (arXiv 2402.15141).

A Runge–Kutta solve has one discrete adjoint of its own scheme, written out here stage by stage. It equals
back-propagation through the solve to rounding, whatever the step size, and its gradient in the parameters is a
quadrature by the scheme's own nodes and weights. The continuous adjoint, discretised by any scheme, that of the solve
included, differs from it at the lower of the two orders.

Derivatives of a field are taken by complex steps, which are exact to rounding.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from steptape.shared_tests.oracles.distance import euclidean
from steptape.shared_tests.problems.problems import Problem

Vector = Any


@dataclass(frozen=True)
class Scheme:
    """An explicit Runge–Kutta scheme by the rows of its tableau, with its order."""

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int

    @property
    def c(self) -> tuple[float, ...]:
        """Where in a step the stages are."""
        return tuple(math.fsum(row) for row in self.a)


SCHEMES = {
    "euler": Scheme(((),), (1.0,), 1),
    "midpoint": Scheme(((), (1 / 2,)), (0.0, 1.0), 2),
    "heun": Scheme(((), (1.0,)), (1 / 2, 1 / 2), 2),
    "bosh3": Scheme(((), (1 / 2,), (0.0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9), 3),
    "rk4": Scheme(((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8), 4),
    "dopri5": Scheme(
        (
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        ),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        5,
    ),
}
"""The schemes of the report; rk4 is the 3/8 rule, as in torchdiffeq."""


def grid_of(problem: Problem, steps: int) -> tuple[float, ...]:
    """Return the ends of `steps` equal steps between each two of the problem's times."""
    times = problem.times
    inner = (np.linspace(t0, t1, steps + 1)[:-1].tolist() for t0, t1 in pairwise(times))
    return (*(t for part in inner for t in part), times[-1])


def gradient(scheme: str, problem: Problem, grid: tuple[float, ...]) -> dict[str, Vector]:
    """Return the gradient in y0 and params of a solve on a grid, by the discrete adjoint of its own scheme."""
    return _backward(problem, grid, _states(SCHEMES[scheme], problem, grid), _matching(SCHEMES[scheme], problem))


def continuous(forward: str, backward: str, problem: Problem, grid: tuple[float, ...]) -> dict[str, Vector]:
    """Return the gradient by the continuous adjoint of a solve: y and the cotangents in reverse, by a scheme."""
    return _backward(problem, grid, _states(SCHEMES[forward], problem, grid), _reversed(SCHEMES[backward], problem))


def difference(found: dict[str, Vector], expected: dict[str, Vector]) -> float:
    """Return the relative difference of two gradients in y0 and params together, in the Euclidean norm."""
    return euclidean(*([gradient[part] for part in ("y0", "params")] for gradient in (found, expected)))


def _stages(scheme: Scheme, field: Callable[[float, Vector], Vector], t: float, y: Vector, h: float) -> list[Any]:
    """Return for each stage of a step its time, its state and its slope."""
    stages: list[Any] = []
    for row, c in zip(scheme.a, scheme.c, strict=True):
        place = y + h * sum(a * k for a, (_, _, k) in zip(row, stages, strict=True))
        stages.append((t + c * h, place, field(t + c * h, place)))
    return stages


def _step(scheme: Scheme, field: Callable[[float, Vector], Vector], t: float, y: Vector, h: float) -> Vector:
    return y + h * sum(b * k for b, (_, _, k) in zip(scheme.b, _stages(scheme, field, t, y, h), strict=True))


def _states(scheme: Scheme, problem: Problem, grid: tuple[float, ...]) -> list[Vector]:
    params, states = np.asarray(problem.params), [np.asarray(problem.y0)]
    for t, end in pairwise(grid):
        states.append(_step(scheme, lambda t, y: problem.field(t, y, params), t, states[-1], end - t))
    return states


def _backward(problem: Problem, grid: tuple[float, ...], states: list[Vector], pull: Callable) -> dict[str, Vector]:
    """Pull the cotangents of the outputs back through the steps, the last one first."""
    outputs = [grid.index(t) for t in problem.times[1:]]
    in_outputs = dict(zip(outputs, _loss_gradient(problem, np.array([states[n] for n in outputs])), strict=True))
    in_y, in_params = np.zeros(len(problem.y0)), np.zeros(len(problem.params))
    for n in range(len(grid) - 1, 0, -1):
        in_y = in_y + in_outputs.get(n, 0)
        in_y, share = pull(grid[n - 1], grid[n], states[n - 1], states[n], in_y)
        in_params = in_params + share
    return {"y0": in_y, "params": in_params}


def _matching(scheme: Scheme, problem: Problem) -> Callable:
    """The discrete adjoint of a step: ℓ_i = h (b_i λ + Σ_j a_ji g_j) and g_i = (∂f/∂y)ᵀ ℓ_i for i = s … 1."""
    params = np.asarray(problem.params)

    def pull(t: float, end: float, y: Vector, _: Vector, cotangent: Vector) -> tuple[Vector, Vector]:
        h, stages = end - t, _stages(scheme, lambda t, y: problem.field(t, y, params), t, y, end - t)
        in_stages: list[Vector] = [None] * len(stages)
        in_params = np.zeros(len(params))
        for i in reversed(range(len(stages))):
            later = sum(scheme.a[j][i] * in_stages[j] for j in range(i + 1, len(stages)))
            ell = h * (scheme.b[i] * cotangent + later)
            in_stages[i], share = _vjp(problem, stages[i][0], stages[i][1], ell)
            in_params = in_params + share
        return cotangent + sum(in_stages), in_params

    return pull


def _reversed(scheme: Scheme, problem: Problem) -> Callable:
    """A step, back from the end, of the continuous adjoint: d(y, a, g)/dt = (f, -(∂f/∂y)ᵀ a, -(∂f/∂θ)ᵀ a)."""
    params, dim = np.asarray(problem.params), len(problem.y0)

    def field(t: float, z: Vector) -> Vector:
        y, a = z[:dim], z[dim : 2 * dim]
        return np.concatenate([problem.field(t, y, params), *(-x for x in _vjp(problem, t, y, a))])

    def pull(t: float, end: float, _: Vector, y: Vector, cotangent: Vector) -> tuple[Vector, Vector]:
        start = _step(scheme, field, end, np.concatenate([y, cotangent, np.zeros(len(params))]), t - end)
        return start[dim : 2 * dim], start[2 * dim :]

    return pull


_H = 1e-30


def _vjp(problem: Problem, t: float, y: Vector, cotangent: Vector) -> tuple[Vector, Vector]:
    """(∂f/∂y)ᵀ and (∂f/∂θ)ᵀ times a cotangent."""
    params = np.asarray(problem.params)
    in_y = [problem.field(t, y + 1j * _H * e, params + 0j).imag @ cotangent / _H for e in np.eye(len(y))]
    in_params = [problem.field(t, y + 0j, params + 1j * _H * e).imag @ cotangent / _H for e in np.eye(len(params))]
    return np.array(in_y), np.array(in_params)


def _loss_gradient(problem: Problem, ys: Vector) -> Vector:
    flat = [problem.loss(ys + 1j * _H * e.reshape(ys.shape)).imag / _H for e in np.eye(ys.size)]
    return np.reshape(flat, ys.shape)
