"""AdaptiveCheckpointAdjoint against closed forms and against diffrax's own back-propagation."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest

from steptape.jax import AdaptiveCheckpointAdjoint
from steptape_helpers.jax_solves import FORWARD, HOST, OURS, assert_as_host, identical, inputs, pid, solve, worst, x64


@pytest.fixture(autouse=True)
def _x64():
    with x64():
        yield


def test_exponential_growth_has_the_gradient_of_its_closed_form():
    def final_square(z0, alpha, t0, t1):
        term = diffrax.ODETerm(lambda t, z, alpha: alpha * z)
        controller = diffrax.PIDController(rtol=1e-11, atol=1e-11)
        solution = diffrax.diffeqsolve(
            term, diffrax.Dopri8(), t0, t1, 0.1, z0, alpha, stepsize_controller=controller, adjoint=OURS
        )
        return solution.ys[0] ** 2

    z0, alpha, t0, t1 = 1.5, 0.8, 0.25, 2.0
    got = jax.grad(final_square, argnums=(0, 1, 2, 3))(z0, alpha, t0, t1)
    growth = np.exp(2 * alpha * (t1 - t0))
    want = (2 * z0 * growth, 2 * (t1 - t0) * z0**2 * growth, -2 * alpha * z0**2 * growth, 2 * alpha * z0**2 * growth)
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_euler_has_the_gradient_of_its_own_discrete_solution():
    n = 12

    def final(z0, alpha, t0, t1):
        ts = t0 + (t1 - t0) * jnp.arange(n + 1.0) / n
        term = diffrax.ODETerm(lambda t, z, alpha: alpha * z)
        controller = diffrax.StepTo(ts)
        return diffrax.diffeqsolve(
            term, diffrax.Euler(), ts[0], ts[-1], None, z0, alpha, stepsize_controller=controller, adjoint=OURS
        ).ys[0]

    z0, alpha, t0, t1 = 1.5, 0.8, 0.25, 2.0
    got = jax.grad(final, argnums=(0, 1, 2, 3))(z0, alpha, t0, t1)
    h = (t1 - t0) / n
    step = 1 + alpha * h
    in_t1 = z0 * step ** (n - 1) * alpha
    want = (step**n, z0 * n * step ** (n - 1) * h, -in_t1, in_t1)
    np.testing.assert_allclose(got, want, rtol=1e-13)


SOLVES = [
    (diffrax.Euler, "constant"),
    (diffrax.Heun, "step_to"),
    (diffrax.Midpoint, "pid"),
    (diffrax.Ralston, "constant"),
    (diffrax.Bosh3, "pid"),
    (diffrax.Tsit5, "pid"),
    (diffrax.Dopri5, "constant"),
    (diffrax.Dopri8, "pid"),
]
# Other exact tests have each: of transforms, properties, checkpoints, times, those that follow here; and the grid has
# each with each controller.


@pytest.mark.elsewhere
@pytest.mark.parametrize(("solver", "controller"), SOLVES, ids=[f"{s.__name__}-{c}" for s, c in SOLVES])
def test_gradient_equals_the_hosts_for_every_solver_and_controller(solver, controller):
    saveat = diffrax.SaveAt(t0=True, ts=jnp.array([0.1, 0.7, 0.75, 2.0, 2.9]), steps=2)

    def run(x, adjoint):
        how: dict[str, Any]
        if controller == "step_to":
            ts = x.times[0] + (x.times[1] - x.times[0]) * jnp.linspace(0.0, 1.0, 10) ** 1.3
            ts = ts.at[0].set(x.times[0]).at[-1].set(x.times[1])
            how = {"stepsize_controller": diffrax.StepTo(ts), "dt0": None}
        elif controller == "constant":
            how = {"stepsize_controller": diffrax.ConstantStepSize()}
        else:
            how = {"stepsize_controller": diffrax.PIDController(rtol=3e-2, atol=3e-2)}
        return solve(x, adjoint, solver(), saveat=saveat, **how)

    solution = assert_as_host(run, inputs())
    assert solution.stats["num_accepted_steps"] >= 4


def test_several_outputs_with_functions_of_their_own():
    saveat = diffrax.SaveAt(
        subs={
            "times": diffrax.SubSaveAt(ts=jnp.array([0.1, 2.0]), fn=lambda t, y, args: (t * y[0], y[1:])),
            "steps": diffrax.SubSaveAt(steps=True, fn=lambda t, y, args: args * y**2),
        }
    )
    how = {"saveat": saveat, "stepsize_controller": diffrax.PIDController(rtol=3e-2, atol=3e-2)}
    assert_as_host(lambda x, adjoint: solve(x, adjoint, diffrax.Ralston(), **how), inputs())


def test_rejected_tries_leave_the_gradient_exact():
    """Of outputs within steps, of the interpolation, and of what the solver carries on."""
    saveat = diffrax.SaveAt(t1=True, ts=jnp.array([0.2, 1.0, 1.001, 2.9]), dense=True, solver_state=True)

    def run(x, adjoint):
        solution = solve(x, adjoint, saveat=saveat)
        inside = jax.vmap(solution.evaluate)(jnp.linspace(0.2, 2.8, 9))
        return eqx.tree_at(lambda s: s.ys, solution, (solution.ys, inside, solution.solver_state[1]))

    solution = assert_as_host(run, inputs())
    assert 3 * solution.stats["num_rejected_steps"] > solution.stats["num_accepted_steps"] > 20


def test_the_first_step_may_be_the_solvers_own_choice():
    x = inputs()._replace(times=jnp.array([0.1, 1.4]))

    def run(x, adjoint):
        x = x._replace(times=jnp.append(x.times, 0.0))
        controller = diffrax.PIDController(rtol=3e-2, atol=3e-2)
        return solve(x, adjoint, diffrax.Midpoint(), dt0=None, stepsize_controller=controller)

    assert_as_host(run, x)


# Each case of the grid runs in both directions.
@pytest.mark.full
def test_time_may_run_backwards_and_an_end_at_zero_still_moves_the_last_step():
    def run(x, adjoint):
        t0, t1, _ = x.times
        within = jax.lax.stop_gradient(t0 + jnp.array([0.2, 0.7]) * (t1 - t0))
        return solve(x, adjoint, saveat=diffrax.SaveAt(ts=jnp.append(within, t1), steps=True))

    assert_as_host(run, *(inputs()._replace(times=jnp.array(t)) for t in ([2.9, 0.1, -0.3], [-1.5, 0.0, 0.8])))


# The grid has them by default, and the tests of members of a batch that failed.
@pytest.mark.full
def test_states_may_be_pytrees():
    def field(t, y, args):
        position, (velocity, heat) = y
        return velocity, (-args * position * jnp.cos(3 * t), jnp.sum(velocity**2) - heat)

    def run(x, adjoint):
        y0, args, t1 = x
        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            0.0,
            t1,
            0.9,
            y0,
            args,
            stepsize_controller=pid(),
            adjoint=adjoint,
            saveat=diffrax.SaveAt(ts=jnp.array([0.5, 1.5]), t1=True),
        )

    y0 = (jnp.array([[1.0, 0.2]]), (jnp.array([[0.0, -1.0]]), jnp.array(0.3)))
    assert_as_host(run, (y0, jnp.array(2.0), jnp.array(2.0)))


def test_only_what_is_asked_for_is_differentiated():
    x = inputs()

    def run(args, adjoint):
        return solve(x._replace(args=args), adjoint)

    assert_as_host(run, x.args)


def test_times_that_do_not_move_may_go_where_nothing_may_be_differentiated():
    path = diffrax.VirtualBrownianTree(0.0, 3.0, 1e-2, (2,), jax.random.key(0))

    def measured(y0, adjoint):
        solution = solve(inputs()._replace(y0=y0), adjoint)
        return jnp.sum(solution.ys[0] * path.evaluate(solution.ts[0]))

    grad = jax.grad(measured)
    got, want = jax.jit(lambda y0: [grad(y0, adjoint) for adjoint in (OURS, HOST)])(inputs().y0)
    assert worst(got, want) < 1e-12


def test_integers_and_strings_among_the_inputs_are_left_alone():
    def run(y0, adjoint):
        term = diffrax.ODETerm(lambda t, y, args: -args[0] * y if args[1] == "decay" else y)
        args = (jnp.array(2), "decay", None)
        return diffrax.diffeqsolve(term, diffrax.Heun(), 0, 1, 0.25, y0, args, adjoint=adjoint)

    assert_as_host(run, jnp.array([1.0, 2.0]))


def test_a_solve_may_go_on_from_another():
    def run(x, adjoint):
        first = solve(x, adjoint, saveat=diffrax.SaveAt(t1=True, solver_state=True, controller_state=True))
        onwards = x._replace(y0=first.ys[0], times=jnp.stack([x.times[1], x.times[1] + 0.8, x.times[2]]))
        return solve(
            onwards,
            adjoint,
            solver_state=first.solver_state,
            controller_state=first.controller_state,
        )

    assert_as_host(run, inputs())


# By default with other dtypes beside it, in `test_jax_strict.py`.
@pytest.mark.full
def test_single_precision():
    x = jax.tree.map(lambda x: x.astype(jnp.float32), inputs())
    solution = assert_as_host(lambda x, adjoint: solve(x, adjoint), x, rtol=2e-4)
    assert solution.ys.dtype == jnp.float32


def test_jit_of_grad_and_grad_of_jit_agree():
    x = inputs()

    def final(y0):
        return jnp.sum(solve(x._replace(y0=y0), OURS).ys ** 2)

    inside = jax.grad(jax.jit(final))(x.y0)
    assert identical(inside, jax.jit(jax.grad(final))(x.y0))


# A batch by default: with all its states in the tests of properties, with few in those of checkpoints.
@pytest.mark.full
@pytest.mark.parametrize("ours", [OURS, AdaptiveCheckpointAdjoint(checkpoints=3)], ids=["all", "checkpoints=3"])
def test_vmap_equals_a_loop_when_the_elements_take_different_numbers_of_steps(ours):
    x = inputs()
    spans = [(0.1, 0.1), (0.6, 0.5), (2.9, 0.8), (1.4, 0.1)]
    times = jnp.array([(0.1, t1, dt0) for t1, dt0 in spans])
    y0 = jnp.array([[1.0, -0.5], [0.3, 0.3], [-2.0, 0.1], [0.0, 1.0]])

    def one(field, y0, times, adjoint):
        saveat = diffrax.SaveAt(steps=True, t1=True)
        solution = solve(x._replace(field=field, y0=y0, times=times), adjoint, saveat=saveat, max_steps=64)
        return jnp.sum(jnp.where(jnp.isfinite(solution.ys), solution.ys, 0.0) ** 2), solution.stats

    def batched(field, y0, times, adjoint):
        values, stats = jax.vmap(lambda y0, times: one(field, y0, times, adjoint))(y0, times)
        return jnp.sum(values), stats

    def grad(fun):
        return jax.jit(jax.grad(fun, argnums=(0, 1, 2), has_aux=True), static_argnums=3)

    got, stats = grad(batched)(x.field, y0, times, ours)
    host, _ = grad(batched)(x.field, y0, times, HOST)
    assert worst(got, host) < 1e-12

    each = [grad(one)(x.field, y, t, ours)[0] for y, t in zip(y0, times, strict=True)]
    fields, states, spans = (jax.tree.map(lambda *leaves: jnp.stack(leaves), *g) for g in zip(*each, strict=True))
    # Batched, the field's last bits differ, and the controller magnifies them by the inverse of the tolerance.
    assert worst(got, (jax.tree.map(lambda g: jnp.sum(g, 0), fields), states, spans)) < 1e-9
    assert int(jnp.min(stats["num_accepted_steps"])) == 0
    assert int(jnp.max(stats["num_accepted_steps"])) > 16


def _half_solver(x, adjoint):
    return solve(x, adjoint, diffrax.HalfSolver(diffrax.Bosh3()))


def _step_size_limit(x, adjoint):
    return solve(x, adjoint, stepsize_controller=pid(dtmax=0.08))


def _root_found_event(x, adjoint):
    root_finder: Any = optimistix.Newton(1e-8, 1e-8)
    event = diffrax.Event(lambda t, y, args, **kwargs: y[0] - 0.2, root_finder)
    return solve(x, adjoint, event=event)


def _event_at_the_end_of_a_step(x, adjoint):
    # What it depends on may be differentiated; where it ends the solve does not depend on that, to first order.
    y0, t0 = x.y0, x.times[0]
    gone = {"moved": lambda t, y, args, **kwargs: args * jnp.sum((y - y0) ** 2) > 0.5, "late": _late(1.5 + t0)}
    return solve(x, adjoint, event=diffrax.Event(gone), saveat=diffrax.SaveAt(ts=jnp.linspace(0.1, 2.9, 9), t1=True))


def _late(end):
    return lambda t, y, args, **kwargs: t - end


def _implicit(x, adjoint):
    controller = diffrax.PIDController(rtol=1e-2, atol=1e-2)
    return solve(x, adjoint, diffrax.Kvaerno3(), stepsize_controller=controller, max_steps=256)


def _stochastic(x, adjoint):
    path = diffrax.VirtualBrownianTree(0.0, 3.0, 1e-2, (2,), jax.random.key(0))
    noise = diffrax.ControlTerm(lambda t, y, args: jnp.diag(args * jnp.sin(y)), path)
    terms: Any = diffrax.MultiTerm(diffrax.ODETerm(x.field), noise)
    return diffrax.diffeqsolve(terms, diffrax.Heun(), 0.0, 1.0, 0.1, x.y0, x.args, adjoint=adjoint)


# The grid has limits and an implicit solver by default, the tests of checkpoints a root, those of SDE solvers noise and
# half steps.
@pytest.mark.by_default(where=lambda run: run is _event_at_the_end_of_a_step, rest="elsewhere")
@pytest.mark.parametrize(
    "run",
    [
        _half_solver,
        _step_size_limit,
        _root_found_event,
        _event_at_the_end_of_a_step,
        _implicit,
        _stochastic,
    ],
)
def test_what_is_not_an_explicit_solve_to_its_end_is_exact_all_the_same(run):
    # A Brownian path does not let itself be differentiated for time.
    x = inputs()._replace(times=None) if run is _stochastic else inputs()
    # Newton's iterations are replayed to rounding, magnified by the Jacobian's condition.
    assert_as_host(run, x, rtol=1e-10 if run is _implicit else 1e-12)


def _with_jumps(t, y, args):
    return args * jnp.where((t < 1.5) & (t > -0.25), 1.0, -2.0) * jnp.stack([y[1], -y[0] * jnp.cos(9 * t)])


# By default in the grid, and at times that move, below.
@pytest.mark.full
@pytest.mark.parametrize(
    ("solver", "times"),
    [
        (diffrax.Dopri5(), (0.1, 2.9, 0.8)),
        (diffrax.Heun(), (1.9, -0.7, -0.8)),
        (diffrax.HalfSolver(diffrax.Bosh3()), (0.1, 2.0, 0.8)),
    ],
    ids=["FSAL", "backwards", "FSAL-by-itself"],
)
def test_jumps_at_times_that_do_not_move(solver, times):
    controller = diffrax.ClipStepSizeController(pid(), step_ts=[0.5, 1.0], jump_ts=[-0.25, 1.5])
    # That a step ends at a jump and the next one begins behind it shows in what is saved.
    saveat = diffrax.SaveAt(
        ts=jnp.linspace(*times[:2], 5), steps=True, fn=lambda t, y, args: y * jnp.where(t > 1.5, 2.0, 1.0)
    )

    def run(x, adjoint):
        x = x._replace(field=_with_jumps, times=times)
        return solve(x, adjoint, solver, stepsize_controller=controller, saveat=saveat, max_steps=1024)

    solution = assert_as_host(run, inputs()._replace(field=None, times=None))
    assert solution.stats["num_rejected_steps"] >= 3


def test_times_to_step_to_may_be_differentiated_beside_all_else():
    def run(moving, adjoint):
        x, step_ts, jump_ts = moving
        controller = diffrax.ClipStepSizeController(pid(), step_ts=step_ts, jump_ts=jump_ts)
        return solve(x, adjoint, stepsize_controller=controller)

    # The last one is beyond the end: no step goes there.
    assert_as_host(run, (inputs(), jnp.array([0.9, 1.7, 5.0]), jnp.array([1.3])))


# By default in a batch, beside the other transforms.
@pytest.mark.full
def test_a_solve_that_runs_out_of_steps_has_the_hosts_gradient():
    assert_as_host(lambda x, adjoint: solve(x, adjoint, max_steps=9, throw=False), inputs())


def test_in_a_scan_and_under_checkpoint():
    x = inputs()._replace(times=jnp.array([0.1, 0.7, 0.2]))

    def chained(y0, adjoint):
        def again(y, _):
            return jax.checkpoint(lambda y: solve(x._replace(y0=y), adjoint, max_steps=16).ys[0])(y), None

        return jnp.sum(jax.lax.scan(again, y0, None, length=3)[0] ** 2)

    got, want = jax.jit(lambda y0: (jax.grad(chained)(y0, OURS), jax.jacfwd(chained)(y0, FORWARD)))(x.y0)
    assert worst(got, want) < 1e-12
