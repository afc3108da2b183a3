"""diffraxtra: ``DiffEqSolver`` looks ``diffeqsolve`` up in diffrax and names diffrax's default adjoint."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from steptape.jax import AdaptiveCheckpointAdjoint, install
from steptape.shared_tests.oracles.distance import distance
from steptape_helpers.clients import MEASURED, Measured, installed

diffraxtra = installed("diffraxtra")

CONTROLLERS = {
    "PIDController": diffrax.PIDController(rtol=1e-5, atol=1e-5),
    "ConstantStepSize": diffrax.ConstantStepSize(),
}


@pytest.fixture
def replays(monkeypatch):
    """The calls of our adjoint's loop, one for each time that a solve is traced."""
    counted, loop = [], AdaptiveCheckpointAdjoint.loop

    def counting(self, **kwargs):
        counted.append(type(self))
        return loop(self, **kwargs)

    monkeypatch.setattr(AdaptiveCheckpointAdjoint, "loop", counting)
    return counted


def trained(controller, then=None, **adjoint):
    """Losses and gradients of two steps, in a field's weights and the initial state, and the model after the first.

    ``then``: another one's model to take the second step from.
    """
    solver = diffraxtra.DiffEqSolver(diffrax.Dopri5(), stepsize_controller=controller, max_steps=256, **adjoint)
    term, saveat = diffrax.ODETerm(lambda t, y, field: field(y) * jnp.cos(t)), diffrax.SaveAt(ts=jnp.linspace(0, 2, 5))

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def gradient(model):
        y0, field = model
        return jnp.mean(solver(term, t0=0.0, t1=2.0, dt0=0.1, y0=y0, args=field, saveat=saveat).ys ** 2)

    model = jnp.ones(2), eqx.nn.MLP(2, 2, 16, 1, activation=jnp.tanh, key=jax.random.key(0))
    loss, first = gradient(model)
    model = then or eqx.apply_updates(model, jax.tree.map(lambda g: -0.01 * g, first))
    last_loss, second = gradient(model)
    return (loss, last_loss), jax.tree.leaves((first, second)), model


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_a_solver_object(controller, replays):
    expected = trained(CONTROLLERS[controller], adjoint=diffrax.DirectAdjoint())
    assert not replays
    with install(default=AdaptiveCheckpointAdjoint(), override=True):
        found = trained(CONTROLLERS[controller], expected[2])
    assert replays
    assert distance(found[0], expected[0]) == 0
    gap = distance(found[1], expected[1])
    MEASURED.append(Measured(f"diffraxtra, DiffEqSolver, {controller}", gap, "Dopri5"))
    assert gap <= 1e-12
