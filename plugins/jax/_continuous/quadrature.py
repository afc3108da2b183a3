"""One backward step for the adjoint a(t), and in it the integral of aᵀ ∂f/∂θ by quadrature (Hu, arXiv 2402.15141).

The state y(t) is read from the forward solve's dense output, so the equation da/dt = -(∂f/∂y)ᵀ a is linear in a, and no
parameter is in it. It is solved in s = -t.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from steptape.jax._autodiff.field import rate
from steptape.jax._continuous.dense import DenseOutput
from steptape.jax._tape.rows import get
from steptape.jax._types import Args, Cotangent, Gradient, Rows, Scalar, Solver, Terms, Vector, Y

Carried: TypeAlias = tuple[PyTree, PyTree]  # from the end of a step to the beginning of the next
Stepped: TypeAlias = tuple[Cotangent, Cotangent, Gradient, Carried]
_S = TypeVar("_S", bound="_Steps")


def _axpy(weights: Sequence[Scalar | float], trees: Sequence[PyTree], start: PyTree) -> PyTree:
    """Add to ``start`` the sum of ``weights[i] * trees[i]``, without the weights that are known to be 0."""
    for weight, tree in zip(weights, trees, strict=True):
        if not (isinstance(weight, float) and weight == 0):
            start = jax.tree.map(lambda y, x, w=weight: y + jnp.asarray(w, y.dtype) * x, start, tree)
    return start


def zeros(tree: PyTree) -> PyTree:
    """Zeros like ``tree``."""
    return jax.tree.map(jnp.zeros_like, tree)


class Pullback(eqx.Module):
    """The field f(t, y, θ), as a function of s = -t, on the dense output.

    ``moving`` holds the parameters with a gradient, ``fixed`` the rest of (terms, args).
    """

    dense: DenseOutput
    moving: Gradient
    fixed: PyTree
    # The field is evaluated within these times, in place of those outside: where it jumps at an end, on the side
    # that the solve was on.
    within: tuple[Scalar, Scalar]

    def time(self, s: Scalar) -> Scalar:
        """The time at which the field is evaluated for ``s``."""
        return jnp.clip(-s, *self.within)

    def state(self, s: Scalar) -> Y:
        """The state that the field is evaluated with for ``s``."""
        return self.dense(self.time(s))

    def _field(self, s: Scalar, y: Y, moving: PyTree) -> Y:
        terms, args = eqx.combine(moving, self.fixed)
        return rate(terms, self.time(s), y, args)

    def __call__(self, s: Scalar, y: Y, a: Cotangent) -> tuple[Cotangent, Gradient]:
        """aᵀ ∂f/∂y and aᵀ ∂f/∂θ."""
        _, pull = jax.vjp(lambda y, moving: self._field(s, y, moving), y, self.moving)
        return pull(a)

    def slope(self, s: Scalar, a: Cotangent, args: Args) -> Cotangent:
        """da/ds; ``args`` are not used."""
        return jax.vjp(lambda y: self._field(s, y, self.moving), self.state(s))[1](a)[0]

    @property
    def term(self) -> Terms:
        """The equation for a(s), as diffrax's solvers take it."""
        slope: Callable = self.slope
        return diffrax.ODETerm(slope)

    def integral(self, s: Vector, a: Rows, weights: Vector) -> Gradient:
        """The sum of aᵀ ∂f/∂θ at times ``s``, shape (n,), with ``weights``; one evaluation of the field, vectorised."""
        ys = jax.vmap(self.state)(s)

        def evaluate(moving):
            return jax.vmap(lambda s, y: self._field(s, y, moving))(s, ys)

        cotangent = jax.tree.map(lambda x: x * weights.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype), a)
        return jax.vjp(evaluate, self.moving)[1](cotangent)[0]


class _Steps(eqx.Module):
    """Backward steps on a dense output."""

    pull: Pullback
    solver: Solver

    def on(self: _S, dense: DenseOutput) -> _S:
        """These steps on another dense output."""
        return dataclasses.replace(self, pull=dataclasses.replace(self.pull, dense=dense))


class StageSteps(_Steps):
    """Steps of an explicit Runge-Kutta method, whose weights are the quadrature as well.

    What is carried from a step to the next is aᵀ ∂f/∂y and aᵀ ∂f/∂θ where the one ends and the next begins.
    """

    def start(self, s: Scalar, a: Cotangent) -> Carried:
        """Evaluate what is carried to the first step from ``s``."""
        return self.pull(s, self.pull.state(s), a)

    def step(self, s0: Scalar, s1: Scalar, a0: Cotangent, carried: Carried) -> Stepped:
        """Take a step: its end, its error estimate, its part of the integral, and what it carries on."""
        tableau, h = self.solver.tableau, s1 - s0
        times = jnp.stack([s1 if c == 1 else s0 + c * h for c in tableau.c.tolist()])
        ys = jax.vmap(self.pull.state)(times)
        slopes, integrands = [carried[0]], [carried[1]]
        for i, row in enumerate(tableau.a_lower):
            a = _axpy([w * h if w else 0.0 for w in row.tolist()], slopes, a0)
            slope, integrand = self.pull(times[i], get(ys, i), a)
            slopes.append(slope)
            integrands.append(integrand)
        weights, errors = ([w * h if w else 0.0 for w in b.tolist()] for b in (tableau.b_sol, tableau.b_error))
        a1 = a if tableau.ssal else _axpy(weights, slopes, a0)
        error = _axpy(errors, slopes, zeros(a0))
        gain = _axpy(weights, integrands, zeros(integrands[0]))
        return a1, error, gain, (slopes[-1], integrands[-1]) if tableau.fsal else self.start(s1, a1)


class HostSteps(_Steps):
    """Steps of any solver of diffrax; the quadrature is Gauss-Legendre with ``nodes`` nodes on its dense output."""

    nodes: int = eqx.field(static=True)

    def start(self, s: Scalar, a: Cotangent) -> Carried:
        """The solver's state, and that it must not trust it."""
        return self.solver.init(self.pull.term, s, s, a, None), jnp.array(True)

    def step(self, s0: Scalar, s1: Scalar, a0: Cotangent, carried: Carried) -> Stepped:
        """As ``StageSteps.step``."""
        state, jumped = carried
        term = self.pull.term
        a1, error, dense, state, _ = self.solver.step(term, s0, s1, a0, None, state, jumped)
        points, gauss = np.polynomial.legendre.leggauss(self.nodes)
        s = s0 + (s1 - s0) * jnp.asarray((points + 1) / 2, s0.dtype)
        interpolation = self.solver.interpolation_cls(t0=s0, t1=s1, **dense)
        weights = jnp.asarray(gauss / 2)
        gain = self.pull.integral(s, jax.vmap(interpolation.evaluate)(s), (s1 - s0).astype(weights.dtype) * weights)
        return a1, error, gain, (state, jnp.array(False))
