"""With types checked at run time in diffrax and ours, as jaxtyping's import hook does it, solves run as without."""

import subprocess
import sys

import pytest

pytest.importorskip("beartype")

CODE = """
from jaxtyping import install_import_hook
with install_import_hook(["diffrax", "steptape.jax"], "beartype.beartype"):
    import diffrax, lineax, optimistix, steptape.jax
import jax, jax.numpy as jnp
jax.config.update("jax_numpy_dtype_promotion", "strict")

def ode(adjoint, saveat=None, event=None, batch=False, solver=None, **how):
    def end(y0, rate):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, rate: -rate * y), solver or diffrax.Heun(), 0.0, 1.0, 0.1, y0, rate,
            saveat=saveat or diffrax.SaveAt(t1=True), event=event, adjoint=adjoint, max_steps=128,
            stepsize_controller=diffrax.PIDController(rtol=1e-3, atol=1e-3), **how)
        if solution.interpolation is not None:
            return solution.evaluate(0.5)
        return jnp.sum(jnp.where(jnp.isfinite(solution.ys), solution.ys, 0.0))
    gradient = jax.grad(end, argnums=(0, 1))
    gradient = jax.vmap(gradient, in_axes=(0, None)) if batch else gradient
    both = jax.jit(lambda y0, rate: (end(2.0, rate), gradient(y0, rate)))
    jax.block_until_ready(both(jnp.ones(2) if batch else 2.0, 0.7))

def sde(adjoint):
    def end(y0):
        path = diffrax.VirtualBrownianTree(0.0, 1.0, 1e-2, (), jax.random.key(0))
        terms = diffrax.MultiTerm(
            diffrax.ODETerm(lambda t, y, args: -y), diffrax.ControlTerm(lambda t, y, args: 0.1 * y, path))
        return diffrax.diffeqsolve(terms, diffrax.Heun(), 0.0, 1.0, 0.1, y0, adjoint=adjoint, max_steps=16).ys[0]
    jax.block_until_ready(jax.jit(jax.grad(end))(1.0))

aca, few = steptape.jax.AdaptiveCheckpointAdjoint(), steptape.jax.AdaptiveCheckpointAdjoint(3, "stage")
quadrature, seminorm = steptape.jax.QuadratureAdjoint(), steptape.jax.SeminormAdjoint()
crossed = diffrax.Event(lambda t, y, args, **k: y < 1)
rooted = diffrax.Event(lambda t, y, args, **k: y - 1.5, optimistix.Newton(1e-5, 1e-5))
"""
SOLVES = {
    "ode": "ode(aca, batch=True); ode(quadrature); ode(seminorm)",
    "sde": "[sde(a) for a in (aca, few)]",
    "event": "[ode(a, event=e) for a, e in ((aca, rooted), (quadrature, rooted), (few, crossed))]",
    "output": "ode(aca, diffrax.SaveAt(dense=True)); ode(few, diffrax.SaveAt(t0=True, ts=[0.5], steps=2))",
    "implicit": "ode(aca, solver=diffrax.Kvaerno3())",
}
# What costs is to import all with the hook.
PROCESSES = ("ode", "output"), ("sde", "event", "implicit")


@pytest.mark.full
@pytest.mark.parametrize("solves", PROCESSES, ids=", ".join)
def test_solves_and_gradients_pass_a_check_of_types(solves):
    code = CODE + "\n".join(SOLVES[name] for name in solves)
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
