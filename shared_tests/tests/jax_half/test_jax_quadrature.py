"""QuadratureAdjoint against closed forms, stored references and tight tolerances; its cost; what it refuses."""

import functools
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest

from steptape import OptionError, UnsupportedError
from steptape.jax import QuadratureAdjoint, SeminormAdjoint
from steptape.shared_tests.oracles.distance import distance, euclidean
from steptape.shared_tests.problems.make_references import load_references
from steptape.shared_tests.problems.problems import PROBLEMS
from steptape_helpers.jax_solves import (
    FORWARD,
    HOST,
    by_host,
    compiled,
    forward,
    identical,
    inputs,
    solve,
    value_and_grad,
    worst,
    x64,
)

OURS = QuadratureAdjoint()
TIGHT = diffrax.PIDController(rtol=1e-10, atol=1e-10)


@pytest.fixture(autouse=True)
def _x64():
    with x64():
        yield


@pytest.mark.by_default(where=lambda adjoint: adjoint == OURS)
@pytest.mark.parametrize("adjoint", [OURS, QuadratureAdjoint(nodes=3)], ids=["stages", "nodes"])
def test_exponential_growth_has_the_gradient_of_its_closed_form(adjoint):
    def final_square(z0, alpha, t0, t1):
        term = diffrax.ODETerm(lambda t, z, alpha: alpha * z)
        solution = diffrax.diffeqsolve(
            term, diffrax.Dopri5(), t0, t1, 0.1, z0, alpha, stepsize_controller=TIGHT, adjoint=adjoint
        )
        return solution.ys[0] ** 2

    z0, alpha, t0, t1 = 1.5, 0.8, 0.25, 2.0
    got = jax.jit(jax.grad(final_square, argnums=(0, 1, 2, 3)))(z0, alpha, t0, t1)
    growth = np.exp(2 * alpha * (t1 - t0))
    want = (2 * z0 * growth, 2 * (t1 - t0) * z0**2 * growth, -2 * alpha * z0**2 * growth, 2 * alpha * z0**2 * growth)
    np.testing.assert_allclose(got, want, rtol=3e-9)


@functools.cache
def _compiled(name):
    """The gradient of a shared problem for y0, parameters and times, given a tolerance."""
    problem = PROBLEMS[name]

    def run(inputs, tolerance):
        y0, params, times = inputs
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(problem.field),
            diffrax.Dopri5(),
            times[0],
            times[-1],
            problem.first_step,
            y0,
            params,
            saveat=diffrax.SaveAt(ts=times[1:]),
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
            adjoint=OURS,
        )
        return problem.loss(solution.ys)

    return jax.jit(jax.grad(run))


def _error(name, tolerance):
    """The relative error of the gradient, the largest of its three parts."""
    problem, want = PROBLEMS[name], load_references()[name]["gradient"]
    parts = ("y0", "params", "times")
    got = _compiled(name)(tuple(jnp.array(getattr(problem, part)) for part in parts), tolerance)
    return distance(got, [want[part] for part in parts], euclidean)


# Times the tolerance: by how much the solution itself, and with it any gradient, is off.
AMPLIFICATION = {
    "exponential": 100,
    "rotation": 10,
    "harmonic": 50,
    "lotka_volterra": 100,
    "van_der_pol_mild": 30,
    "van_der_pol_stiff": 10,
    "pendulum": 100,
    "mlp": 10,
}


@pytest.mark.by_default(where=lambda name: name in ("van_der_pol_stiff", "mlp"))
@pytest.mark.parametrize("name", AMPLIFICATION)
def test_the_gradient_is_right_to_the_tolerance_and_follows_it(name):
    errors = [_error(name, tolerance) for tolerance in (1e-4, 1e-6, 1e-8)]
    assert errors[1] < 1e-6 * AMPLIFICATION[name]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]


@pytest.mark.full
def test_three_bodies_in_chaos_have_a_gradient():
    assert _error("three_body", 1e-9) < 5e-6


AT_ALL = {"t0": True, "ts": [0.1, 0.5, 0.5, 2.0, 2.9], "t1": True}


