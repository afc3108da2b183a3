"""AdaptiveCheckpointAdjoint on random systems: what holds for every one of them. One compiled function per solver."""

import functools
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from steptape.jax import AdaptiveCheckpointAdjoint
from steptape.shared_tests.oracles.distance import largest
from steptape_helpers.jax_solves import FORWARD, OURS, identical, x64

DIM = 3
SOLVERS = {"Tsit5": diffrax.Tsit5(), "Kvaerno3": diffrax.Kvaerno3()}
# The iterations of an implicit solver are replayed to rounding, magnified by the Jacobian's condition.
SAME = {"Tsit5": 1e-12, "Kvaerno3": 1e-10}
FRACTIONS = np.array([0.4, 1.0])

repeatably = settings(derandomize=True, deadline=None, database=None, max_examples=30)
each_solver = pytest.mark.parametrize("solver", ["Tsit5", pytest.param("Kvaerno3", marks=pytest.mark.full)])


@pytest.fixture(autouse=True, scope="module")
def _x64():
    with x64():
        yield


class System(NamedTuple):
    """A polynomial system, where it starts, and its times t0, t1, dt0. The cubic damps."""

    matrix: Any
    quadratic: Any
    cubic: Any
    y0: Any
    times: Any


def numbers(low, high, shape=()):
    return arrays(np.float64, shape, elements=st.floats(low, high, allow_subnormal=False), fill=st.nothing())


@st.composite
def systems(draw, linear=False):
    t0, span, dt0 = draw(numbers(-1, 1)), draw(numbers(0.02, 2.0)), draw(numbers(0.01, 0.5))
    # A damped system explodes backwards.
    sign = draw(st.sampled_from([-1, 1])) if linear else 1
    quadratic, cubic = np.zeros(DIM), np.zeros(())
    if not linear:
        quadratic, cubic = draw(numbers(-1, 1, DIM)), draw(numbers(0.2, 1))
    times = np.array([t0, t0 + sign * span, sign * dt0])
    return System(draw(numbers(-1.5, 1.5, (DIM, DIM))), quadratic, cubic, draw(numbers(-1, 1, DIM)), times)


cotangents = numbers(-1, 1, (len(FRACTIONS), DIM))


def field(t, y, system):
    return system.matrix @ y + system.quadratic * y * jnp.roll(y, 1) - system.cubic * y**3


def pulled(solver, adjoint, system, tolerance, cotangent):
    """The states at the fractions, the numbers of steps, and the cotangent pulled back to the system."""

    def fun(system):
        t0, t1, dt0 = system.times
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            SOLVERS[solver],
            t0,
            t1,
            dt0,
            system.y0,
            system,
            saveat=diffrax.SaveAt(ts=jnp.where(FRACTIONS == 1, t1, t0 + FRACTIONS * (t1 - t0))),
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
            max_steps=256,
            throw=False,
            adjoint=adjoint,
        )
        okay = solution.result == diffrax.RESULTS.successful
        return jnp.sum(cotangent * solution.ys), (solution.ys, solution.stats["num_accepted_steps"], okay)

    if adjoint != FORWARD:
        return jax.grad(fun, has_aux=True)(system)[::-1]
    # The host's reverse mode takes twice as long to trace; its forward mode may round a solution otherwise.
    return fun(system)[1], jax.jacfwd(lambda system: fun(system)[0])(system)


@functools.cache
def compiled(solver):
    """By the host, by ours, and, where no iteration makes the program three times as long, with few checkpoints."""
    adjoints = (FORWARD, OURS, *([AdaptiveCheckpointAdjoint(checkpoints=3)] if solver == "Tsit5" else []))

    @jax.jit
    def run(system, tolerance, cotangent):
        return [pulled(solver, adjoint, system, tolerance, cotangent) for adjoint in adjoints]

    return run


