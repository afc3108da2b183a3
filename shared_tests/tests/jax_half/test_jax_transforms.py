"""AdaptiveCheckpointAdjoint under JAX's and equinox's transforms: each time what diffrax's own adjoint gives there."""

import functools
import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import steptape_helpers.jax_solves
from steptape.jax import AdaptiveCheckpointAdjoint, QuadratureAdjoint
from steptape_helpers.jax_solves import FORWARD, HOST, OURS, Field, identical, inputs, solve, worst, x64

LOOSE = diffrax.PIDController(rtol=3e-2, atol=3e-2)
# Few enough that most of a solve is recomputed.
FEW = AdaptiveCheckpointAdjoint(checkpoints=3)


@pytest.fixture(autouse=True)
def _x64():
    with x64():
        yield


def final(y0, end=2.9, adjoint=OURS, **kwargs):
    """The last state of an adaptive solve with Heun's method."""
    kwargs.setdefault("max_steps", 128)
    kwargs.setdefault("stepsize_controller", LOOSE)
    times = jnp.stack([0.1, end, 0.05])
    return solve(inputs()._replace(y0=y0, times=times), adjoint, diffrax.Heun(), **kwargs)


def squared(y0, end=2.9, adjoint=OURS, **kwargs):
    """A scalar of the last state."""
    return jnp.sum(jnp.sin(final(y0, end, adjoint, **kwargs).ys))


def compared(fun, *args, adjoints=(HOST, OURS)):
    """``fun(adjoint, *args)`` for the host's adjoint and for others, compiled as one."""
    return jax.jit(lambda *args: [fun(adjoint, *args) for adjoint in adjoints])(*args)


Y0 = np.array([[1.0, -0.5], [0.3, 0.3], [-2.0, 0.1], [0.0, 1.0]])
ENDS = np.array([0.13, 2.9, 0.6, 1.3])


def test_grad_of_vmap_and_vmap_of_grad_where_one_element_runs_out_of_steps():
    max_steps = 24

    def one(y0, end, adjoint):
        solution = final(y0, end, adjoint, max_steps=max_steps, throw=False)
        return jnp.sum(jnp.sin(solution.ys)), solution.stats

    def total(y0, end):
        values, stats = jax.vmap(lambda y0, end: one(y0, end, OURS))(y0, end)
        return jnp.sum(values), stats

    def each(mode, adjoint):
        return jax.vmap(mode(functools.partial(one, adjoint=adjoint), argnums=(0, 1), has_aux=True))

    of_vmap = jax.grad(total, argnums=(0, 1), has_aux=True)
    functions = (of_vmap, each(jax.grad, OURS), each(jax.jacfwd, FORWARD))
    *ours, (want, stats) = jax.jit(lambda *args: [function(*args) for function in functions])(Y0, ENDS)
    assert max(stats["num_steps"]) == max_steps
    assert max(stats["num_accepted_steps"]) >= 10 * min(stats["num_accepted_steps"]) > 0
    for got, counted in ours:
        assert identical(counted, stats)
        assert worst(got, want) < 1e-12


# By default vmap once, here and in the tests of properties.
@pytest.mark.full
def test_vmap_of_vmap_over_the_state_and_over_the_end():
    def gradient(adjoint, y0, ends):
        grad = jax.grad(functools.partial(squared, adjoint=adjoint), argnums=(0, 1))
        return jax.vmap(jax.vmap(grad, in_axes=(0, None)), in_axes=(None, 0))(y0, ends)

    host, ours = compared(gradient, Y0[:3], ENDS[:2])
    assert ours[0].shape == (2, 3, 2)
    assert worst(ours, host) < 1e-12


def test_a_jacobian_pulls_back_a_batch_of_cotangents_through_one_solve():
    def jacobian(adjoint, y0):
        saveat = diffrax.SaveAt(ts=jnp.array([0.5, 2.9]))
        mode = jax.jacfwd if adjoint == FORWARD else jax.jacrev
        return mode(lambda y0: final(y0, adjoint=adjoint, saveat=saveat).ys)(y0)

    host, few = compared(jacobian, Y0[0], adjoints=(FORWARD, FEW))
    assert few.shape == (2, 2, 2)
    assert worst(few, host) < 1e-12


def test_in_a_branch_of_a_cond_of_a_batch_and_of_none():
    def value(y0, solves, adjoint):
        return jax.lax.cond(solves, lambda y0: squared(y0, adjoint=adjoint), lambda y0: jnp.sum(y0**2), y0)

    def each(adjoint, y0, solves):
        mode = jax.jacfwd if adjoint == FORWARD else jax.grad
        return jax.lax.map(lambda args: mode(functools.partial(value, adjoint=adjoint))(*args), (y0, solves))

    def batch(adjoint, y0, solves):
        return jax.vmap(jax.grad(functools.partial(value, adjoint=adjoint)))(y0, solves)

    # The host's adjoint cannot be batched in a branch.
    where = (Y0[:2], np.array([True, False]))
    host, ours, batched = jax.jit(lambda *args: (each(FORWARD, *args), each(OURS, *args), batch(OURS, *args)))(*where)
    assert worst(ours, host) < 1e-12
    assert worst(batched, host) < 1e-12


