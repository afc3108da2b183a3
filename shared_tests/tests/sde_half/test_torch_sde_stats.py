"""What a solve of an SDE did: exact counts, for those who ask."""

import pytest
import torch

torchsde = pytest.importorskip("torchsde")

from steptape.torch import record_solves, sdeint_adjoint  # noqa: E402
from steptape_helpers.sde_problems import BATCH, LEVY, STATE, Sde, initial, interval  # noqa: E402

STEPS = 8
NUMBER = 8
Y = BATCH * STATE * NUMBER
ADAPTIVE = {"adaptive": True, "rtol": 1e-2, "atol": 1e-2, "dt": 0.5, "dt_min": 1e-4}
TYPES = {"euler": "ito", "srk": "ito", "midpoint": "stratonovich", "reversible_heun": "stratonovich"}


class Counted(Sde):
    """Counts what the host asks of it."""

    def __init__(self, method):
        super().__init__(TYPES[method], "diagonal")
        self.calls = 0

    def f(self, t, y):
        self.calls += 1
        return super().f(t, y)

    def g(self, t, y):
        self.calls += 1
        return super().g(t, y)


def solve(method, **kwargs):
    kwargs = {"dt": 1 / STEPS, "adjoint_method": "aca", **kwargs}
    sde, bm = Counted(method), interval("diagonal", LEVY.get(method, "none"))
    ts = torch.tensor([0.0, 1.0], dtype=torch.float64)
    ys = sdeint_adjoint(sde, initial(), ts, bm=bm, method=method, **kwargs)
    sde.calls -= 2  # The host's look at the shapes, before it solves.
    return sde, ys


@pytest.mark.parametrize("keep", [{}, {"checkpoints": 3}], ids=str)
@pytest.mark.parametrize("method", TYPES)
def test_counts_are_exact(method, keep):
    with record_solves() as solves:
        sde, ys = solve(method, adjoint_options=keep)
        (stats,) = solves
        forward = sde.calls
        # The step that finds what sde uses leaves no count.
        assert stats.evaluations_forward == forward
        assert stats.evaluations_backward == 0
        assert stats.evaluations_forward >= 2 * STEPS
        ys.sum().backward()
    assert stats.method == method
    assert (stats.accepted_steps, stats.rejected_steps) == (STEPS, 0)
    assert stats.evaluations_backward == sde.calls - forward >= 2 * STEPS
    assert stats.states_kept == keep.get("checkpoints", STEPS)
    assert stats.backward_passes == 1
    assert stats.seconds_forward > 0
    assert stats.seconds_backward > 0


def test_rejected_tries_are_counted():
    with record_solves() as solves:
        sde, ys = solve("euler", **ADAPTIVE)
    (stats,) = solves
    assert stats.rejected_steps > 0
    # A try is three steps of one drift and one diffusion each.
    assert stats.evaluations_forward == sde.calls == 6 * (stats.accepted_steps + stats.rejected_steps)
    ys.sum().backward()
    assert stats.evaluations_backward == 4 * stats.accepted_steps


@pytest.mark.parametrize(("method", "state", "answer"), [("euler", 1, 1), ("srk", 1, 2), ("reversible_heun", 4, 1)])
def test_memory_is_exact(method, state, answer):
    """``state``, ``answer``: what a step starts from and what it asks the path for, in states."""
    with record_solves() as solves:
        solve(method)
    (stats,) = solves
    # The times between steps; of each step its start and its answer, and two samples; not y0, which is two of the four
    # of reversible_heun.
    starts = state * STEPS - max(1, state // 2)
    assert stats.bytes_held == NUMBER * (STEPS + 1) + Y * (starts + answer * STEPS + 2)


@pytest.mark.parametrize("grad_enabled", [False, True])
def test_nothing_is_held_where_no_gradient_is_asked_for(grad_enabled):
    sde = Counted("euler").requires_grad_(False)
    with record_solves() as solves, torch.set_grad_enabled(grad_enabled):
        ys = sdeint_adjoint(sde, initial().detach(), [0.0, 1.0], dt=1 / STEPS, method="euler", adjoint_method="aca")
    (stats,) = solves
    assert not ys.requires_grad
    assert (stats.accepted_steps, stats.bytes_held) == (STEPS, 0)


def test_what_is_in_no_adjoint_params_has_no_gradient():
    sde, call = Counted("euler"), {"bm": interval("diagonal"), "dt": 1 / STEPS, "method": "euler"}
    with record_solves() as solves:
        ys = sdeint_adjoint(sde, initial().detach(), [0.0, 1.0], adjoint_method="aca", adjoint_params=(), **call)
    assert not ys.requires_grad
    assert (solves[0].bytes_held, solves[0].backward_passes) == (0, 0)


@pytest.mark.parametrize("method", TYPES)
def test_recording_changes_neither_solution_nor_gradients(method):
    sde, ys = solve(method)
    ys.sum().backward()
    with record_solves():
        watched, recorded = solve(method)
        recorded.sum().backward()
    assert torch.equal(ys, recorded)
    assert sde.calls == watched.calls
    for x, y in zip(sde.parameters(), watched.parameters(), strict=True):
        assert (x.grad is None and y.grad is None) or torch.equal(x.grad, y.grad)