@pytest.mark.by_default(where=lambda adjoint: adjoint == OURS)
@pytest.mark.parametrize(
    ("adjoint", "saveat", "backward"),
    [(OURS, {"t0": True}, False), (OURS, AT_ALL, True), (QuadratureAdjoint(nodes=3), AT_ALL, False)],
    ids=["t0", "all, some twice, backward in time", "all, some twice, by nodes"],
)
def test_the_solution_is_the_hosts_and_its_gradient_that_of_a_tight_solve(adjoint, saveat, backward):
    x = inputs()
    if backward:
        x = x._replace(times=-x.times)
        saveat = {**saveat, **({"ts": [-t for t in saveat["ts"]]} if "ts" in saveat else {})}
    saveat = diffrax.SaveAt(**saveat)
    how = {"saveat": saveat, "stepsize_controller": TIGHT, "max_steps": 1024}
    (_, host), want = by_host(lambda x, host: solve(x, host, **how))(x)
    want = want._replace(times=want.times[:2])
    ours, _, got = value_and_grad(lambda x: solve(x, adjoint, **how), x)
    got = got._replace(times=got.times[:2])
    assert identical((ours.ts, ours.ys, ours.stats), (host.ts, host.ys, host.stats))
    # Where no step takes part, a gradient of zero.
    assert worst(got, want) < 1e-6 if saveat.subs.t1 else identical(got, want)


def test_output_times_move_and_time_may_run_backward():
    def final(times, adjoint):
        x = inputs()._replace(times=jnp.array([2.0, 0.3, -0.1]))
        solution = solve(x, adjoint, max_steps=1024, saveat=diffrax.SaveAt(ts=times), stepsize_controller=TIGHT)
        return jnp.sum(solution.ys[:, 0] ** 2) + jnp.sum(solution.ts**3)

    times = jnp.array([1.7, 1.1, 0.4])
    ways = ((jax.grad, OURS), (jax.jacfwd, FORWARD))
    got, want = (jax.jit(mode(functools.partial(final, adjoint=adjoint)))(times) for mode, adjoint in ways)
    assert worst(got, want) < 1e-6


# Of explicit ones that estimate their error other tests here have Dopri5, Tsit5 and, in a batch, Bosh3.
SOLVERS = {
    "Dopri8": diffrax.Dopri8(),
    "HalfSolver": diffrax.HalfSolver(diffrax.Bosh3()),
    "Kvaerno3, implicit": diffrax.Kvaerno3(),
}


@pytest.mark.by_default(where=lambda name: "implicit" in name)
@pytest.mark.parametrize("name", SOLVERS)
def test_any_solver_of_one_term_will_do(name):
    controller = diffrax.PIDController(rtol=1e-7, atol=1e-7)
    solver = SOLVERS[name]
    kwargs = {"stepsize_controller": controller, "saveat": diffrax.SaveAt(ts=[1.0, 2.9])}
    got = value_and_grad(lambda x: solve(x, OURS, solver, max_steps=8192, **kwargs), inputs())[2]
    assert worst(got._replace(times=0), _tight_reference()._replace(times=0)) < 2e-5


@functools.cache
def _tight_reference():
    kwargs = {"stepsize_controller": TIGHT, "saveat": diffrax.SaveAt(ts=[1.0, 2.9])}
    return by_host(lambda x, adjoint: solve(x, adjoint, max_steps=1024, **kwargs))(inputs())[1]


@functools.cache
def _tight_at_many_times():
    saveat = diffrax.SaveAt(ts=jnp.linspace(0.1, 2.9, 40))
    kwargs = {"stepsize_controller": TIGHT, "saveat": saveat, "max_steps": 1024}
    return by_host(lambda x, adjoint: solve(x, adjoint, **kwargs))(inputs())[1]


@pytest.mark.by_default(where=lambda solver: not isinstance(solver, diffrax.Heun))
@pytest.mark.parametrize("solver", [diffrax.Heun(), diffrax.ReversibleHeun()])
def test_constant_steps_stay_as_they_are_across_outputs(solver):
    saveat = diffrax.SaveAt(ts=jnp.linspace(0.1, 2.9, 40))
    kwargs = {"stepsize_controller": diffrax.ConstantStepSize(), "saveat": saveat, "max_steps": 4096}
    gradient = compiled(lambda x: solve(x, OURS, solver, **kwargs))

    def error(steps):
        (_, _), got = gradient(inputs()._replace(times=jnp.array([0.1, 2.9, 2.8 / steps])))
        return worst(got._replace(times=0), _tight_at_many_times()._replace(times=0))

    assert error(2000) < error(500) / 8 < 1e-3