@functools.cache
def compiled_batch(solver):
    @jax.jit
    def run(systems, tolerance, cotangents):
        def each(adjoint):
            return jax.vmap(lambda s, c: pulled(solver, adjoint, s, tolerance, c))(systems, cotangents)

        return each(FORWARD), each(OURS)

    return run


def distance(got, want):
    """The largest difference of two gradients, relative to the largest entry."""
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    assert all(np.all(np.isfinite(x)) for x in want)
    return largest(got, want, floor=1e-3)


@each_solver
@repeatably
@given(systems(), cotangents)
def test_solution_and_gradient_are_the_hosts_with_all_states_and_with_few(solver, system, cotangent):
    (host, want), *found = compiled(solver)(system, 1e-4, cotangent)
    assert host[-1]
    for ours, got in found:
        assert identical(ours, host)
        assert distance(got, want) < SAME[solver]


@each_solver
@repeatably
@given(systems(linear=True), cotangents)
def test_a_linear_system_has_the_gradient_of_its_closed_form(solver, system, cotangent):
    tolerance = 1e-9 if solver == "Tsit5" else 1e-6
    # The controller sees what the state does: at rest it lets the sensitivities go by in large steps.
    system = system._replace(y0=np.where(np.abs(system.y0) < 0.1, 1.0, system.y0))
    _, ((ys, _, okay), got), *_ = compiled(solver)(system, tolerance, cotangent)
    assert okay
    span = system.times[1] - system.times[0]
    frechet = functools.partial(scipy.linalg.expm_frechet, compute_expm=False)
    by_y0, by_t1, by_matrix = np.zeros(DIM), 0.0, np.zeros((DIM, DIM))
    for fraction, y, c in zip(FRACTIONS, ys, cotangent, strict=True):
        flow = scipy.linalg.expm(fraction * span * system.matrix)
        np.testing.assert_allclose(y, flow @ system.y0, rtol=0, atol=100 * tolerance * np.exp(3))
        by_y0 += flow.T @ c
        by_t1 += fraction * c @ system.matrix @ flow @ system.y0
        # The Fréchet derivative of expm, transposed, at the outer product of the cotangent and y0.
        outer = np.outer(c, system.y0)
        by_matrix += fraction * span * frechet(fraction * span * system.matrix.T, outer)
    found = (got.y0, got.times[0], got.times[1], got.matrix)
    assert distance(found, (by_y0, -by_t1, by_t1, by_matrix)) < (1e-5 if solver == "Tsit5" else 1e-2)


@each_solver
@repeatably
@given(systems(), cotangents, cotangents, numbers(-2, 2, 2))
def test_the_gradient_is_linear_in_the_cotangent(solver, system, first, second, factors):
    a, b = factors
    one, two, both = (compiled(solver)(system, 1e-4, c)[1][1] for c in (first, second, a * first + b * second))
    combined = jax.tree.map(lambda x, y: a * x + b * y, one, two)
    scale = jax.tree.map(lambda x, y: np.maximum(np.abs(x), np.abs(y)), one, two)
    largest = max(np.max(x) for x in jax.tree.leaves(scale))
    assert all(
        np.max(np.abs(x - y)) <= 1e-12 * max(largest, 1e-3)
        for x, y in zip(jax.tree.leaves(both), jax.tree.leaves(combined), strict=True)
    )


@repeatably
@given(st.lists(st.tuples(systems(), cotangents), min_size=4, max_size=4))
def test_a_batch_is_a_loop_over_its_elements(elements):
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *elements)
    (host, want), (ours, got) = compiled_batch("Tsit5")(batch[0], 1e-4, batch[1])
    assert identical(ours, host)
    assert distance(got, want) < 1e-12
    each = [compiled("Tsit5")(system, 1e-4, cotangent)[1] for system, cotangent in elements]
    looped = jax.tree.map(lambda *leaves: np.stack(leaves), *each)
    assert identical(ours[1], looped[0][1])
    # Batched, the field's last bits differ, and the controller magnifies them by the inverse of the tolerance.
    assert distance(got, looped[1]) < 1e-9
