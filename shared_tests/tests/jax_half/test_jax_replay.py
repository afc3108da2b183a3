"""What the backward pass of AdaptiveCheckpointAdjoint costs: field evaluations, and memory held until it runs."""

from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from steptape._plan import Keeper, reversal
from steptape.jax import AdaptiveCheckpointAdjoint
from steptape.jax._tape.plan import Slots
from steptape_helpers.jax_solves import OURS, Inputs, inputs, pid, solve, x64


@pytest.fixture(autouse=True)
def _x64():
    with x64():
        yield


class _Counted(eqx.Module):
    """A field that counts its evaluations as they happen."""

    field: Callable
    calls: list = eqx.field(static=True)

    def __call__(self, t, y, args):
        # With an argument, so that it is not hoisted out of a loop over stages.
        jax.debug.callback(lambda _: self.calls.append(None), y)
        return self.field(t, y, args)


def _evaluations(run, x):
    """Field evaluations of the forward pass, of the backward pass, and the solve's statistics."""
    calls: list[None] = []

    def counted(y0, times):
        return run(x._replace(y0=y0, times=times, field=_Counted(x.field, calls)))

    stats = jax.block_until_ready(jax.jit(counted)(x.y0, x.times)).stats
    jax.effects_barrier()
    forward = len(calls)
    calls.clear()
    grad = eqx.filter_jit(eqx.filter_grad(lambda moving: jnp.sum(counted(*moving).ys)))
    jax.block_until_ready(grad((x.y0, x.times)))
    jax.effects_barrier()
    return forward, len(calls) - forward, {name: int(n) for name, n in stats.items()}


@pytest.mark.by_default(where=lambda solver: isinstance(solver, diffrax.Dopri8))
@pytest.mark.parametrize(
    ("solver", "per_step"),
    [(diffrax.Heun(), 2), (diffrax.Dopri5(), 6), (diffrax.Dopri8(), 13)],
    ids=["Heun", "Dopri5", "Dopri8"],
)
def test_the_backward_pass_evaluates_the_field_for_accepted_steps_only(solver, per_step):
    controller = diffrax.PIDController(rtol=1e-2, atol=1e-2)
    forward, backward, stats = _evaluations(
        lambda x: solve(x, OURS, solver, stepsize_controller=controller, max_steps=80), inputs()
    )
    assert stats["num_rejected_steps"] >= 3
    assert forward >= per_step * stats["num_steps"]
    assert backward == per_step * stats["num_accepted_steps"]


def test_the_graph_of_a_stage_costs_one_more_evaluation_a_stage():
    _, backward, stats = _evaluations(lambda x: solve(x, AdaptiveCheckpointAdjoint(graph="stage")), inputs())
    assert backward == 2 * 6 * stats["num_accepted_steps"]


def test_output_inside_a_step_costs_one_more_evaluation():
    saveat = diffrax.SaveAt(ts=[0.5, 1.0])
    _, backward, stats = _evaluations(lambda x: solve(x, OURS, saveat=saveat), inputs())
    assert backward == 7 * stats["num_accepted_steps"]


@pytest.mark.by_default(where=lambda times_move: not times_move)
@pytest.mark.parametrize("times_move", [False, True])
def test_where_no_time_moves_any_controllers_rejected_tries_are_not_replayed(times_move):
    x = inputs()
    clipped = diffrax.ClipStepSizeController(pid(), step_ts=[1.0, 2.0], jump_ts=[1.5])

    def run(y):
        times = x.times if y.times is None else y.times
        return solve(y._replace(times=times), OURS, stepsize_controller=clipped)

    _, backward, stats = _evaluations(run, x if times_move else x._replace(times=None))
    assert stats["num_rejected_steps"] >= 3
    if times_move:
        assert backward >= 6 * stats["num_steps"]
    else:
        assert backward == 6 * stats["num_accepted_steps"]


@pytest.mark.by_default(where=lambda kind: kind == "boolean")
@pytest.mark.parametrize("kind", ["boolean", "real"])
def test_an_event_that_ends_a_solve_where_a_step_ends_is_not_replayed(kind):
    def decayed(t, y, args, **kwargs):
        return y[0] < 0.2 if kind == "boolean" else y[0] - 0.2

    _, backward, stats = _evaluations(lambda x: solve(x, OURS, event=diffrax.Event(decayed)), inputs())
    assert stats["num_rejected_steps"] >= 1
    assert backward == 6 * stats["num_accepted_steps"]


@pytest.mark.by_default(where=lambda checkpoints: checkpoints == 3)
@pytest.mark.parametrize("checkpoints", [1, 3])
def test_few_checkpoints_recompute_the_steps_that_the_plan_says(checkpoints):
    _, backward, stats = _evaluations(lambda x: solve(x, AdaptiveCheckpointAdjoint(checkpoints)), inputs())
    steps, keeper = stats["num_accepted_steps"], Keeper(checkpoints)
    for step in range(steps):
        keeper.offer(step)
    advances = sum(action.kind == "advance" for action in reversal(keeper.kept, steps, checkpoints))
    assert advances >= steps - checkpoints > 0
    assert backward == 6 * (steps + advances)


def _held(solver, max_steps=256, dim=29):
    """The shapes of the arrays that the backward pass closes over, by a trace."""
    x = inputs()
    field = eqx.tree_at(lambda f: f.matrix, x.field, jnp.eye(dim))
    x = Inputs(field, jnp.linspace(-1.0, 1.0, dim), x.args, x.times)

    def final(y0):
        return solve(x._replace(y0=y0), OURS, solver, stepsize_controller=pid(), max_steps=max_steps).ys

    pull = jax.eval_shape(lambda y0: jax.vjp(final, y0)[1], x.y0)
    return [leaf for leaf in jax.tree.leaves(pull) if hasattr(leaf, "shape")]


def test_until_the_backward_pass_only_states_and_scalars_are_held():
    dim, max_steps = 29, 256
    shapes = [leaf.shape for leaf in _held(diffrax.Dopri8(), max_steps, dim)]
    states = sum(np.prod(shape[:-1], dtype=int) for shape in shapes if shape[-1:] == (dim,) and shape != (dim, dim))
    slots = Slots.for_steps(max_steps, None).count
    # The tape, and a few single states: the spare slot, the initial and final ones, the output and its surroundings.
    assert slots <= states <= slots + 10
    # The tableau, for the solve, and less of it for recomputed steps.
    tableaus = [(14, 14), (13, 13)]
    scalars = [shape for shape in shapes if dim not in shape and shape not in tableaus]
    assert all(len(shape) <= 1 and sum(shape) <= max_steps + 2 for shape in scalars)


def test_what_is_held_does_not_depend_on_the_number_of_stages():
    dim = 64
    few, many = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in _held(s, dim=dim)) for s in (diffrax.Bosh3(), diffrax.Dopri8())
    )
    # The tableaux differ, by less than the stages of a single step would.
    assert 0 <= many - few < 14 * dim * 8


def test_a_large_max_steps_costs_its_square_root_in_states():
    def states(max_steps):
        return sum(leaf.shape[0] for leaf in _held(diffrax.Bosh3(), max_steps) if leaf.ndim == 2)

    assert states(4096) < 4096 // 16
    assert states(65536) < 65536 // 64