def test_equinox_filtered_transforms_of_a_module():
    class Model(eqx.Module):
        field: Field
        solver: Any
        adjoint: Any
        name: str = "a leaf that is no array"

        def __call__(self, y0, end):
            x = inputs()._replace(field=self.field, y0=y0, times=jnp.stack([0.1, end, 0.05]))
            return solve(x, self.adjoint, self.solver, stepsize_controller=LOOSE, max_steps=128).ys[0]

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def loss(model, y0, ends):
        return jnp.sum(jnp.sin(eqx.filter_vmap(model)(y0, ends)))

    models = [Model(inputs().field, diffrax.Heun(), adjoint) for adjoint in (HOST, OURS)]
    (host, want), (ours, got) = (loss(model, jnp.array(Y0), jnp.array(ENDS)) for model in models)
    assert identical(ours, host)
    assert worst(got.field, want.field) < 1e-12


def test_a_training_step_that_donates_its_buffers():
    @functools.partial(jax.jit, static_argnums=1, donate_argnums=0)
    def train(field, adjoint):
        def loss(field):
            x = inputs()._replace(field=field)
            return jnp.sum(solve(x, adjoint, diffrax.Heun(), stepsize_controller=LOOSE, max_steps=128).ys ** 2)

        return jax.tree.map(lambda p, g: p - 0.05 * g, field, jax.grad(loss)(field))

    fields = []
    for adjoint in (HOST, OURS):
        field = first = jax.tree.map(jnp.array, inputs().field)
        for _ in range(3):
            field = train(field, adjoint)
        assert first.matrix.is_deleted()
        fields.append(field)
    assert worst(fields[1], fields[0]) < 1e-11


# By default with no policy, in a scan, beside the gradients.
@pytest.mark.full
def test_under_checkpoint_with_a_policy_that_saves_nothing():
    def gradient(adjoint, y0):
        policy = jax.checkpoint_policies.nothing_saveable
        return jax.grad(jax.checkpoint(functools.partial(squared, adjoint=adjoint), policy=policy))(y0)

    host, ours = compared(gradient, Y0[0])
    assert worst(ours, host) < 1e-12


def test_a_pull_back_may_be_called_again():
    value, pull = jax.vjp(lambda y0: final(y0, adjoint=FEW).ys, jnp.array(Y0[0]))
    once, again = pull(jnp.ones_like(value)), pull(jnp.ones_like(value))
    assert identical(again, once)


@pytest.mark.full
@pytest.mark.parametrize("ours", [FEW, AdaptiveCheckpointAdjoint(checkpoints=3, graph="stage")], ids=str)
def test_a_hessian_with_few_checkpoints(ours):
    def hessian(adjoint, x):
        def value(x):
            saveat = diffrax.SaveAt(ts=jnp.array([0.5, 1.1]), t1=True)
            return jnp.sum(
                jnp.sin(solve(x, adjoint, diffrax.Heun(), stepsize_controller=LOOSE, max_steps=32, saveat=saveat).ys)
            )

        return jax.hessian(value)(x)

    x = inputs()._replace(times=jnp.array([0.1, 1.3, 0.8]))
    want, got = compared(hessian, x, adjoints=(diffrax.DirectAdjoint(), ours))
    assert worst(got, want) < 1e-12


def test_a_field_that_is_no_number_somewhere():
    def gradient(adjoint, y0):
        def value(y0, rate):
            # Real until the state has fallen to zero.
            terms = diffrax.ODETerm(lambda t, y, rate: -rate * jnp.sqrt(y))
            how: Any = {"saveat": diffrax.SaveAt(steps=True), "max_steps": 32, "throw": False, "adjoint": adjoint}
            solution = diffrax.diffeqsolve(terms, diffrax.Heun(), 0.0, 3.0, 0.4, y0, rate, **how)
            # The part that is known.
            return jnp.sum(solution.ys[:2]), (solution.ys, solution.stats, solution.result._value)

        return jax.grad(value, argnums=(0, 1), has_aux=True)(y0, 1.0)

    (want, host), (got, ours) = compared(gradient, np.array([1.0, 0.7]))
    assert identical(ours, host)
    assert np.any(np.isnan(host[0]))
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-12)


def test_a_progress_meter_prints_and_changes_nothing(capfd):
    def gradient(y0, meter):
        return jax.jit(jax.grad(lambda y0: squared(y0, progress_meter=meter)))(y0)

    y0 = jnp.array(Y0[0])
    silent = gradient(y0, diffrax.NoProgressMeter())
    capfd.readouterr()
    told = gradient(y0, diffrax.TextProgressMeter(minimum_increase=0.2))
    jax.effects_barrier()
    assert identical(told, silent)
    printed = capfd.readouterr().out.split()
    assert printed[0] == "0.00%"
    assert printed[-1] == "100.00%"


