"""What the JAX tests share: a forced, rotating field, its solve with every input differentiable, and the oracle."""

import contextlib
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from steptape.jax import AdaptiveCheckpointAdjoint
from steptape.shared_tests.oracles.distance import largest

# The most steps of any solve: a state taken again may round otherwise, and the host's default then loses outputs.
HOST = diffrax.RecursiveCheckpointAdjoint(checkpoints=4096)
FORWARD = diffrax.ForwardMode()
OURS = AdaptiveCheckpointAdjoint()


def x64() -> contextlib.AbstractContextManager:
    """Double precision for a while; the package itself never touches the setting."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    return jax.experimental.enable_x64()  # type: ignore[attr-defined]


class Field(eqx.Module):
    """A vector field with parameters of its own: its forcing is fast enough that an adaptive solver is caught out."""

    matrix: Any
    frequency: Any

    def __call__(self, t, y, args):
        """``args`` damps."""
        return 3 * jnp.cos(self.frequency * t) * jnp.tanh(self.matrix @ y) - args * y


class Inputs(NamedTuple):
    """All that a solve can be differentiated for; ``times`` is t0, t1, dt0."""

    field: Any
    y0: Any
    args: Any
    times: Any


def inputs(dtype: Any = np.float64) -> Inputs:
    """A solve of about 40 accepted and 20 rejected steps with Dopri5 at 1e-4."""
    field = Field(jnp.array([[0.3, -1.4], [1.1, 0.2]], dtype), jnp.array(9.0, dtype))
    return Inputs(field, jnp.array([1.0, -0.5], dtype), jnp.array(0.7, dtype), jnp.array([0.1, 2.9, 0.8], dtype))


def solve(x: Inputs, adjoint: Any, solver: Any = None, **kwargs: Any) -> diffrax.Solution:
    """The solve, by default with Dopri5 and a PID controller."""
    t0, t1, dt0 = x.times
    kwargs.setdefault("stepsize_controller", pid())
    kwargs.setdefault("max_steps", 64)
    dt0 = kwargs.pop("dt0", dt0)
    term = diffrax.ODETerm(x.field)
    return diffrax.diffeqsolve(term, solver or diffrax.Dopri5(), t0, t1, dt0, x.y0, x.args, adjoint=adjoint, **kwargs)


def pid(**kwargs: Any) -> diffrax.PIDController:
    """The controller of the adaptive tests."""
    return diffrax.PIDController(rtol=1e-4, atol=1e-6, **kwargs)


def loss(solution: diffrax.Solution) -> Any:
    """A scalar that every saved value and time takes part in."""
    leaves = jax.tree.leaves((solution.ys, solution.ts))
    return sum(jnp.sum(jnp.where(jnp.isfinite(x), jnp.sin(x + 0.3), 0.0)) for x in leaves)


def _with_loss(run: Any) -> Any:
    def fun(x):
        solution = run(x)
        return loss(solution), solution

    return fun


def compiled(run: Any) -> Any:
    """``run(x)`` gives a solution; of x, in one program for many: the loss and the solution, and the gradient."""
    return eqx.filter_jit(eqx.filter_value_and_grad(_with_loss(run), has_aux=True))


def by_host(run: Any) -> Any:
    """The same of ``run(x, adjoint)``, for inputs of one real dtype; of the solution all that is numbers."""

    def of(adjoint):
        def fun(x):
            solution = run(x, adjoint)
            return loss(solution), eqx.filter(solution, eqx.is_array_like)

        return fun

    return eqx.filter_jit(lambda x: forward(of, x))


def forward(of: Any, x: Any) -> Any:
    """``of(adjoint)(x)``, a number and something beside it, and the number's gradient, a product for each entry of x.

    In diffrax's forward mode, which is traced in half the time of its reverse mode.
    """
    moving, still = eqx.partition(x, eqx.is_inexact_array)
    flat, back = ravel_pytree(moving)

    def along(v):
        return jax.jvp(lambda flat: of(FORWARD)(eqx.combine(back(flat), still)), (flat,), (v,), has_aux=True)

    try:
        value, slopes, beside = jax.vmap(along, out_axes=(None, 0, None))(jnp.eye(flat.size, dtype=flat.dtype))
    except AttributeError as error:
        # diffrax's forward mode asks a `HalfSolver` for what it has not.
        if "scan_kind" not in str(error):
            raise
        return eqx.filter_value_and_grad(of(HOST), has_aux=True)(x)
    return (value, beside), back(slopes)


def value_and_grad(run: Any, x: Any) -> tuple[Any, Any, Any]:
    """``run(x)`` gives a solution; returns it, the loss and the gradient, compiled."""
    (value, solution), grad = compiled(run)(x)
    return solution, value, grad


def worst(got: Any, want: Any) -> float:
    """The largest difference of two gradients; for a tuple of inputs, each relative to that input's largest entry."""
    if isinstance(want, tuple):
        return max(worst(g, w) for g, w in zip(got, want, strict=True) if jax.tree.leaves(w))
    return largest(jax.tree.leaves(got), jax.tree.leaves(want))


def identical(got: Any, want: Any) -> bool:
    """Whether two trees of arrays are the same, bit for bit."""
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    assert len(got) == len(want) > 0
    return all(np.array_equal(g, w, equal_nan=True) for g, w in zip(got, want, strict=True))


def assert_as_host(run: Any, *inputs: Any, rtol: float = 1e-12, ours: Any = OURS) -> diffrax.Solution:
    """``run(x, ours)``: the host's solution bit for bit, the host's own gradient to ``rtol``; of the last input.

    Inputs of one form share a program.
    """
    by_ours, host = compiled(lambda x: run(x, ours)), by_host(run)
    for x in inputs:
        ((value, solution), grad), ((host_value, host_solution), host_grad) = by_ours(x), host(x)
        if not identical((value, solution.ys), (host_value, host_solution.ys)):
            # XLA may round another program otherwise, so that the host's own solution depends on whether it is
            # differentiated: ours is the one that is not.
            host_value, host_solution = eqx.filter_jit(_with_loss(lambda x: run(x, HOST)))(x)
        for field in ("ts", "ys", "stats"):
            assert identical(getattr(solution, field), getattr(host_solution, field)), field
        assert identical(value, host_value)
        if not worst(grad, host_grad) < rtol:
            # Derivatives in times are sums of terms that cancel, which the host's two modes round each in its own way.
            _, host_grad = compiled(lambda x: run(x, HOST))(x)
        assert worst(grad, host_grad) < rtol
    return solution