@pytest.mark.by_default(where=lambda checkpoints: checkpoints == 1)
@pytest.mark.parametrize("checkpoints", [None, 1, 2])
def test_the_field_may_jump_where_the_controller_knows_of_it(checkpoints):
    # With blocks of one step, one of them begins at the jump.
    def final(y0, rate, adjoint):
        def field(t, y, rate):
            return jnp.where(t < 1, -rate, 2 * rate) * y

        clipped = diffrax.ClipStepSizeController(TIGHT, jump_ts=[1.0])
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field), diffrax.Dopri5(), 0, 2, 0.1, y0, rate, stepsize_controller=clipped, adjoint=adjoint
        ).ys[0]

    y0, rate = 1.3, 0.7
    adjoint = QuadratureAdjoint(checkpoints=checkpoints)
    got = jax.jit(jax.grad(functools.partial(final, adjoint=adjoint), argnums=(0, 1)))(y0, rate)
    np.testing.assert_allclose(got, (np.exp(rate), y0 * np.exp(rate)), rtol=1e-8)


# By default across a jump, and in a batch.
@pytest.mark.full
@pytest.mark.parametrize(
    ("solver", "tolerance"),
    [(diffrax.Dopri5(), 1e-9), (diffrax.HalfSolver(diffrax.Bosh3()), 1e-7)],
    ids=["Dopri5", "HalfSolver"],
)
def test_steps_taken_again_make_the_same_trajectory(solver, tolerance):
    kwargs = {
        "stepsize_controller": diffrax.PIDController(rtol=tolerance, atol=tolerance),
        "saveat": diffrax.SaveAt(ts=[1.0, 2.9]),
        "max_steps": 2048,
    }
    # Several blocks; more than the states before them.
    gradients = []
    for checkpoints in (30, 5):
        adjoint = QuadratureAdjoint(checkpoints=checkpoints)
        solution, _, grad = value_and_grad(lambda x, a=adjoint: solve(x, a, solver, **kwargs), inputs())
        gradients.append(grad._replace(times=grad.times[:2]))
    assert int(solution.stats["num_accepted_steps"]) > 5**2
    host = eqx.filter_jit(lambda x: solve(x, HOST, solver, **kwargs))(inputs())
    assert identical((solution.ys, solution.stats), (host.ys, host.stats))
    reference = _tight_reference()._replace(times=_tight_reference().times[:2])
    for grad in gradients:
        assert worst(grad, reference) < 200 * tolerance


def _held(adjoint, max_steps, size=5000):
    """The states' worth of memory that XLA sets aside for a gradient."""

    def final(y0):
        controller = diffrax.PIDController(rtol=1e-5, atol=1e-5)
        term = diffrax.ODETerm(lambda t, y, args: -y)
        solution = diffrax.diffeqsolve(
            term, diffrax.Dopri5(), 0, 1, 0.1, y0, stepsize_controller=controller, max_steps=max_steps, adjoint=adjoint
        )
        return jnp.sum(solution.ys**2)

    memory = jax.jit(jax.grad(final)).lower(jnp.ones(size)).compile().memory_analysis()
    return memory.temp_size_in_bytes / 8 / size


def test_what_is_held_is_as_documented():
    few, usual, many = _held(QuadratureAdjoint(checkpoints=8), 4096), _held(OURS, 4096), _held(OURS, 16384)
    at_hand = 60
    assert few < 8 * (7 + 2) + 8 + at_hand
    assert usual < 128 * (7 + 2) + 128 + at_hand
    assert many < 256 * (7 + 2) + 256 + at_hand
    # And what is freed by fewer checkpoints is what they hold.
    assert usual - few > 120 * 9


