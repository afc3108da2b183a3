"""The solve backward in time for the adjoint a(t) alone, and the integral of aᵀ ∂f/∂θ over its accepted steps.

The state y(t) is read from the forward solve's dense output, so the equation is linear in a, and no parameter is in it.
It is solved in s = -t, from -t1 up to -t0, in one go: the cotangent of an output is added to a where a step ends at its
time, and a step cut short to end there does not shorten the one after it. Nor does one that ends with a block of the
dense output.
"""

import dataclasses
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from steptape.jax._autodiff.field import rate
from steptape.jax._continuous.dense import Blocks, Trajectory
from steptape.jax._tape.rows import get


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


class _Steps(eqx.Module):
    """Backward steps on a trajectory."""

    pull: Pullback
    solver: Any

    def on(self, trajectory: Trajectory) -> Any:
        """The same on another trajectory."""
        return dataclasses.replace(self, pull=dataclasses.replace(self.pull, trajectory=trajectory))


class StageSteps(_Steps):
    """Steps of an explicit Runge-Kutta method, whose weights are the quadrature as well.

    What is carried from a step to the next is aᵀ ∂f/∂y and aᵀ ∂f/∂θ where the one ends and the next begins.
    """

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


class HostSteps(_Steps):
    """Steps of any solver of diffrax; the quadrature is Gauss-Legendre with ``nodes`` nodes on its dense output."""

    nodes: int = eqx.field(static=True)

    def start(self, s: Any, a: Any) -> Any:
        """The solver's state, and that it must not trust it."""
        return self.solver.init(diffrax.ODETerm(self.pull.slope), s, s, a, None), jnp.array(True)

    def step(self, s0: Any, s1: Any, a0: Any, carried: Any) -> tuple:
        """As ``StageSteps.step``."""
        state, jumped = carried
        term = diffrax.ODETerm(self.pull.slope)
        a1, error, dense, state, _ = self.solver.step(term, s0, s1, a0, None, state, jumped)
        points, gauss = np.polynomial.legendre.leggauss(self.nodes)
        s = s0 + (s1 - s0) * jnp.asarray((points + 1) / 2, s0.dtype)
        interpolation = self.solver.interpolation_cls(t0=s0, t1=s1, **dense)
        weights = jnp.asarray(gauss / 2)
        gain = self.pull.integral(s, jax.vmap(interpolation.evaluate)(s), (s1 - s0).astype(weights.dtype) * weights)
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
    size: Any  # of the next step, before it is cut short
    a: Any
    integral: Any
    carried: Any
    controller_state: Any
    ahead: Any  # how many outputs are
    count: Any
    ok: Any


class _Solve(eqx.Module):
    """The solve on one trajectory, which ``steps`` are on, up to ``end``."""

    steps: Any
    controller: Any
    outputs: Outputs
    end: Any
    max_steps: int = eqx.field(static=True)

    def run(self, loop: _Loop) -> _Loop:
        """``loop`` at the end."""
        return lax.while_loop(
            lambda x: (x.s < self.end) & (x.count < self.max_steps) & x.ok, lambda x: self._step(x), loop
        )

    def _step(self, loop: _Loop) -> _Loop:
        s1 = self.outputs.cut(loop.s, self._size(loop), self.end, loop.ahead)
        a, error, gain, carried = self.steps.step(loop.s, s1, loop.a, loop.carried)
        error = jax.tree.map(lambda x: jnp.where(jnp.isnan(x), jnp.inf, x), error)
        order = self.steps.solver.error_order(diffrax.ODETerm(self.steps.pull.slope))
        keep, s, s_next, jump, state, result = self.controller.adapt_step_size(
            loop.s, s1, loop.a, a, None, error, order, loop.controller_state
        )
        was_cut = keep & (s1 - loop.s < 0.999 * loop.size)
        constant = isinstance(self.controller, diffrax.ConstantStepSize)
        size = loop.size if constant else jnp.maximum(s_next - s, jnp.where(was_cut, loop.size, 0))
        a, carried = _where(keep, (a, carried), (loop.a, loop.carried))
        integral = jax.tree.map(lambda x, g: jnp.where(keep, x + g, x), loop.integral, gain)
        a, ahead = self.outputs.absorb(jnp.where(keep, s, -jnp.inf), a, loop.ahead)
        carried = lax.cond((ahead < loop.ahead) | (keep & jump), lambda: self.steps.start(s, a), lambda: carried)
        ok = result == diffrax.RESULTS.successful
        return _Loop(s, size, a, integral, carried, state, ahead, loop.count + 1, ok)

    def _size(self, loop: _Loop) -> Any:
        """Of the next step: no error norm sees how ∂f/∂θ varies, but the forward solve did, so none longer than its.

        A controller that takes the steps it was told to is left alone.
        """
        if isinstance(self.controller, (diffrax.ConstantStepSize, diffrax.StepTo)):
            return loop.size
        return jnp.minimum(loop.size, self.steps.pull.trajectory.reach(-loop.s).astype(loop.size.dtype))


def solve_backward(
    steps: Any, blocks: Blocks, controller: Any, span: tuple, outputs: Outputs, dt0: Any, max_steps: int, ok: Any
) -> tuple[Any, Any, Any]:
    """Return a(t0), the integral of aᵀ ∂f/∂θ, and whether the solve got there; it is not begun unless ``ok``.

    ``span`` is (t0, t1), and ``controller`` that of a solve in s.
    """
    s, end = -span[1], -span[0]
    term = diffrax.ODETerm(steps.pull.slope)
    a, ahead = outputs.absorb(s, _zeros(get(outputs.cotangents, 0)), jnp.array(len(outputs.ts)))
    order = steps.solver.error_order(term)
    s_next, state = controller.init(term, s, end, a, dt0, None, steps.solver.func, order)
    integral, count = _zeros(steps.pull.moving), jnp.array(0)
    loop = _Loop(s, s_next - s, a, integral, steps.start(s, a), state, ahead, count, ok)

    def sweep(carry):
        block, held, loop = carry
        block = block - 1
        trajectory, held = blocks.open(block, held)
        stop = jnp.where(block == 0, end, -trajectory.begins[0])
        stop = jnp.where(block < blocks.record.blocks, stop, -jnp.inf)
        return block, held, _Solve(steps.on(trajectory), controller, outputs, stop, max_steps).run(loop)

    carry = jax.tree.map(jnp.asarray, (blocks.trips(), blocks.closed(), loop))
    *_, loop = lax.while_loop(lambda carry: carry[0] > 0, sweep, carry)
    return loop.a, loop.integral, loop.ok & (loop.s >= end)
