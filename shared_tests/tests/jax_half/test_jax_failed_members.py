"""A member of a batch that failed and is masked leaves the others' gradient as it is, however it failed.

y' = a y^2 from 1 is 1/(1 - a t): for a = 0.5 it is 2 at t = 1, for a = 1.5 and more it is infinite before.
"""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix
import pytest

from steptape.jax import AdaptiveCheckpointAdjoint, QuadratureAdjoint, SeminormAdjoint
from steptape_helpers.jax_solves import x64

CONTROLLER = diffrax.PIDController(rtol=1e-5, atol=1e-5)


@pytest.fixture(autouse=True)
def _x64():
    with x64():
        yield


def _far(t, y, args, **kwargs):
    return y["a"] - 1e3


FAILURES = {
    "max_steps": {"max_steps": 40, "stepsize_controller": CONTROLLER},
    "some outputs": {
        "max_steps": 40,
        "stepsize_controller": CONTROLLER,
        "ts": [0.3, 0.9, 1.0],
    },
    "dtmin": {
        "max_steps": 400,
        "stepsize_controller": diffrax.PIDController(rtol=1e-5, atol=1e-5, dtmin=5e-3, force_dtmin=False),
    },
    "not finite": {"max_steps": 60, "stepsize_controller": diffrax.ConstantStepSize()},
    "event": {
        "max_steps": 400,
        "stepsize_controller": CONTROLLER,
        "event": diffrax.Event(lambda *a, **k: _far(*a) > 0),
    },
    "root": {
        "max_steps": 400,
        "stepsize_controller": CONTROLLER,
        "event": diffrax.Event(_far, optimistix.Newton(1e-5, 1e-5)),
    },
}
ADJOINTS = {
    "aca": AdaptiveCheckpointAdjoint(),
    "quadrature": QuadratureAdjoint(),
    "nodes": QuadratureAdjoint(nodes=2),
    "seminorm": SeminormAdjoint(),
}
TRIED = [
    *(("quadrature", failure) for failure in FAILURES),
    *(("aca", failure) for failure in ("some outputs", "not finite", "root")),
    ("nodes", "root"),
    ("seminorm", "max_steps"),
    ("seminorm", "some outputs"),
    ("seminorm", "dtmin"),
]
# Each adjoint. A failure at `dtmin` is below.
BY_DEFAULT = [
    ("quadrature", "max_steps"),
    ("aca", "not finite"),
    ("nodes", "root"),
    ("seminorm", "some outputs"),
]


def _end(rate, adjoint, how):
    """y(1) and whether it is one."""

    def field(t, y, args):
        return {"a": args["rate"] * y["a"] ** 2, "b": -y["b"]}

    y0 = {"a": jnp.array(1.0), "b": jnp.ones(2)}
    if "ts" in how:
        how = {**how, "saveat": diffrax.SaveAt(ts=how["ts"])}
        del how["ts"]
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field), diffrax.Bosh3(), 0.0, 1.0, 0.05, y0, {"rate": rate}, throw=False, adjoint=adjoint, **how
    )
    end = solution.ys["a"][-1]
    return end, (solution.result == diffrax.RESULTS.successful) & jnp.isfinite(end)


@pytest.mark.by_default(where=lambda adjoint, failure: (adjoint, failure) in BY_DEFAULT)
@pytest.mark.parametrize(("adjoint", "failure"), TRIED)
def test_a_masked_member_has_a_gradient_of_zero(adjoint, failure):
    rates = jnp.array([0.5, 40.0 if failure == "not finite" else 1.5])

    def total(rates):
        ends, good = jax.vmap(lambda rate: _end(rate, ADJOINTS[adjoint], FAILURES[failure]))(rates)
        return jnp.sum(jnp.where(good, ends, 0.0)), good

    gradient, good = jax.jit(jax.grad(total, has_aux=True))(rates)
    assert good.tolist() == [True, False]
    assert abs(gradient[0] - 4) < 2e-3
    assert gradient[1] == 0


@pytest.mark.by_default(where=lambda failure: failure == "dtmin")
@pytest.mark.parametrize("failure", ["max_steps", "dtmin"])
def test_a_failed_member_that_is_used_has_no_number(failure):
    gradient = jax.jit(jax.grad(lambda rate: _end(rate, ADJOINTS["quadrature"], FAILURES[failure])[0]))(1.5)
    assert jnp.isnan(gradient)


def _total(adjoint, stochastic):
    """The sum of a batch's ends, whose members take one more steps than the other; both stay in a tube from t = 1."""

    def one(y0, size, rate):
        def field(t, y, rate):
            decayed = y[0] * jnp.exp(0.5 * (t - 1.0))
            return -rate * eqx.error_if(y, (t < 0.99) | (decayed < 0.9) | (decayed > 2.1), "never there")

        terms = diffrax.ODETerm(field)
        if stochastic:
            path = diffrax.VirtualBrownianTree(1.0, 2.0, 1e-2, (1,), jax.random.key(0))
            terms = diffrax.MultiTerm(terms, diffrax.ControlTerm(lambda t, y, rate: 0.0 * y[:, None], path))
        solver = diffrax.Heun()
        return diffrax.diffeqsolve(terms, solver, 1.0, 2.0, size, y0, rate, adjoint=adjoint, max_steps=100).ys[0]

    return lambda rate: jnp.sum(
        jax.vmap(one, in_axes=(0, 0, None))(jnp.array([[1.0], [2.0]]), jnp.array([0.02, 0.1]), rate)
    )


@pytest.mark.by_default(where=lambda adjoint: adjoint != AdaptiveCheckpointAdjoint())
@pytest.mark.parametrize(
    ("adjoint", "stochastic"),
    [
        (AdaptiveCheckpointAdjoint(), True),
        (AdaptiveCheckpointAdjoint(checkpoints=3), False),
        (QuadratureAdjoint(checkpoints=5), False),
    ],
    ids=["noise", "recomputed", "blocks"],
)
def test_a_member_of_fewer_steps_is_evaluated_nowhere_else(adjoint, stochastic):
    gradient = jax.jit(jax.grad(_total(adjoint, stochastic)))(0.5)
    assert abs(gradient + 3 * jnp.exp(-0.5)) < 1e-2