DEVICES = """
import functools, inspect, sys, warnings
import diffrax, jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from steptape_helpers.jax_solves import HOST, OURS, worst

warnings.simplefilter("ignore", DeprecationWarning)
jax.config.update("jax_enable_x64", True)
assert jax.device_count() == 8
try:
    shard_map = jax.shard_map
except AttributeError:
    from jax.experimental.shard_map import shard_map

def value(y0, rate, dt0, adjoint):
    terms = diffrax.ODETerm(lambda t, y, rate: jnp.sin(3 * t) - rate * jnp.tanh(y))
    how = {"max_steps": 64, "adjoint": adjoint}
    return jnp.sum(diffrax.diffeqsolve(terms, diffrax.Heun(), 0.0, 1.2, dt0, y0, rate, **how).ys ** 2)

def batch(y0, rate, dt0, adjoint=OURS):
    each = jax.vmap(functools.partial(value, adjoint=adjoint), in_axes=(0, None, 0))
    return jax.value_and_grad(lambda *args: jnp.sum(each(*args)), argnums=(0, 1))(y0, rate, dt0)

def total(values, by_y0, by_rate):
    return jnp.sum(values), by_y0.reshape(16, 2), jnp.sum(by_rate)

y0 = np.linspace(-1, 1, 32).reshape(16, 2)
# Some devices take ten times as many steps as others.
dt0 = np.geomspace(0.02, 0.4, 16)
rate = np.array(0.7)
mesh = Mesh(np.array(jax.devices()), ("batch",))
split, whole = PartitionSpec("batch"), PartitionSpec()

def sharded(adjoint):
    put = functools.partial(jax.device_put, device=NamedSharding(mesh, split))
    values, (by_y0, by_rate) = jax.jit(functools.partial(batch, adjoint=adjoint))(put(y0), rate, put(dt0))
    assert len(by_y0.sharding.device_set) == 8
    return total(values, by_y0, by_rate)

def mapped(adjoint):
    def local(y0, rate, dt0):
        value, (by_y0, by_rate) = batch(y0, rate, dt0, adjoint)
        return jax.lax.psum(value, "batch"), by_y0, jax.lax.psum(by_rate, "batch")

    # The errors that diffrax raises in a solve do not pass the check, with any adjoint.
    unchecked = {name: False for name in ("check_vma", "check_rep") if name in inspect.signature(shard_map).parameters}
    places = {"in_specs": (split, whole, split), "out_specs": (whole, split, whole)}
    return total(*jax.jit(shard_map(local, mesh=mesh, **places, **unchecked))(y0, rate, dt0))

def parallel(adjoint):
    run = jax.pmap(functools.partial(batch, adjoint=adjoint), in_axes=(0, None, 0))
    values, (by_y0, by_rate) = run(y0.reshape(8, 2, 2), rate, dt0.reshape(8, 2))
    return total(values, by_y0, by_rate)

values, by = jax.jit(functools.partial(batch, adjoint=HOST))(y0, rate, dt0)
host = total(values, *by)
run = {run.__name__: run for run in (sharded, mapped, parallel)}[sys.argv[1]]
print(worst(run(OURS), host) < 1e-12)
"""


@pytest.mark.by_default(where=lambda way: way == "mapped")
@pytest.mark.parametrize("way", ["sharded", "mapped", "parallel"])
def test_a_batch_on_eight_devices(way):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    devices = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    helpers = Path(steptape_helpers.jax_solves.__file__).parents[1]
    paths = {"PYTHONPATH": os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(helpers)])}
    environment = {**os.environ, **devices, **paths}
    run = subprocess.run([sys.executable, "-c", DEVICES, way], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "True\n"


@pytest.mark.parametrize("adjoint", [OURS, QuadratureAdjoint()], ids=["aca", "quadrature"])
def test_a_parameter_that_all_devices_share(adjoint):
    """-sum(y0 exp(-p)), with y0 over the devices of a mesh and p from outside of it."""
    if hasattr(jax, "shard_map"):
        over: Any = functools.partial(jax.shard_map, check_vma=False)
    else:
        over = functools.partial(importlib.import_module("jax.experimental.shard_map").shard_map, check_rep=False)

    def end(y0, p):
        term = diffrax.ODETerm(lambda t, y, p: -p * y)
        how: Any = {"adjoint": adjoint, "stepsize_controller": diffrax.PIDController(rtol=1e-5, atol=1e-5)}
        return diffrax.diffeqsolve(term, diffrax.Heun(), 0.0, 1.0, 0.1, y0, p, **how).ys[0]

    mesh, spec = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("i",)), jax.sharding.PartitionSpec
    each = over(jax.vmap(end, (0, None)), mesh=mesh, in_specs=(spec("i"), spec()), out_specs=spec("i"))
    got = jax.jit(jax.grad(lambda p: jnp.sum(each(jnp.arange(1.0, 5.0), p))))(1.3)
    np.testing.assert_allclose(got, -10 * np.exp(-1.3), rtol=1e-3)
