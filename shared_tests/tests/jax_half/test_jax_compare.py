"""``compare``: counts and gradients of each way, and what fails in words."""

import math
import os
from types import SimpleNamespace

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from steptape import OptionError
from steptape.jax import compare
from steptape.jax._compare import ways


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch):
    """What is asked of the times is that they are taken."""
    monkeypatch.setattr("steptape._compare.race.ROUNDS", 3)


class Decay(eqx.Module):
    """dy/dt = -rate y."""

    rate: jax.Array
    name: str = "decay"

    def __call__(self, t, y, args):
        return -self.rate * y


def end(adjoint, model, closed=None):
    """The last output of a solve by Heun's method with ten steps, from 1; ``closed``: a rate that the field holds."""
    field = model if closed is None else lambda t, y, args: -closed * y
    term, ts = diffrax.ODETerm(field), diffrax.SaveAt(t1=True)
    y0 = jnp.ones(())
    return diffrax.diffeqsolve(term, diffrax.Heun(), 0.0, 1.0, 0.1, y0, saveat=ts, max_steps=16, adjoint=adjoint).ys[0]


def test_each_way_is_counted_and_held_against_the_discrete_gradient():
    ways = ["RecursiveCheckpointAdjoint()", "AdaptiveCheckpointAdjoint()", "BacksolveAdjoint()"]
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        rate = jnp.asarray(1.3, jnp.float64)
        found = compare(lambda adjoint, model: end(adjoint, model, model.rate), Decay(rate), ways=ways)
    rows = {row.way: row for row in found.rows}
    assert list(rows) == ways
    z = -0.13
    exact = -math.exp(-1.3)
    error = abs(10 * (1 + z + z**2 / 2) ** 9 * (1 + z) * -0.1 / exact - 1)
    for name in ways[:2]:
        assert rows[name].difference < 1e-13
        assert rows[name].error == pytest.approx(error, rel=1e-6)
        assert rows[name].evaluations_forward == 20
        assert rows[name].held > 0
        assert rows[name].rounds >= 3
    assert rows[ways[1]].evaluations_backward == 20
    assert rows[ways[2]].why_not.startswith("failed: ")
    assert "closed-over" in rows[ways[2]].why_not
    assert found.best().is_discrete
    assert "10 steps accepted, 0 rejected; 20 evaluations" in str(found)
    assert "float64" in found.reference


@pytest.mark.parametrize(
    ("loss", "inputs", "said"),
    [
        (lambda adjoint: 1.0, (), "pass what to differentiate with respect to"),
        (lambda adjoint, x: x, (1.0,), "solves nothing with the adjoint"),
        (lambda adjoint, x: x[None] * end(adjoint, Decay(x)), (jnp.ones(()),), "must return a scalar"),
    ],
)
def test_a_wrong_call_is_refused(loss, inputs, said):
    with pytest.raises(OptionError, match=said):
        compare(loss, *inputs)


@pytest.mark.parametrize(
    ("flags", "cores", "time"),
    [("", {0, 1}, "clock"), ("", {1}, "processor"), ("--xla_cpu_multi_thread_eigen=false", {0, 1}, "processor")],
)
def test_where_one_thread_computes_what_other_programs_take_is_not_counted(monkeypatch, flags, cores, time):
    clocks = SimpleNamespace(perf_counter=lambda: "clock", process_time=lambda: "processor")
    monkeypatch.setattr(ways, "time", clocks)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores, raising=False)
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert ways.now() == time
