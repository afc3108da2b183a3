"""The shared SDEs: dY = drift dt + diffusion dW with a loss, each written once for every array library.

As in `problems`, the source is the array API standard. States and parameters have the batch in front or no batch at
all: PyTorch solves all paths at once, JAX maps over them. Every path has parameters of its own, so that a gradient
in them is the gradient along that path and converges at the strong order.

A closed form gives the solution on a path known on a grid and linear between its points: in the Stratonovich calculus
the exact one, and in the Itô calculus too where it needs no more than the path's last value.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace

Array = Any
Field = Callable[[Array, Array, Array], Array]
SdeClosedForm = Callable[[float, Array, Array, Array, bool], Array]

OUTPUT_TIMES = (0.5, 1.0)
"""The output times of every problem; all start at 0."""


def squares(ys: Array) -> Array:
    """Return the mean over outputs of Σ|y|² over all paths; `ys` has shape (outputs, paths, dim)."""
    xp = array_namespace(ys)
    return xp.sum(ys * ys) / ys.shape[0]


@dataclass(frozen=True)
class SdeProblem:
    """One SDE with a scalar loss, a sum over the paths, of the states at `OUTPUT_TIMES`.

    `noise` is torchsde's word: the diffusion has shape (..., dim) where it is diagonal, else (..., dim, channels).
    `commutes` says whether the order of the noises matters, and with it every scheme without Lévy areas.
    `closed_form(t, w, y0, params, ito)` is Y(t), shape (paths, dim), on the path with the values `w` at equidistant
    times from 0 to t, shape (paths, points, channels).
    """

    name: str
    drift: Field
    diffusion: Field
    y0: tuple[float, ...]
    params: tuple[float, ...]
    noise: str
    channels: int
    loss: Callable[[Array], Array] = squares
    commutes: bool = True
    closed_form: SdeClosedForm | None = None


def _column(*entries: Array) -> Array:
    return array_namespace(*entries).stack(entries, axis=-1)


def _matrix(*rows: tuple[Array, ...]) -> Array:
    columns = [_column(*row) for row in rows]
    return array_namespace(*columns).stack(columns, axis=-2)


def gbm_drift(t: Array, y: Array, params: Array) -> Array:
    """Two geometric Brownian motions: dy = μy dt + σy dW."""
    return params[..., :2] * y


def gbm_diffusion(t: Array, y: Array, params: Array) -> Array:
    """σy, of the noise of its own that each has."""
    return params[..., 2:] * y


def _gbm_solution(t: float, w: Array, y0: Array, params: Array, ito: bool) -> Array:
    mu, sigma = params[..., :2], params[..., 2:]
    return y0 * array_namespace(w).exp((mu - ito * sigma * sigma / 2) * t + sigma * w[:, -1, :])


def ou_drift(t: Array, y: Array, params: Array) -> Array:
    """Ornstein and Uhlenbeck's dy = θ(m - y) dt + S dW, in two dimensions."""
    return params[..., :1] * (params[..., 1:2] - y)


def ou_diffusion(t: Array, y: Array, params: Array) -> Array:
    """S, the same everywhere."""
    return _matrix((params[..., 2], params[..., 3]), (params[..., 4], params[..., 5]))


def _ou_solution(t: float, w: Array, y0: Array, params: Array, ito: bool) -> Array:
    """y0 and m decayed, and S∫exp(-θ(t - s)) dW, in each cell with the slope of the path there."""
    xp = array_namespace(w)
    theta, mean = params[..., :1], params[..., 1:2]
    decay = xp.exp(-theta * (t - xp.linspace(0, t, w.shape[1])))
    slopes = (w[:, 1:, :] - w[:, :-1, :]) * ((w.shape[1] - 1) / t)
    convolution = xp.sum((decay[:, 1:] - decay[:, :-1])[:, :, None] * slopes, axis=1) / theta
    noise = xp.sum(ou_diffusion(t, y0, params) * convolution[:, None, :], axis=2)
    return mean + (y0 - mean) * xp.exp(-theta * t) + noise


def spiral_drift(t: Array, y: Array, params: Array) -> Array:
    """dy = (aI + bJ)y dt + (cI + dJ)y dW with J the quarter turn: linear, and one noise for both entries."""
    return _spiral(params[..., 0], params[..., 1], y)


def spiral_diffusion(t: Array, y: Array, params: Array) -> Array:
    """(cI + dJ)y, one column."""
    return _spiral(params[..., 2], params[..., 3], y)[..., None]


def _spiral(growth: Array, turn: Array, y: Array) -> Array:
    return _column(growth * y[..., 0] - turn * y[..., 1], turn * y[..., 0] + growth * y[..., 1])


def _spiral_solution(t: float, w: Array, y0: Array, params: Array, ito: bool) -> Array:
    xp = array_namespace(w)
    a, b, c, d = (params[..., i] for i in range(4))
    size = xp.exp((a - ito * (c * c - d * d) / 2) * t + c * w[:, -1, 0])
    angle = (b - ito * c * d) * t + d * w[:, -1, 0]
    return _spiral(size * xp.cos(angle), size * xp.sin(angle), y0)


def shear_drift(t: Array, y: Array, params: Array) -> Array:
    """dy₁ = ay₁ dt + sy₁ dW₁ and dy₂ = ay₂ dt + ry₂ dW₁ + cy₁ dW₂: linear, and the noises do not commute."""
    return params[..., :1] * y


