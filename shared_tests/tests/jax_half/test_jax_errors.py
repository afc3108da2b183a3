"""What AdaptiveCheckpointAdjoint refuses, when, and in which words."""

import dataclasses
import importlib
import subprocess
import sys

import diffrax
import jax
import jax.numpy as jnp
import pytest

from steptape import UnsupportedError, UnsupportedHostVersion
from steptape_helpers.jax_solves import HOST, OURS, inputs, solve, worst, x64


@pytest.fixture(autouse=True)
def _x64():
    with x64():
        yield


def _final(y0, adjoint=OURS, **kwargs):
    return jnp.sum(solve(inputs()._replace(y0=y0), adjoint, **kwargs).ys ** 2)


def test_an_unbounded_solve_runs_and_only_its_gradient_is_refused():
    y0 = inputs().y0
    assert _final(y0, max_steps=None) == _final(y0, HOST, max_steps=None)
    with pytest.raises(UnsupportedError, match=r"with `max_steps=None`.*Pass `max_steps=\.\.\.`"):
        jax.grad(lambda y0: _final(y0, max_steps=None))(y0)
    unaffected = jax.grad(lambda y0: jnp.sum(y0) + jax.lax.stop_gradient(_final(y0, max_steps=None)))
    assert jnp.array_equal(unaffected(y0), jnp.ones_like(y0))


def test_noise_that_cannot_be_seen_twice_is_refused():
    path = diffrax.UnsafeBrownianPath((2,), jax.random.key(0))
    noise = diffrax.ControlTerm(lambda t, y, args: jnp.diag(y), path)

    def final(y0):
        return jnp.sum(diffrax.diffeqsolve(noise, diffrax.Heun(), 0.0, 1.0, 0.1, y0, adjoint=OURS).ys)

    assert jnp.isfinite(final(jnp.ones(2)))
    with pytest.raises(UnsupportedError, match=r"UnsafeBrownianPath.*Use `diffrax\.VirtualBrownianTree`"):
        jax.grad(final)(jnp.ones(2))


def test_reverse_over_reverse_is_refused_also_in_a_batch_and_the_way_out_works():
    y0 = inputs().y0

    def curvature(adjoint, grad):
        return grad(lambda y: jnp.sum(grad(lambda y: _final(y, adjoint, max_steps=64))(y) ** 2))(y0)

    for grad in (jax.grad, jax.jacrev):
        with pytest.raises(UnsupportedError, match=r"Reverse mode over the reverse mode.*diffrax\.DirectAdjoint"):
            curvature(OURS, grad)
    assert jnp.all(jnp.isfinite(curvature(diffrax.DirectAdjoint(), jax.grad)))


def _push(y):
    return jax.jvp(_final, (y,), (jnp.ones_like(y),))[1]


FORWARD = {
    "jvp": _push,
    "jvp-of-jit": lambda y: jax.jvp(jax.jit(_final), (y,), (y,)),
    "jvp-in-jit": jax.jit(_push),
    "jvp-of-vmap": lambda y: jax.jvp(jax.vmap(_final), (y[None],), (y[None],)),
    "jvp-in-vmap": lambda y: jax.vmap(_push)(y[None]),
    "jvp-of-checkpoint": lambda y: jax.jvp(jax.checkpoint(_final), (y,), (y,)),
    "jvp-of-scan": lambda y: jax.jvp(
        lambda y: jax.lax.scan(lambda c, _: (_final(c) * c, None), y, length=2), (y,), (y,)
    ),
    "grad-of-jvp": jax.grad(_push),
    "jacfwd": jax.jacfwd(_final),
    "jacfwd-in-jit": jax.jit(jax.jacfwd(_final)),
    "linearize": lambda y: jax.linearize(_final, y)[1](y),
    "unbounded": lambda y: jax.jvp(lambda y: _final(y, max_steps=None), (y,), (y,)),
}


@pytest.mark.parametrize("push", FORWARD.values(), ids=FORWARD)
def test_forward_mode_is_refused(push):
    with pytest.raises(
        UnsupportedError, match=r"Forward mode.*Use `adjoint=diffrax\.ForwardMode\(\)`, or .*DirectAdjoint"
    ):
        push(inputs().y0)


def test_the_ways_out_of_forward_mode_work():
    y0 = inputs().y0

    def pushed(way):
        return jax.jvp(lambda y: _final(y, way), (y0,), (y0,))[1]

    assert worst(pushed(diffrax.ForwardMode()), pushed(diffrax.DirectAdjoint())) < 1e-12


def test_forward_over_reverse_is_refused_where_the_hosts_step_is_replayed_and_the_way_out_works():
    def curvature(solver):
        # A controller that has every try replayed: time moves.
        def end(t1):
            times = inputs().times.at[1].set(t1)
            how = {"max_steps": 32, "stepsize_controller": diffrax.PIDController(rtol=0.1, atol=0.1, dtmax=0.2)}
            return jnp.sum(solve(inputs()._replace(times=times), OURS, solver, **how).ys)

        return jax.jvp(jax.grad(end), (1.0,), (1.0,))[1]

    with pytest.raises(
        UnsupportedError, match=r"Forward mode over the reverse mode.*diffrax\.DirectAdjoint.*scan_kind=\"bounded\""
    ):
        curvature(diffrax.Heun())
    assert jnp.isfinite(curvature(diffrax.Heun(scan_kind="bounded")))


@pytest.mark.parametrize(
    ("module", "name", "lacking"),
    [
        ("diffrax._integrate", "loop", "outer_while_loop"),
        ("diffrax._integrate", "State", "num_accepted_steps"),
        ("equinox.internal._loop.common", "common_rewrite", "common_rewrite"),
    ],
)
def test_a_host_without_what_we_rely_on_is_named_with_its_version(monkeypatch, module, name, lacking):
    host = module.partition(".")[0]
    compat = importlib.import_module(f"steptape.compat._{host}")
    with monkeypatch.context() as patch:
        if name == "loop":
            patch.setattr(f"{module}.{name}", lambda *, terms: terms)
        elif name == "State":
            patch.setattr(f"{module}.{name}", dataclasses.make_dataclass("State", ["y", "tprev"]))
        else:
            patch.delattr(f"{module}.{name}")
        with pytest.raises(UnsupportedHostVersion, match=rf"(?s){lacking}.*{host} \d.* is installed.*pip install"):
            importlib.reload(compat)
    importlib.reload(compat)


def test_steptape_jax_imports_no_torch():
    code = "import sys, steptape.jax; print(sorted({'torch', 'torchdiffeq', 'torchsde'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
