"""Call sites that name no adjoint: diffrax's own diffeqsolve after install(default=...)."""

import functools
import inspect
import sys
import threading
import types

import diffrax
import jax
import jax.numpy as jnp
import pytest

from steptape import HostChangedError, OptionError, UnsupportedError
from steptape.compat import _diffrax as host
from steptape.jax import AdaptiveCheckpointAdjoint, QuadratureAdjoint, install
from steptape.shared_tests.oracles.distance import distance
from steptape_helpers.jax_solves import x64

ACA, QUADRATURE = AdaptiveCheckpointAdjoint(), QuadratureAdjoint()


@pytest.fixture(autouse=True)
def _nothing_is_left_behind():
    with x64():
        yield
    assert diffrax.diffeqsolve is host.diffeqsolve


def seen(**call):
    """The adjoint that diffrax's loop is run by."""
    found = []

    class Watching(diffrax.Tsit5):
        def init(self, *args):
            frame = sys._getframe()
            while "adjoint" not in frame.f_locals:
                frame = frame.f_back
            found.append(frame.f_locals["adjoint"])
            return super().init(*args)

    diffrax.diffeqsolve(diffrax.ODETerm(lambda t, y, args: -y), Watching(), 0.0, 1.0, 0.1, 1.0, **call)
    return found[0]


def pendulum(t, y, rate):
    return jnp.stack([y[1], -rate * jnp.sin(y[0])])


def solved(rate, **call):
    controller = diffrax.PIDController(rtol=1e-5, atol=1e-5)
    term, y0 = diffrax.ODETerm(pendulum), jnp.array([1.0, 0.0])
    sol = diffrax.diffeqsolve(
        term, diffrax.Tsit5(), 0.0, 2.0, 0.1, y0, rate, stepsize_controller=controller, max_steps=64, **call
    )
    return sol.ys[-1]


def gradients(**call):
    return jax.jit(jax.jacrev(functools.partial(solved, **call)))(jnp.array(1.3))


@functools.cache
def by_direct():
    return gradients(adjoint=diffrax.DirectAdjoint())


def test_a_call_that_names_no_adjoint_takes_the_default():
    solution, expected = solved(1.3), by_direct()
    with install(default=ACA):
        assert seen() == ACA
        assert jnp.array_equal(solved(1.3), solution)
        assert distance([gradients()], [expected]) <= 1e-12


def test_a_call_that_names_one_keeps_it():
    named = diffrax.RecursiveCheckpointAdjoint(checkpoints=3)
    with install(default=ACA):
        assert seen(adjoint=named) == named
        assert seen(adjoint=QUADRATURE) == QUADRATURE


@pytest.mark.parametrize("name", ["RecursiveCheckpointAdjoint", "DirectAdjoint", "BacksolveAdjoint"])
def test_with_override_an_adjoint_of_diffrax_s_gives_way(name):
    expected = by_direct()
    with install(default=ACA, override=True):
        assert seen(adjoint=getattr(diffrax, name)()) == ACA
        assert distance([gradients(adjoint=getattr(diffrax, name)())], [expected]) <= 1e-12


class Own(diffrax.DirectAdjoint):
    """A caller's own adjoint."""


@pytest.mark.parametrize("named", [diffrax.ForwardMode(), QUADRATURE, Own()], ids=type)
def test_with_override_any_other_adjoint_stays(named):
    with install(default=ACA, override=True):
        assert seen(adjoint=named) == named


def test_names_taken_before_and_after(monkeypatch):
    library = types.ModuleType("a_library")
    monkeypatch.setitem(sys.modules, "a_library", library)
    exec("from diffrax import diffeqsolve as before", vars(library))
    with install(default=ACA):
        exec("from diffrax import diffeqsolve as after", vars(library))
        assert library.before is library.after is diffrax.diffeqsolve
    assert library.before is library.after is host.diffeqsolve


def test_a_wrapper_can_read_the_signature():
    """As diffraxtra does, by ``__wrapped__``."""
    expected = inspect.signature(host.diffeqsolve.__wrapped__)
    with install(default=ACA):
        assert inspect.signature(diffrax.diffeqsolve.__wrapped__) == expected
        assert inspect.signature(diffrax.diffeqsolve) == expected
        assert diffrax.diffeqsolve.__doc__ == host.diffeqsolve.__doc__


def test_the_latest_default_still_active_counts():
    other = AdaptiveCheckpointAdjoint(checkpoints=3)
    outer, inner = install(default=ACA), install(default=other, override=True)
    assert seen(adjoint=diffrax.DirectAdjoint()) == other
    outer.uninstall()
    outer.uninstall()
    assert seen() == other
    with install(default=QUADRATURE):
        assert seen() == QUADRATURE
    inner.uninstall()
    assert diffrax.diffeqsolve is host.diffeqsolve


def test_what_was_compiled_before_keeps_its_program_until_it_is_traced_anew():
    adjoints = []

    @jax.jit
    def compiled(rate):
        adjoints.append(seen())
        return rate

    compiled(1.0)
    with install(default=ACA):
        compiled(1.0)
        assert len(adjoints) == 1
        jax.clear_caches()
        compiled(1.0)
    assert adjoints[1] == ACA


def test_diffrax_s_continuous_adjoint_solves_backward_with_its_own():
    expected = gradients(adjoint=diffrax.BacksolveAdjoint())
    with install(default=ACA):
        assert jnp.array_equal(gradients(adjoint=diffrax.BacksolveAdjoint()), expected)


def test_a_solve_that_cannot_be_differentiated_runs():
    def end(y0):
        term = diffrax.ODETerm(lambda t, y, args: -y)
        return diffrax.diffeqsolve(term, diffrax.Euler(), 0.0, 1.0, 0.1, y0, max_steps=None, **call).ys[0]

    call = {}
    with install(default=ACA):
        assert jnp.isfinite(end(1.0))
        with pytest.raises(UnsupportedError, match=r"max_steps=None.*or `max_steps=\.\.\.`"):
            jax.grad(end)(1.0)
        call = {"adjoint": diffrax.RecursiveCheckpointAdjoint(checkpoints=16)}
        assert jnp.isfinite(jax.grad(end)(1.0))


def test_a_default_that_is_no_adjoint():
    with pytest.raises(OptionError, match=r"install\(default='aca'\).*must be an adjoint"):
        install(default="aca")


def test_someone_else_has_replaced_it(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(diffrax, "diffeqsolve", lambda *args: None)
        with pytest.raises(HostChangedError, match=r"(?s)diffrax.diffeqsolve is .*Call install\(\) before"):
            install(default=ACA)
    installation = install(default=ACA)
    with monkeypatch.context() as patch:
        patch.setattr(diffrax, "diffeqsolve", lambda *args: None)
        with pytest.raises(HostChangedError, match="Undo that first"):
            installation.uninstall()
    installation.uninstall()


def test_an_error_inside_the_block_uninstalls():
    with pytest.raises(ZeroDivisionError), install(default=ACA):
        raise ZeroDivisionError


def test_threads_install_and_uninstall():
    errors = []

    def work():
        try:
            for _ in range(20):
                with install(default=ACA):
                    assert diffrax.diffeqsolve is not host.diffeqsolve
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
