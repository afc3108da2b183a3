"""The solve backward in time for the adjoint a(t) alone, with the integral of aᵀ ∂f/∂θ over its accepted steps.

It is solved in s = -t, from -t1 up to -t0, in one go: the cotangent of an output is added to a where a step ends at its
time, and a step cut short to end there does not shorten the one after it. Nor does one that ends with a block of the
dense output.
"""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree

from steptape.jax._continuous.dense import DenseBlocks, DenseOutput
from steptape.jax._continuous.quadrature import Carried, HostSteps, StageSteps, zeros
from steptape.jax._tape.rows import get
from steptape.jax._types import (
    BoolScalar,
    BoolScalarLike,
    Controller,
    Cotangent,
    Gradient,
    IntScalar,
    Rows,
    Scalar,
    ScalarLike,
    Vector,
)


def _where(pred: BoolScalarLike, x: PyTree, y: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: jnp.where(pred, x, y), x, y)


class Outputs(eqx.Module):
    """The times of the outputs, ascending, and their cotangents, a row for each."""

    ts: Vector
    cotangents: Rows

    def absorb(self, s: Scalar, a: Cotangent, ahead: IntScalar) -> tuple[Cotangent, IntScalar]:
        """Add the cotangents of the outputs at ``s`` to ``a``; and how many outputs are still ahead."""

        def here(carry):
            _, n = carry
            return (n > 0) & (-self.ts[jnp.maximum(n - 1, 0)] <= s)

        def add(carry):
            a, n = carry
            return jax.tree.map(jnp.add, a, get(self.cotangents, n - 1)), n - 1

        return lax.while_loop(here, add, (a, ahead))

    def cut(self, s: Scalar, size: Scalar, end: Scalar, ahead: IntScalar) -> Scalar:
        """The end of the next step: at an output, rather than beyond it or a hair before it."""
        stop = jnp.where(ahead > 0, jnp.minimum(-self.ts[jnp.maximum(ahead - 1, 0)], end), end)
        return jnp.where(s + 1.001 * size >= stop, stop, s + size)


class _Loop(eqx.Module):
    s: Scalar
    size: Scalar  # of the next step, before it is cut short
    a: Cotangent
    integral: Gradient
    carried: Carried
    controller_state: PyTree
    ahead: IntScalar  # how many outputs are
    count: IntScalar
    ok: BoolScalar


class _Solve(eqx.Module):
    """The solve on the dense output of one block, which ``steps`` are on, up to ``end``."""

    steps: StageSteps | HostSteps
    controller: Controller
    outputs: Outputs
    end: Scalar
    max_steps: int = eqx.field(static=True)

    def run(self, loop: _Loop) -> _Loop:
        """Take steps up to the end."""
        return lax.while_loop(
            lambda x: (x.s < self.end) & (x.count < self.max_steps) & x.ok, lambda x: self._step(x), loop
        )

    def _step(self, loop: _Loop) -> _Loop:
        s1 = self.outputs.cut(loop.s, self._size(loop), self.end, loop.ahead)
        a, error, gain, carried = self.steps.step(loop.s, s1, loop.a, loop.carried)
        error = jax.tree.map(lambda x: jnp.where(jnp.isnan(x), jnp.inf, x), error)
        order = self.steps.solver.error_order(self.steps.pull.term)
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

    def _size(self, loop: _Loop) -> Scalar:
        """The size of the next step: none longer than the forward solve's.

        No error norm sees how ∂f/∂θ varies, but the forward solve did. A controller that takes the steps it was told
        to is left alone.
        """
        if isinstance(self.controller, (diffrax.ConstantStepSize, diffrax.StepTo)):
            return loop.size
        return jnp.minimum(loop.size, self.steps.pull.dense.reach(-loop.s).astype(loop.size.dtype))


def solve_backward(
    steps: StageSteps | HostSteps,
    blocks: DenseBlocks,
    controller: Controller,
    span: tuple[Scalar, Scalar],
    outputs: Outputs,
    dt0: ScalarLike,
    max_steps: int,
    ok: BoolScalar,
) -> tuple[Cotangent, Gradient, BoolScalar, DenseOutput]:
    """Return a(t0), the integral of aᵀ ∂f/∂θ, and whether the solve got there; it is not begun unless ``ok``.

    And the dense output of the first block.

    ``span`` is (t0, t1), and ``controller`` that of a solve in s.
    """
    s, end = -span[1], -span[0]
    term = steps.pull.term
    a, ahead = outputs.absorb(s, zeros(get(outputs.cotangents, 0)), jnp.array(len(outputs.ts)))
    order = steps.solver.error_order(term)
    s_next, state = controller.init(term, s, end, a, dt0, None, steps.solver.func, order)
    integral, count = zeros(steps.pull.moving), jnp.array(0)
    loop = _Loop(s, s_next - s, a, integral, steps.start(s, a), state, ahead, count, ok)

    def solve_block(carry):
        block, held, loop = carry
        block = block - 1
        dense, held = blocks.open(block, held)
        stop = jnp.where(block == 0, end, -dense.begins[0])
        stop = jnp.where(block < blocks.record.blocks, stop, -jnp.inf)
        return block, held, _Solve(steps.on(dense), controller, outputs, stop, max_steps).run(loop)

    carry = jax.tree.map(jnp.asarray, (blocks.trips(), blocks.closed(), loop))
    _, held, loop = lax.while_loop(lambda carry: carry[0] > 0, solve_block, carry)
    return loop.a, loop.integral, loop.ok & (loop.s >= end), blocks.first(held)
