"""QuadratureAdjoint through events where the field jumps, several in turn, against closed forms."""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest

from steptape.jax import QuadratureAdjoint
from steptape_helpers.jax_solves import x64

P = np.array([1.5, 0.4, 0.3])


@pytest.fixture(autouse=True)
def _x64():
    with x64():
        yield


def _events(field, condition, after, y0, p, levels, solver=None):
    """The sum of the times of one event at each level, from each of which a solve goes on with ``after(y)``."""
    root_finder: Any = optimistix.Newton(1e-8, 1e-8)

    def solved(at, level):
        t0, y0 = at
        event = diffrax.Event(lambda t, y, args, **kwargs: condition(y, level), root_finder, direction=None)
        how: Any = {"stepsize_controller": diffrax.PIDController(rtol=1e-9, atol=1e-9), "event": event}
        how |= {"adjoint": QuadratureAdjoint(), "max_steps": 512}
        term = diffrax.ODETerm(lambda t, y, p: field(y, p))
        solution = diffrax.diffeqsolve(term, solver or diffrax.Tsit5(), t0, 20.0, 0.1, y0, p, **how)
        return (solution.ts[0], after(solution.ys[0], p)), solution.ts[0]

    return jnp.sum(jax.lax.scan(solved, (jnp.array(0.0), y0), levels)[1])


def _ball(p, **how):
    """Height and velocity of a ball of acceleration p[0], dropped from p[1], which keeps p[2] of its speed."""
    start = jnp.stack([p[1], 0.0 * p[1]])

    def after(y, p):
        # A hair above the ground, from which it would start with another event.
        return jnp.stack([1e-12 + 0 * y[0], -p[2] * y[1]])

    field = lambda y, p: jnp.stack([y[1], -p[0]])  # noqa: E731
    return _events(field, lambda y, level: y[0] - level, after, start, p, jnp.zeros(3), **how)


def _dropped(p):
    once = jnp.sqrt(2 * p[1] / p[0])
    return once * (1 + (1 + 2 * p[2]) + (1 + 2 * p[2] + 2 * p[2] ** 2))


def _neuron(p, **how):
    """A neuron that is driven to its threshold, where another field takes over, and is reset."""

    def field(v, p):
        return jnp.where(v < 1, p[0] - v, p[1] * v)

    return _events(field, lambda v, level: v - level, lambda v, p: p[2] + 0 * v, p[2], p, jnp.ones(3), **how)


def _fired(p):
    return 6 * jnp.log((p[0] - p[2]) / (p[0] - 1))


def _stairs(p, **how):
    """A slope that changes where the event is, from which the solve goes on as it is."""

    def field(y, p):
        return jnp.where(y < 1, p[0], jnp.where(y < 2, p[1], p[0] * p[1])) + 0 * y

    return _events(field, lambda y, level: y - level, lambda y, p: y, p[2], p, jnp.array([1.0, 2.0, 3.0]), **how)


def _climbed(p):
    return 3 * (1 - p[2]) / p[0] + 2 / p[1] + 1 / (p[0] * p[1])


@pytest.mark.by_default(where=lambda run: run is _stairs)
@pytest.mark.parametrize(("run", "closed"), [(_ball, _dropped), (_neuron, _fired), (_stairs, _climbed)])
def test_times_of_events_in_turn_where_the_field_or_the_state_jumps(run, closed):
    got = jax.jit(jax.grad(run))(P)
    want = jax.grad(closed)(P)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.full
def test_where_a_solver_evaluates_the_field_at_both_ends_of_a_step():
    # Its first stage is at the event itself, whose time is known to a rounding.
    got = jax.jit(jax.grad(lambda p: _neuron(p, solver=diffrax.Kvaerno3())))(P)
    np.testing.assert_allclose(got, jax.grad(_fired)(P), rtol=1e-6, atol=1e-6)