def _root_found(level):
    newton: Any = optimistix.Newton(1e-12, 1e-12)
    conditions = {
        "never": lambda t, y, args, **kwargs: y[0] - 99,
        "level": lambda t, y, args, **kwargs: y[0] - level * args * jnp.cos(t / 9),
        "late": lambda t, y, args, **kwargs: t > 2.3 + level,
    }
    return diffrax.Event(conditions, newton)


def _slow(level):
    newton: Any = optimistix.Newton(1e-12, 1e-12)
    return diffrax.Event(lambda t, y, args, terms, **kwargs: terms.vf(t, y, args)[0] - 5 * level, newton)


@pytest.mark.by_default(where=lambda event: event is _slow)
@pytest.mark.parametrize("event", [_root_found, _slow], ids=["of the state", "of the field"])
def test_the_time_of_a_root_moves_with_all_it_depends_on(event):
    def run(inputs, adjoint):
        x, level = inputs
        saveat = diffrax.SaveAt(ts=[0.1, 0.5, 1.7, 2.2, 2.8], t1=True)
        return solve(x, adjoint, event=event(level), saveat=saveat, stepsize_controller=TIGHT, max_steps=1024)

    by_ours, host_s = compiled(lambda i: run(i, OURS)), by_host(run)
    # So much of it that none is found.
    for level, found in ((0.2, True), (99.0, False)):
        given = (inputs(), jnp.array(level))
        ((_, ours), got), ((_, host), want) = by_ours(given), host_s(given)
        assert identical((ours.ts, ours.ys, ours.event_mask), (host.ts, host.ys, host.event_mask))
        assert (host.result == diffrax.RESULTS.event_occurred) == found
        got, want = ((x._replace(times=x.times[:2]), of_level) for x, of_level in (got, want))
        # diffrax solves for the root with the slope of the interpolant, of lower order than the solution.
        assert worst(got[0], want[0]) < 1e-5
        assert worst(got[1], want[1]) < 1e-5 if found else got[1] == want[1] == 0


def test_an_event_at_the_end_of_a_step_ends_the_solve_there():
    def final(y0, level, adjoint):
        def field(t, y, args):
            return -y

        event = diffrax.Event(lambda t, y, args, **kwargs: y < level)
        term, options = diffrax.ODETerm(field), {"stepsize_controller": TIGHT, "event": event, "adjoint": adjoint}
        solution = diffrax.diffeqsolve(term, diffrax.Dopri5(), 0, 9, 0.1, y0, **options)
        return solution.ys[0], solution.ts[0]

    @jax.jit
    def run(*inputs):
        ours = jax.value_and_grad(functools.partial(final, adjoint=OURS), argnums=(0, 1), has_aux=True)
        return ours(*inputs), final(*inputs, HOST)

    ((y, t), (g_y0, g_level)), (host_y, host_t) = run(2.0, 0.5)
    assert (y, t) == (host_y, host_t)
    assert t < 9
    np.testing.assert_allclose(g_y0, jnp.exp(-t), rtol=1e-9)
    assert g_level == 0


def test_the_scale_of_the_loss_does_not_matter():
    @jax.jit
    @jax.grad
    def gradient(y0, scale):
        return scale * jnp.sum(solve(inputs()._replace(y0=y0), OURS).ys ** 2)

    y0 = inputs().y0
    assert identical(gradient(y0, 2.0**-60) * 2.0**60, gradient(y0, 1.0))


@pytest.mark.by_default(where=lambda checkpoints: checkpoints is not None)
@pytest.mark.parametrize("checkpoints", [None, 5])
def test_a_batch_of_unequal_solves_is_its_elements(checkpoints):
    x = inputs()
    rates = jnp.array([0.1, 4.0])
    adjoint = QuadratureAdjoint(checkpoints=checkpoints)

    def final(y0, args):
        return jnp.sum(solve(x._replace(y0=y0, args=args), adjoint, diffrax.Bosh3(), max_steps=256).ys ** 2)

    run = jax.jit(jax.grad(final, argnums=(0, 1)))
    batched = jax.vmap(run, in_axes=(None, 0))(x.y0, rates)
    for i, rate in enumerate(rates):
        assert worst(tuple(g[i] for g in batched), run(x.y0, rate)) < 1e-12


