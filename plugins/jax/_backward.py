"""The solve backward in time for the adjoint a(t) alone, and the integral of aᵀ ∂f/∂θ over its accepted steps.

The state y(t) is read from the forward solve's dense output, so the equation is linear in a, and no parameter is in it.
It is solved in s = -t, from -t1 up to -t0, in one go: the cotangent of an output is added to a where a step ends at its
time, and a step cut short to end there does not shorten the one after it.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from steptape.jax._field import rate
from steptape.jax._rows import get


def _axpy(weights: Any, trees: list, start: Any) -> Any:
    """``start`` plus the sum of ``weights[i] * trees[i]``, without the weights that are known to be 0."""
    for weight, tree in zip(weights, trees, strict=True):
        if not (isinstance(weight, float) and weight == 0):
            start = jax.tree.map(lambda y, x, w=weight: y + jnp.asarray(w, y.dtype) * x, start, tree)
    return start


def _where(pred: Any, x: Any, y: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(pred, x, y), x, y)


def _zeros(tree: Any) -> Any:
    return jax.tree.map(jnp.zeros_like, tree)


class Trajectory(eqx.Module):
    """The dense output of the forward solve: ``count`` steps between the times ``ts``, shape (max_steps + 1,)."""

    ts: Any
    infos: Any
    count: Any
    interpolation_cls: Callable = eqx.field(static=True)

    def __call__(self, t: Any) -> Any:
        """The state at ``t``, a scalar."""
        row = jnp.searchsorted(self.ts, t, side="left", method="scan_unrolled") - 1
        row = jnp.clip(row, 0, jnp.maximum(self.count - 1, 0))
        return self.interpolation_cls(t0=self.ts[row], t1=self.ts[row + 1], **get(self.infos, row)).evaluate(t)

    def last_step(self) -> Any:
        """The larger of the last two steps: the last one may have been cut off at the end."""
        before = [self.ts[jnp.maximum(self.count - i, 0)] for i in range(3)]
        return jnp.maximum(before[0] - before[1], before[1] - before[2])


class Pullback(eqx.Module):
    """The field f(t, y, θ), as a function of s = -t, on the trajectory.

    ``moving`` holds the parameters with a gradient, ``fixed`` the rest of (terms, args).
    """

    trajectory: Trajectory
    moving: Any
    fixed: Any

    def _field(self, s: Any, y: Any, moving: Any) -> Any:
        terms, args = eqx.combine(moving, self.fixed)
        return rate(terms, -s, y, args)

    def __call__(self, s: Any, y: Any, a: Any) -> tuple[Any, Any]:
        """aᵀ ∂f/∂y and aᵀ ∂f/∂θ."""
        _, pull = jax.vjp(lambda y, moving: self._field(s, y, moving), y, self.moving)
        return pull(a)

    def slope(self, s: Any, a: Any, args: Any) -> Any:
        """da/ds; ``args`` are not used."""
        return jax.vjp(lambda y: self._field(s, y, self.moving), self.trajectory(-s))[1](a)[0]

    def integral(self, s: Any, a: Any, weights: Any) -> Any:
        """The sum of aᵀ ∂f/∂θ at times ``s``, shape (n,), with ``weights``; one evaluation of the field, vectorised."""
        ys = jax.vmap(self.trajectory)(-s)

        def evaluate(moving):
            return jax.vmap(lambda s, y: self._field(s, y, moving))(s, ys)

        cotangent = jax.tree.map(lambda x: x * weights.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype), a)
        return jax.vjp(evaluate, self.moving)[1](cotangent)[0]


class StageSteps(eqx.Module):
    """Steps of an explicit Runge-Kutta method, whose weights are the quadrature as well.

    What is carried from a step to the next is aᵀ ∂f/∂y and aᵀ ∂f/∂θ where the one ends and the next begins.
    """

    pull: Pullback
    solver: Any

    def start(self, s: Any, a: Any) -> Any:
        """What the first step from ``s`` finds carried to it."""
        return self.pull(s, self.pull.trajectory(-s), a)

    def step(self, s0: Any, s1: Any, a0: Any, carried: Any) -> tuple:
        """The end of a step, its error estimate, its part of the integral, and what it carries on."""
        tableau, h = self.solver.tableau, s1 - s0
        times = jnp.stack([s1 if c == 1 else s0 + c * h for c in tableau.c.tolist()])
        ys = jax.vmap(self.pull.trajectory)(-times)
        slopes, integrands = [carried[0]], [carried[1]]
        for i, row in enumerate(tableau.a_lower):
            a = _axpy([w * h if w else 0.0 for w in row.tolist()], slopes, a0)
            slope, integrand = self.pull(times[i], get(ys, i), a)
            slopes.append(slope)
            integrands.append(integrand)
        weights, errors = ([w * h if w else 0.0 for w in b.tolist()] for b in (tableau.b_sol, tableau.b_error))
        a1 = a if tableau.ssal else _axpy(weights, slopes, a0)
        error = _axpy(errors, slopes, _zeros(a0))
        gain = _axpy(weights, integrands, _zeros(integrands[0]))
        return a1, error, gain, (slopes[-1], integrands[-1]) if tableau.fsal else self.start(s1, a1)


class HostSteps(eqx.Module):
    """Steps of any solver of diffrax; the quadrature is Gauss-Legendre with ``nodes`` nodes on its dense output."""

    pull: Pullback
    solver: Any
    nodes: int = eqx.field(static=True)

    def start(self, s: Any, a: Any) -> Any:
        """The solver's state, and that it must not trust it."""
        return self.solver.init(diffrax.ODETerm(self.pull.slope), s, s, a, None), jnp.array(True)

    def step(self, s0: Any, s1: Any, a0: Any, carried: Any) -> tuple:
        """As ``StageSteps.step``."""
        state, jumped = carried
        term = diffrax.ODETerm(self.pull.slope)
        a1, error, dense, state, _ = self.solver.step(term, s0, s1, a0, None, state, jumped)
        points, weights = np.polynomial.legendre.leggauss(self.nodes)
        s = s0 + (s1 - s0) * jnp.asarray((points + 1) / 2, s0.dtype)
        interpolation = self.solver.interpolation_cls(t0=s0, t1=s1, **dense)
        gain = self.pull.integral(s, jax.vmap(interpolation.evaluate)(s), (s1 - s0) * weights / 2)
        return a1, error, gain, (state, jnp.array(False))


