"""The replay evaluates a field at times of the forward pass, to the bit, in single precision and far from zero too."""

import os
import subprocess
import sys

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steptape.jax import AdaptiveCheckpointAdjoint
from steptape_helpers.jax_solves import x64

# With less optimisation, to compile in haste, XLA rounds a sum of products otherwise in one program than in another.
IN_HASTE = "optimization_level=0" in os.environ.get("XLA_FLAGS", "")


@pytest.mark.skipif(not IN_HASTE, reason="XLA is as it is")
def test_with_xla_as_it_is():
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


@pytest.mark.skipif(IN_HASTE, reason="runs in a process of its own")
@pytest.mark.by_default(where=lambda solver, of_y: isinstance(solver, diffrax.Tsit5) and of_y == "float32")
@pytest.mark.parametrize(
    ("solver", "adjoint", "of_y"),
    [
        (diffrax.Tsit5(), AdaptiveCheckpointAdjoint(), "float32"),
        (diffrax.Tsit5(), AdaptiveCheckpointAdjoint(), "float64"),
        (diffrax.Dopri8(), AdaptiveCheckpointAdjoint(checkpoints=2), "float32"),
        (diffrax.Bosh3(), AdaptiveCheckpointAdjoint(graph="stage"), "float32"),
        (diffrax.Kvaerno3(), AdaptiveCheckpointAdjoint(), "float32"),
    ],
    ids=["Tsit5", "double state", "Dopri8, recomputed", "Bosh3, by stage", "Kvaerno3"],
)
def test_every_stage_is_at_a_time_of_the_forward_pass(solver, adjoint, of_y):
    seen = []

    def field(t, y, rate):
        jax.debug.callback(lambda t: seen.append(float(t)), t)
        return (rate * jnp.sin(40 * t)).astype(y.dtype) * y

    def end(rate, t0, t1, y0):
        controller = diffrax.PIDController(rtol=1e-2, atol=1e-2)
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            solver,
            t0,
            t1,
            jnp.float32(0.05),
            y0,
            rate,
            stepsize_controller=controller,
            max_steps=64,
            adjoint=adjoint,
        ).ys.sum()

    def times(function, inputs):
        seen.clear()
        jax.block_until_ready(jax.jit(function)(*inputs))
        jax.effects_barrier()
        return list(seen)

    with x64():
        inputs = (jnp.float32(1), jnp.float32(300), jnp.float32(300.7), jnp.ones(2, of_y))
        forward, both = times(end, inputs), times(jax.grad(end, argnums=(0, 1, 2, 3)), inputs)
    assert len(both) > len(forward) > 20
    assert set(both) == set(forward)
    assert not any(np.float32(t) != t for t in forward)