def test_single_precision_and_trees():
    def final(y0, args, adjoint):
        def field(t, y, args):
            driven = -jnp.sin(args["rate"] * t) * y["b"] + jnp.sum(y["a"])
            return {"a": args["rate"] * y["b"][:2], "b": driven, "empty": y["empty"]}

        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            jnp.float32(0),
            jnp.float32(1),
            None,
            y0,
            args,
            stepsize_controller=diffrax.PIDController(rtol=1e-5, atol=1e-5),
            adjoint=adjoint,
        )
        return jnp.sum(solution.ys["a"] ** 2) + jnp.sum(solution.ys["b"])

    y0 = {"a": jnp.ones(2, jnp.float32), "b": jnp.arange(3, dtype=jnp.float32), "empty": jnp.zeros((0, 2), jnp.float32)}
    args = {"rate": jnp.float32(0.5), "unused": jnp.float32(2), "count": 3}
    got = eqx.filter_jit(eqx.filter_grad(lambda x: final(*x, OURS)))((y0, args))
    _, want = eqx.filter_jit(lambda x: forward(lambda adjoint: lambda x: (final(*x, adjoint), ()), x))((y0, args))
    assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(got))
    assert worst(got, want) < 1e-4


def test_what_the_field_closes_over_has_a_gradient():
    def final(rate):
        term = diffrax.ODETerm(lambda t, y, args: -rate * y)
        return diffrax.diffeqsolve(term, diffrax.Tsit5(), 0, 1, None, 2.0, stepsize_controller=TIGHT, adjoint=OURS).ys[
            0
        ]

    grad = jax.grad(final)
    for got in jax.jit(lambda r: (grad(r), jax.vmap(grad)(r[None])[0]))(jnp.array(1.5)):
        assert abs(got / (-2 * jnp.exp(-1.5)) - 1) < 1e-8


def _evaluations(adjoint):
    """How often the field is evaluated in both passes, of which the forward one is the same with every adjoint."""
    calls = []

    def field(t, y, params):
        jax.debug.callback(lambda: calls.append(1))
        return PROBLEMS["harmonic"].field(t, y, params)

    def run(params):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Dopri5(),
            0,
            10,
            0.1,
            jnp.array([1.0, -0.5]),
            params,
            saveat=diffrax.SaveAt(ts=jnp.array([10.0])),
            stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-6),
            adjoint=adjoint,
        )
        return jnp.mean(solution.ys**2)

    jax.block_until_ready(jax.jit(jax.grad(run))(jnp.array([2.0])))
    jax.effects_barrier()
    return len(calls)


def test_it_evaluates_the_field_less_often_than_the_seminorm():
    assert _evaluations(OURS) < _evaluations(SeminormAdjoint())


def test_what_is_inherited_can_be_overridden():
    loose = {"saveat": diffrax.SaveAt(ts=[1.0, 2.9])}
    adjoint = QuadratureAdjoint(solver=diffrax.Tsit5(), stepsize_controller=TIGHT, dt0=0.01, max_steps=4096)
    kwargs = {"max_steps": 1024, **loose, "stepsize_controller": diffrax.PIDController(rtol=1e-9, atol=1e-9)}
    got = value_and_grad(lambda x: solve(x, adjoint, **kwargs), inputs())[2]
    assert worst(got._replace(times=0), _tight_reference()._replace(times=0)) < 1e-7


def test_a_backward_solve_that_fails_returns_no_number():
    def gradient(**kwargs):
        def end(y0):
            x, adjoint = inputs()._replace(y0=y0), QuadratureAdjoint(max_steps=2)
            return jnp.sum(solve(x, adjoint, **kwargs).ys)

        return eqx.filter_jit(jax.grad(end))(inputs().y0)

    with pytest.raises(RuntimeError, match=r"backward solve of .*QuadratureAdjoint.* did not reach t0: raise `max_"):
        gradient()
    assert jnp.all(jnp.isnan(gradient(throw=False)))