def shear_diffusion(t: Array, y: Array, params: Array) -> Array:
    """The rows (sy₁, 0) and (ry₂, cy₁)."""
    s, r, c = (params[..., i] for i in (1, 2, 3))
    return _matrix((s * y[..., 0], 0 * y[..., 0]), (r * y[..., 1], c * y[..., 0]))


def _shear_solution(t: float, w: Array, y0: Array, params: Array, ito: bool) -> Array:
    """With E and F the growths of y₁ and of y₂ alone, y₁ = Ey₁(0) and y₂ = F(y₂(0) + cy₁(0)∫E/F dW₂).

    In a cell of the path, E/F is the exponential of a line.
    """
    xp = array_namespace(w)
    a, s, r, c = (params[..., i] for i in range(4))
    times = xp.linspace(0, t, w.shape[1])
    ratio = (s - r)[:, None] * w[:, :, 0] - ito * ((s * s - r * r) / 2)[:, None] * times
    rise = ratio[:, 1:] - ratio[:, :-1]
    cells = xp.exp(ratio[:, :-1]) * xp.expm1(rise) / rise * (w[:, 1:, 1] - w[:, :-1, 1])
    e, f = (xp.exp((a - ito * k * k / 2) * t + k * w[:, -1, 0]) for k in (s, r))
    return _column(e * y0[:, 0], f * (y0[:, 1] + c * y0[:, 0] * xp.sum(cells, axis=1)))


_LATENT, _HIDDEN = 2, 5
_W1, _B1, _W2 = (_LATENT + 1) * _HIDDEN, _HIDDEN, _LATENT * _HIDDEN
_LATENT_SIZE = _W1 + _B1 + _W2 + _LATENT + 1


def latent_drift(t: Array, y: Array, params: Array) -> Array:
    """A small latent SDE (Li et al. 2020): a posterior drift by a network, and the rate of its divergence.

    `y` is the latent state z and, last, the divergence so far from the prior dz = -θz dt + g(z) dW. The rate is
    |u|²/2, where u is the difference of the two drifts over g. `params` holds W1, b1, W2, the scales in g, and θ.
    """
    xp = array_namespace(y, params)
    lead, z = y.shape[:-1], y[..., :_LATENT]
    time = 0 * z[..., :1] + t
    w1 = xp.reshape(params[..., :_W1], (*lead, _HIDDEN, _LATENT + 1))
    b1 = params[..., _W1 : _W1 + _B1]
    w2 = xp.reshape(params[..., _W1 + _B1 : _W1 + _B1 + _W2], (*lead, _LATENT, _HIDDEN))
    hidden = xp.tanh(xp.sum(w1 * xp.concat([z, time], axis=-1)[..., None, :], axis=-1) + b1)
    posterior = xp.sum(w2 * hidden[..., None, :], axis=-1)
    u = (posterior + params[..., -1:] * z) / _latent_noise(z, params)
    return xp.concat([posterior, xp.sum(u * u, axis=-1)[..., None] / 2], axis=-1)


def latent_diffusion(t: Array, y: Array, params: Array) -> Array:
    """g(z) for each latent entry, and no noise in the divergence."""
    noise = _latent_noise(y[..., :_LATENT], params)
    return array_namespace(noise).concat([noise, 0 * y[..., _LATENT:]], axis=-1)


def _latent_noise(z: Array, params: Array) -> Array:
    return 0.5 + 0.2 * array_namespace(z).tanh(params[..., -_LATENT - 1 : -1] * z)


def _evidence(ys: Array) -> Array:
    """Return the sum over the paths of the misfit to data at the outputs and of the divergence at the end."""
    xp = array_namespace(ys)
    misfit = ys[:, :, :_LATENT] - 0.7
    return 2 * xp.sum(misfit * misfit) + xp.sum(ys[-1, :, _LATENT])


SDE_PROBLEMS: dict[str, SdeProblem] = {
    problem.name: problem
    for problem in (
        SdeProblem(
            "gbm",
            gbm_drift,
            gbm_diffusion,
            y0=(1.0, 0.6),
            params=(0.2, -0.3, 0.3, 0.5),
            noise="diagonal",
            channels=2,
            closed_form=_gbm_solution,
        ),
        SdeProblem(
            "ornstein_uhlenbeck",
            ou_drift,
            ou_diffusion,
            y0=(1.0, -0.5),
            params=(1.5, 0.4, 0.6, -0.2, 0.3, 0.5),
            noise="additive",
            channels=2,
            closed_form=_ou_solution,
        ),
        SdeProblem(
            "spiral",
            spiral_drift,
            spiral_diffusion,
            y0=(1.0, 0.5),
            params=(-0.3, 0.5, 0.3, 0.4),
            noise="scalar",
            channels=1,
            closed_form=_spiral_solution,
        ),
        SdeProblem(
            "shear",
            shear_drift,
            shear_diffusion,
            y0=(1.0, 0.5),
            params=(0.2, 0.4, -0.3, 1.0),
            noise="general",
            channels=2,
            commutes=False,
            closed_form=_shear_solution,
        ),
        SdeProblem(
            "latent",
            latent_drift,
            latent_diffusion,
            y0=(0.3, -0.4, 0.0),
            params=(*(0.8 * math.sin(1 + 2.4 * i * i) for i in range(_LATENT_SIZE - 1)), 0.6),
            noise="diagonal",
            channels=3,
            loss=_evidence,
        ),
    )
}
