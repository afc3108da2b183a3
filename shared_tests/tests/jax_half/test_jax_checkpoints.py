"""AdaptiveCheckpointAdjoint(checkpoints=k): as exact as with every state, in the memory asked for, by the plan."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest

from steptape import OptionError
from steptape._plan import Keeper, _split, reversal, slots_of
from steptape.jax import AdaptiveCheckpointAdjoint
from steptape.jax._tape.plan import Slots
from steptape_helpers.jax_solves import Inputs, assert_as_host, forward, inputs, pid, solve, worst, x64

# Each solve takes seconds to compile for each number of checkpoints; so few that steps are taken again several times.
FEW = 3


@pytest.fixture(autouse=True)
def _x64():
    with x64():
        yield


def _adjoint(checkpoints: int | None) -> AdaptiveCheckpointAdjoint:
    return AdaptiveCheckpointAdjoint(checkpoints=checkpoints)


def _constant_steps(x, t1, adjoint):
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(x.field), diffrax.Heun(), 0.0, t1, 0.01, x.y0, x.args, max_steps=301, adjoint=adjoint
    )
    return jnp.sum(jnp.sin(solution.ys)), solution.stats["num_accepted_steps"]


_grad_of_constant_steps = jax.jit(jax.grad(_constant_steps, argnums=(0, 1), has_aux=True), static_argnums=2)


# Here, so that the host's gradient is compiled once.
@jax.jit
def _by_host(x, t1):
    return forward(lambda adjoint: lambda inputs: _constant_steps(*inputs, adjoint), (x, t1))[1]


@pytest.mark.by_default(where=lambda checkpoints: checkpoints <= FEW)
@pytest.mark.parametrize("checkpoints", [1, FEW, 16])
def test_a_solve_of_any_length_has_the_hosts_gradient(checkpoints):
    x = inputs()._replace(times=None)
    for steps in (1, 2, 3, 4, 5, 6, 7, 8, 15, 16, 17, 18, 33, 100, 137, 299, 300):
        t1 = 0.01 * steps - 0.003
        got, taken = _grad_of_constant_steps(x, t1, _adjoint(checkpoints))
        assert taken == steps
        assert worst(got, _by_host(x, t1)) < 1e-12


def _outputs_inside_steps_and_carried_stages(x, adjoint):
    saveat = diffrax.SaveAt(t0=True, ts=jnp.array([0.2, 1.0, 1.001, 2.9]), steps=True, solver_state=True)
    return solve(x, adjoint, diffrax.Bosh3(), saveat=saveat, max_steps=256)


def _event(x, adjoint):
    root_finder: Any = optimistix.Newton(1e-8, 1e-8)
    event = diffrax.Event(lambda t, y, args, **kwargs: y[0] - 0.2, root_finder)
    return solve(x, adjoint, event=event)


# Outputs by default in the grid.
@pytest.mark.by_default(where=lambda run: run is _event)
@pytest.mark.parametrize("run", [_outputs_inside_steps_and_carried_stages, _event])
def test_rejections_outputs_and_events_have_the_hosts_gradient(run):
    solution = assert_as_host(run, inputs(), ours=_adjoint(FEW))
    assert solution.stats["num_rejected_steps"] >= 1


# In full steps taken again in a batch, but not by try.
@pytest.mark.by_default(where=lambda by_try: by_try)
@pytest.mark.parametrize("by_try", [False, True])
def test_a_batch_of_long_and_short_solves_has_the_hosts_gradient(by_try):
    x = inputs()
    # The second goes furthest, but begins with rejected tries, so that the others are ahead of it at first.
    times = jnp.array([(0.1, 0.9, 0.1), (0.1, 2.9, 0.8), (0.1, 0.1, 0.1), (0.1, 0.15, 0.03)])
    y0 = jnp.array([[1.0, -0.5], [0.3, 0.3], [-2.0, 0.1], [0.0, 1.0]])
    controller = pid(dtmax=0.5) if by_try else pid()

    def total(inputs, adjoint):
        field, y0, times = inputs

        def one(y0, times):
            xs = Inputs(field, y0, x.args, times)
            solution = solve(xs, adjoint, stepsize_controller=controller, saveat=diffrax.SaveAt(t1=True, ts=times[1:2]))
            return jnp.sum(solution.ys**2), solution.stats

        values, stats = jax.vmap(one)(y0, times)
        return jnp.sum(values), stats

    def by_host(inputs):
        return forward(lambda adjoint: lambda inputs: total(inputs, adjoint), inputs)

    given = (x.field, y0, times)
    (_, stats), want = jax.jit(by_host)(given)
    accepted = np.asarray(stats["num_accepted_steps"])
    assert accepted.min() == 0
    assert accepted.max() >= 10 * np.partition(accepted, 1)[1] > 0
    got, _ = jax.jit(jax.grad(lambda inputs: total(inputs, _adjoint(FEW)), has_aux=True))(given)
    assert worst(got, want) < 1e-12


def test_a_batch_takes_again_what_its_longest_element_takes_again():
    checkpoints, calls = 3, []

    def field(t, y, args):
        jax.debug.callback(lambda: calls.append(None))
        return -y

    def total(y0, t1):
        def one(y0, t1):
            terms = diffrax.ODETerm(field)
            adjoint = _adjoint(checkpoints)
            return diffrax.diffeqsolve(terms, diffrax.Euler(), 0.0, t1, 0.1, y0, max_steps=64, adjoint=adjoint).ys

        return jnp.sum(jax.vmap(one)(y0, t1))

    y0, t1 = jnp.ones(2), jnp.array([0.35, 3.95])

    def count(run):
        calls.clear()
        jax.block_until_ready(jax.jit(run)(y0, t1))
        jax.effects_barrier()
        return len(calls)

    backward = count(jax.grad(total)) - count(total)
    keeper = Keeper(checkpoints)
    for step in range(40):
        keeper.offer(step)
    again = sum(action.kind == "advance" for action in reversal(keeper.kept, 40, checkpoints))
    # The callback has no batched argument, so it is called once for the whole batch.
    assert backward == 40 + again


# By default in the grid.
@pytest.mark.full
@pytest.mark.parametrize("solver", [diffrax.Bosh3(), diffrax.Ralston()], ids=["Bosh3", "Ralston"])
def test_the_graph_of_a_stage_gives_the_hosts_gradient(solver):
    controller = diffrax.PIDController(rtol=1e-2, atol=1e-2)
    saveat = diffrax.SaveAt(ts=jnp.array([0.2, 1.0, 2.9]))

    def run(x, adjoint):
        return solve(x, adjoint, solver, stepsize_controller=controller, saveat=saveat, max_steps=256)

    assert_as_host(run, inputs(), ours=AdaptiveCheckpointAdjoint(checkpoints=FEW, graph="stage"))


def _temporary_bytes(adjoint, max_steps):
    x = inputs()
    dim = 256
    field = eqx.tree_at(lambda f: f.matrix, x.field, jnp.eye(dim))

    def final(y0):
        how: Any = {"stepsize_controller": diffrax.ConstantStepSize(), "max_steps": max_steps}
        return jnp.sum(solve(Inputs(field, y0, x.args, x.times), adjoint, diffrax.Heun(), **how).ys)

    y0 = jnp.ones(dim)
    compiled = jax.jit(jax.grad(final)).lower(y0).compile()
    return compiled.memory_analysis().temp_size_in_bytes / y0.nbytes


def test_the_compilers_own_account_of_memory_falls_with_the_checkpoints():
    few, many, most = (_temporary_bytes(_adjoint(k), 1000) for k in (1, 64, 1000))
    # In states, each checkpoint is one.
    assert many - few == pytest.approx(63, abs=2)
    assert most > 1000 > many


def test_the_graph_of_a_stage_holds_the_intermediates_of_one_evaluation():
    def temporary(graph):
        def final(matrix):
            def field(t, y, args):
                return jnp.tanh(matrix @ jnp.tanh(matrix @ y)) - y

            adjoint = AdaptiveCheckpointAdjoint(checkpoints=4, graph=graph)
            terms = diffrax.ODETerm(field)
            return jnp.sum(
                diffrax.diffeqsolve(terms, diffrax.Dopri5(), 0, 1, 0.1, y0, max_steps=16, adjoint=adjoint).ys
            )

        matrix, y0 = jnp.eye(64), jnp.ones((64, 16))
        compiled = jax.jit(jax.grad(final)).lower(matrix).compile()
        return compiled.memory_analysis().temp_size_in_bytes / y0.nbytes

    # A step has 6 evaluations; each leaves intermediates of several states, and a stage itself is one.
    assert temporary("stage") + 6 < temporary("step")


@pytest.mark.parametrize("checkpoints", [0, -1, 2.5, True, "all"])
def test_a_budget_that_is_none_is_refused(checkpoints):
    given = rf"AdaptiveCheckpointAdjoint\(checkpoints={checkpoints!r}\)"
    with pytest.raises(OptionError, match=rf"{given}: must be a positive number of states, or None"):
        AdaptiveCheckpointAdjoint(checkpoints=checkpoints)


def test_a_graph_of_something_else_is_refused():
    graph: Any = "solve"
    with pytest.raises(OptionError, match=r"AdaptiveCheckpointAdjoint\(graph='solve'\): must be 'step' or 'stage'"):
        AdaptiveCheckpointAdjoint(graph=graph)


@pytest.mark.parametrize("checkpoints", [1, 2, 3, 8, 40])
def test_the_tables_say_what_the_plan_says(checkpoints):
    steps = 300
    slots, keeper, held = Slots(steps, checkpoints), Keeper(checkpoints), {}
    for step, slot in enumerate(slots_of(steps, checkpoints)):
        held[slot] = step
        held.pop(checkpoints, None)
        keeper.offer(step)
        assert sorted(held.values()) == keeper.kept
    segments = np.array([(n, free) for n in range(2, steps + 1) for free in range(1, checkpoints + 1)], np.int32)
    assert jax.vmap(slots.split)(*segments.T).tolist() == [_split(int(n), int(free)) for n, free in segments]


def test_without_a_budget_no_step_is_taken_again_twice_for_two_square_roots_of_states():
    for steps in (1000, 4096):
        slots, keeper = Slots.for_steps(steps, None), Keeper(Slots.for_steps(steps, None).count)
        assert slots.count <= 2 * np.sqrt(steps) + 1
        for step in range(steps):
            keeper.offer(step)
        again = [action.step for action in reversal(keeper.kept, steps, slots.count) if action.kind == "advance"]
        assert len(set(again)) == len(again) == steps - slots.count
    assert Slots.for_steps(64, None).suffice