@pytest.mark.by_default(every=2)
@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"max_steps": None}, r"with `max_steps=None`: JAX must know.*Pass `max_steps=\.\.\.`"),
        ({"saveat": diffrax.SaveAt(steps=True)}, r"SaveAt\(steps=\.\.\.\)"),
        ({"saveat": diffrax.SaveAt(t1=True, fn=lambda t, y, args: y)}, r"SaveAt\(fn=\.\.\.\)"),
        ({"saveat": diffrax.SaveAt(subs=[diffrax.SubSaveAt(t1=True)])}, r"SaveAt\(subs=\.\.\.\)"),
        ({"saveat": diffrax.SaveAt(t1=True, solver_state=True)}, r"SaveAt\(solver_state=True\)"),
    ],
)
def test_what_it_cannot_differentiate_it_still_solves(kwargs, match):
    x = inputs()

    def final(y0, adjoint):
        return jnp.sum(jnp.nan_to_num(jax.tree.leaves(solve(x._replace(y0=y0), adjoint, **kwargs).ys)[0], posinf=0))

    ours, host = jax.jit(lambda y0: (final(y0, OURS), final(y0, HOST)))(x.y0)
    assert ours == host
    with pytest.raises(UnsupportedError, match=match):
        jax.grad(final)(x.y0, OURS)


@pytest.mark.by_default(every=2)
@pytest.mark.parametrize("in_jit", [False, True])
@pytest.mark.parametrize("adjoint", [OURS, SeminormAdjoint()], ids=["quadrature", "seminorm"])
def test_forward_mode_and_hessians_are_refused_in_our_words(adjoint, in_jit):
    x = inputs()

    def final(y0):
        return jnp.sum(solve(x._replace(y0=y0), adjoint).ys ** 2)

    wrapped = jax.jit if in_jit else lambda function: function
    for mode in (jax.jacfwd(final), lambda y0: jax.jvp(final, (y0,), (y0,))):
        with pytest.raises(UnsupportedError, match=r"Forward mode .*AdaptiveCheckpointAdjoint\(\)"):
            wrapped(mode)(x.y0)
    with pytest.raises(UnsupportedError, match=r"econd derivatives"):
        wrapped(jax.hessian(final))(x.y0)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"nodes": 0}, r"nodes=0\): must be a positive number"),
        ({"nodes": True}, r"nodes=True\)"),
        ({"checkpoints": 0}, r"checkpoints=0\): must be a positive number of steps"),
        (
            {"rtol": 1e-3},
            r"rtol=\.\.\.\): must be one of nodes, checkpoints, solver, stepsize_controller, dt0, max_steps",
        ),
        ({"solver": diffrax.Kvaerno3()}, r"solver=Kvaerno3\(\.\.\.\)\): the tolerances of an implicit solver's root"),
    ],
)
def test_wrong_options_are_named(kwargs, match):
    with pytest.raises(OptionError, match=match):
        QuadratureAdjoint(**kwargs)


@pytest.mark.by_default(where=lambda nodes: nodes is None)
@pytest.mark.parametrize("nodes", [None, 3])
def test_what_drives_the_state_and_not_the_cotangent(nodes):
    """y' = w cos(ωt) - y/10: a(t) is smooth, so its error says nothing of the integral of a cos(ωt)."""

    def gradient(mode, adjoint):
        def loss(w, t0, omega):
            term = diffrax.ODETerm(lambda t, y, w: w * jnp.cos(omega * t) - y / 10)
            controller = diffrax.PIDController(rtol=1e-7, atol=1e-7)
            call = {"stepsize_controller": controller, "adjoint": adjoint, "max_steps": 4096}
            return diffrax.diffeqsolve(term, diffrax.Dopri5(), t0, t0 + 1, 0.01, 1.0, args=w, **call).ys[-1]

        return jax.jit(mode(loss))

    ours, host = gradient(jax.grad, QuadratureAdjoint(nodes=nodes)), gradient(jax.jacfwd, FORWARD)
    for t0, omega in ((300.0, 6.2832), (10.0, 20.0), (0.0, 100.0)):
        # ∫ exp(-(t1 - t)/10) cos(ωt) dt over the interval
        primitive = [(np.cos(omega * t) / 10 + omega * np.sin(omega * t)) / (0.01 + omega**2) for t in (t0, t0 + 1)]
        expected = primitive[1] - np.exp(-0.1) * primitive[0]
        discrete = abs(host(1.0, t0, omega) - expected)
        assert abs(ours(1.0, t0, omega) - expected) <= 1e-6 + 10 * discrete
