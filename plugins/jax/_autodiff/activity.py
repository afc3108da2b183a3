"""Which leaves of a loop's carry depend on what is differentiated."""

from typing import Any

import equinox as eqx
import jax
from jax.custom_derivatives import SymbolicZero


def _reached(step: Any, moves: Any) -> Any:
    """The leaves of ``step(*inputs)`` whose tangent is not a symbolic zero, when the inputs in ``moves`` move.

    ``step`` takes the inputs that move; only traced, never run.
    """
    found: list = []

    @jax.custom_jvp
    def spy(x):
        return x

    def spy_jvp(primals, tangents):
        found.append(jax.tree.map(lambda t: not isinstance(t, SymbolicZero), tangents[0]))
        return primals[0], tangents[0]

    spy.defjvp(spy_jvp, symbolic_zeros=True)
    # linearize, not jvp: the step may hold functions that only know reverse mode.
    jax.eval_shape(lambda x: jax.linearize(lambda y: spy(step(y)), x)[0], moves)
    return found[0] if found else None


def perturbed_carry(step: Any, fun: Any, p_fun: Any, carry: Any, p_carry: Any) -> Any:
    """The least fixed point of ``carry -> step(fun, carry)``: a tree like ``carry``, true where a derivative flows."""
    while True:
        moving, fixed = eqx.partition((fun, carry), (p_fun, p_carry))

        def probe(moving, fixed=fixed):
            return eqx.filter(step(*eqx.combine(moving, fixed)), eqx.is_inexact_array)

        reached = _reached(probe, moving)
        if reached is None:
            return p_carry
        reached = jax.tree.map(
            lambda p, r: bool(p or r), p_carry, eqx.combine(reached, jax.tree.map(lambda _: False, carry))
        )
        if jax.tree.leaves(reached) == jax.tree.leaves(p_carry):
            return reached
        p_carry = reached
