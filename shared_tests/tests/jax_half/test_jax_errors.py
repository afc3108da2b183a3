"""What AdaptiveCheckpointAdjoint refuses, when, and in which words."""

import dataclasses
import importlib

import diffrax
import jax
import jax.numpy as jnp
import pytest

from steptape import UnsupportedError, UnsupportedHostVersion
from steptape_helpers.jax_solves import HOST, OURS, inputs, solve, worst, x64

FORWARD = diffrax.ForwardMode()


@pytest.fixture(autouse=True)
def _x64():
    with x64():
        yield


def _final(y0, adjoint=OURS, **kwargs):
    return jnp.sum(solve(inputs()._replace(y0=y0), adjoint, **kwargs).ys ** 2)


def test_an_unbounded_solve_runs_and_only_its_gradient_asks_for_a_number_of_checkpoints():
    y0 = inputs().y0
    ours, host = jax.jit(lambda y0: [_final(y0, adjoint, max_steps=None) for adjoint in (OURS, HOST)])(y0)
    assert ours == host
    with pytest.raises(UnsupportedError, match=r"with `max_steps=None` and `checkpoints=None`.*\(checkpoints=k\)"):
        jax.grad(lambda y0: _final(y0, max_steps=None))(y0)
    unaffected = jax.grad(lambda y0: jnp.sum(y0) + jax.lax.stop_gradient(_final(y0, max_steps=None)))
    assert jnp.array_equal(jax.jit(unaffected)(y0), jnp.ones_like(y0))
    ours, host = pushed(lambda y0, adjoint: _final(y0, adjoint, max_steps=None), y0)
    assert ours == host


def pushed(final, y0):
    """In forward mode, by ours and by the host's."""
    by = [lambda y0, a=a: jax.jvp(lambda y0: final(y0, a), (y0,), (y0,)) for a in (OURS, FORWARD)]
    return jax.jit(lambda y0: [push(y0) for push in by])(y0)


def test_noise_that_cannot_be_seen_twice_is_refused_in_reverse_mode_alone():
    path = diffrax.UnsafeBrownianPath((2,), jax.random.key(0))
    noise = diffrax.ControlTerm(lambda t, y, args: jnp.diag(y), path)

    def final(y0, adjoint=OURS):
        return jnp.sum(diffrax.diffeqsolve(noise, diffrax.Heun(), 0.0, 1.0, 0.1, y0, adjoint=adjoint).ys)

    assert jnp.isfinite(final(jnp.ones(2)))
    with pytest.raises(UnsupportedError, match=r"UnsafeBrownianPath.*Use `diffrax\.VirtualBrownianTree`"):
        jax.grad(final)(jnp.ones(2))
    assert worst(*pushed(final, jnp.ones(2))) < 1e-12


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
