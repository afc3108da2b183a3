"""Nothing of ours leans on JAX's promotion of dtypes: all JAX tests run without it, and here every pair of dtypes."""

import diffrax
import jax
import jax.numpy as jnp
import pytest

from steptape.jax import AdaptiveCheckpointAdjoint, QuadratureAdjoint, SeminormAdjoint
from steptape_helpers.jax_solves import x64

ADJOINTS = {
    "default": AdaptiveCheckpointAdjoint(),
    "checkpoints": AdaptiveCheckpointAdjoint(checkpoints=3),
    "stage": AdaptiveCheckpointAdjoint(graph="stage"),
    "quadrature": QuadratureAdjoint(),
    "nodes": QuadratureAdjoint(nodes=2, checkpoints=3),
    "seminorm": SeminormAdjoint(),
}
# Of y, and of the times; y may have leaves of several. Other tests have one dtype for all.
DTYPES = {
    "mixed": (("float32", "float64"), "float64"),
    "float32 times": (("float64",), "float32"),
    "complex": (("complex128",), "float64"),
}


# A continuous adjoint of a complex state is refused, and the host's own backward solve promotes the times to y's dtype.
DISCRETE = ("default", "checkpoints", "stage")
PAIRS = [(n, d) for n in ADJOINTS for d in DTYPES if d != "complex" or n in DISCRETE]
PAIRS.remove(("seminorm", "float32 times"))
# Each adjoint and each of the dtypes.
BY_DEFAULT = [
    ("default", "mixed"),
    ("checkpoints", "complex"),
    ("stage", "float32 times"),
    ("quadrature", "mixed"),
    ("nodes", "float32 times"),
    ("seminorm", "mixed"),
]


def test_the_tests_run_without_promotion():
    with x64(), pytest.raises(jax.dtypes.TypePromotionError):
        jnp.ones(1, jnp.float32) + jnp.ones(1, jnp.float64)


@pytest.mark.by_default(where=lambda name: name == "checkpoints")
@pytest.mark.parametrize("name", ["checkpoints", "quadrature", "nodes"])
def test_in_a_branch_where_the_counts_of_a_solve_are_integers_of_a_width(name):
    def end(y0, rate):
        term = diffrax.ODETerm(lambda t, y, rate: -rate * y)
        controller = diffrax.PIDController(rtol=1e-4, atol=1e-4)
        return diffrax.diffeqsolve(
            term, diffrax.Heun(), 0, 1, 0.1, y0, rate, stepsize_controller=controller, adjoint=ADJOINTS[name]
        ).ys[0]

    with x64():
        branch = jax.grad(lambda y0, rate: jax.lax.cond(rate > 0, end, lambda y0, rate: y0, y0, rate))
        assert abs(jax.jit(branch)(1.0, 0.7) - jnp.exp(-0.7)) < 1e-3


@pytest.mark.by_default(where=lambda name, dtypes: (name, dtypes) in BY_DEFAULT)
@pytest.mark.parametrize(("name", "dtypes"), PAIRS)
def test_a_decay_has_its_gradient_in_every_dtype(name, dtypes):
    of_y, of_t = DTYPES[dtypes]
    with x64():

        def total(y0, rate):
            def field(t, y, rate):
                return jax.tree.map(lambda y: -rate.astype(y.dtype) * y, y)

            ys = diffrax.diffeqsolve(
                diffrax.ODETerm(field),
                diffrax.Bosh3(),
                *(jnp.asarray(t, of_t) for t in (0.0, 1.0, 0.1)),
                y0,
                rate,
                stepsize_controller=diffrax.PIDController(rtol=1e-4, atol=1e-4),
                max_steps=4096 if name == "default" else 64,
                adjoint=ADJOINTS[name],
            ).ys
            return sum(jnp.sum(y.real.astype("float64")) for y in ys)

        y0, rate = tuple(jnp.ones(1, dtype) for dtype in of_y), jnp.asarray(0.7, of_t)
        g_y0, g_rate = jax.jit(jax.grad(total, argnums=(0, 1)))(y0, rate)
        assert [g.dtype for g in (*g_y0, g_rate)] == [y.dtype for y in (*y0, rate)]
        assert all(abs(g[0] - jnp.exp(-0.7)) < 1e-3 for g in g_y0)
        assert abs(g_rate + len(y0) * jnp.exp(-0.7)) < 3e-3