class Outputs(eqx.Module):
    """The times of the outputs, ascending, and their cotangents, a row for each."""

    ts: Any
    cotangents: Any

    def absorb(self, s: Any, a: Any, ahead: Any) -> tuple[Any, Any]:
        """``a`` with the cotangents of the outputs at ``s``, and how many of them are still ahead."""

        def here(carry):
            _, n = carry
            return (n > 0) & (-self.ts[jnp.maximum(n - 1, 0)] <= s)

        def add(carry):
            a, n = carry
            return jax.tree.map(jnp.add, a, get(self.cotangents, n - 1)), n - 1

        return lax.while_loop(here, add, (a, ahead))

    def cut(self, s: Any, size: Any, end: Any, ahead: Any) -> Any:
        """The end of the next step: at an output, rather than beyond it or a hair before it."""
        stop = jnp.where(ahead > 0, jnp.minimum(-self.ts[jnp.maximum(ahead - 1, 0)], end), end)
        return jnp.where(s + 1.001 * size >= stop, stop, s + size)


class _Loop(eqx.Module):
    s: Any
    s_next: Any
    size: Any  # of the next step, before it is cut short
    a: Any
    integral: Any
    carried: Any
    controller_state: Any
    ahead: Any  # how many outputs are
    count: Any
    ok: Any


def solve_backward(
    steps: Any, controller: Any, span: tuple, outputs: Outputs, dt0: Any, max_steps: int, ok: Any
) -> tuple[Any, Any, Any]:
    """Return a(t0), the integral of aᵀ ∂f/∂θ, and whether the solve got there; it is not begun unless ``ok``.

    ``span`` is (t0, t1), and ``controller`` that of a solve in s.
    """
    t0, t1 = span
    end = -t0
    term = diffrax.ODETerm(steps.pull.slope)
    order = steps.solver.error_order(term)
    constant = isinstance(controller, diffrax.ConstantStepSize)

    def body(loop):
        a, error, gain, carried = steps.step(loop.s, loop.s_next, loop.a, loop.carried)
        error = jax.tree.map(lambda x: jnp.where(jnp.isnan(x), jnp.inf, x), error)
        keep, s, s_next, jump, state, result = controller.adapt_step_size(
            loop.s, loop.s_next, loop.a, a, None, error, order, loop.controller_state
        )
        was_cut = keep & (loop.s_next - loop.s < 0.999 * loop.size)
        size = loop.size if constant else jnp.maximum(s_next - s, jnp.where(was_cut, loop.size, 0))
        s = jnp.minimum(s, end)
        a, carried = _where(keep, (a, carried), (loop.a, loop.carried))
        integral = jax.tree.map(lambda x, g: jnp.where(keep, x + g, x), loop.integral, gain)
        a, ahead = outputs.absorb(jnp.where(keep, s, -jnp.inf), a, loop.ahead)
        carried = lax.cond((ahead < loop.ahead) | (keep & jump), lambda: steps.start(s, a), lambda: carried)
        ok = result == diffrax.RESULTS.successful
        return _Loop(s, outputs.cut(s, size, end, ahead), size, a, integral, carried, state, ahead, loop.count + 1, ok)

    s = -t1
    a, ahead = outputs.absorb(s, _zeros(get(outputs.cotangents, 0)), jnp.array(len(outputs.ts)))
    s_next, state = controller.init(term, s, end, a, dt0, None, steps.solver.func, order)
    size = s_next - s
    integral, count = _zeros(steps.pull.moving), jnp.array(0)
    loop = _Loop(s, outputs.cut(s, size, end, ahead), size, a, integral, steps.start(s, a), state, ahead, count, ok)
    loop = jax.tree.map(jnp.asarray, loop)
    loop = lax.while_loop(lambda x: (x.s < end) & (x.count < max_steps) & x.ok, body, loop)
    return loop.a, loop.integral, loop.ok & (loop.s >= end)
