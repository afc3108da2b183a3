"""What a solve did: exact counts, for those who ask."""

import copy
import threading

import pytest
import torch
import torchdiffeq

from steptape.shared_tests.problems.problems import PROBLEMS
from steptape.torch import SolveStats, _stats, install, odeint_adjoint, record_solves
from steptape_helpers.torch_solves import ADAPTIVE, Module

PROBLEM = PROBLEMS["lotka_volterra"]
T = torch.linspace(0, 2, 5, dtype=torch.float64)
SCALAR = 8
STATE = 2 * SCALAR
pytestmark = pytest.mark.filterwarnings("ignore:Solver .* does not support callbacks")


class Counted(Module):
    """Counts tries and rejected tries as well."""

    def __init__(self):
        super().__init__(PROBLEM)
        self.tries = self.rejected = 0

    def callback_step(self, t, y, h):
        self.tries += 1

    def callback_reject_step(self, t, y, h):
        self.rejected += 1


def solve(method="dopri5", requires_grad=True, odeint=odeint_adjoint, **kwargs):
    func = Counted()
    y0 = torch.tensor(PROBLEM.y0, dtype=torch.float64, requires_grad=requires_grad)
    func.params.requires_grad_(requires_grad)
    options = {} if method in ADAPTIVE else {"step_size": 0.1}
    kwargs = {"method": method, "options": options, "rtol": 1e-4, "atol": 1e-4, "adjoint_method": "aca", **kwargs}
    return func, odeint(func, y0, T, **kwargs)


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3", "rk4", "euler", "explicit_adams", "implicit_adams"])
def test_counts_are_exact(method):
    with record_solves() as solves:
        func, ys = solve(method)
        forward = func.evaluations
        (stats,) = solves
        # And one that finds what func uses.
        assert stats.evaluations_forward == forward
        assert stats.evaluations_backward == stats.backward_passes == 0
        ys.sum().backward()
    assert stats.method == method
    assert stats.rejected_steps == func.rejected
    assert stats.accepted_steps == func.tries - func.rejected
    assert stats.rejected_steps > 0 or method not in ("dopri5", "bosh3")
    assert stats.evaluations_forward == forward
    assert stats.evaluations_backward == func.evaluations - forward > 0
    assert stats.backward_passes == 1
    assert stats.seconds_forward > 0
    assert stats.seconds_backward > 0


@pytest.mark.parametrize(("checkpoints", "slopes"), [(None, 0), (3, 0), (1, 0), (None, 1)], ids=str)
def test_memory_is_exact(checkpoints, slopes):
    method = "fehlberg2" if slopes else "dopri5"
    with record_solves() as solves:
        solve(method, adjoint_options={"checkpoints": checkpoints})
    (stats,) = solves
    steps = stats.accepted_steps
    assert stats.states_kept == steps if checkpoints is None else stats.states_kept <= checkpoints
    # Each step's ends and size, the times of its stages, two samples, which of so small a state are all of it, and the
    # states (with a slope, where steps start from one), but for y0: it is an input.
    stages = {"dopri5": 7, "fehlberg2": 3}[method]
    scalars = SCALAR * (2 * steps + 1 + stages * steps)
    assert stats.bytes_held == scalars + 2 * STATE + STATE * (1 + slopes) * (stats.states_kept - 1)


@pytest.mark.parametrize("grad_enabled", [False, True])
def test_nothing_is_held_where_no_gradient_is_asked_for(grad_enabled):
    with record_solves() as solves, torch.set_grad_enabled(grad_enabled):
        func, _ = solve(requires_grad=not grad_enabled)
    (stats,) = solves
    assert stats.bytes_held == 0
    assert stats.evaluations_forward == func.evaluations


def test_backward_passes_over_a_retained_graph_add_up():
    with record_solves() as solves:
        func, ys = solve()
    forward = func.evaluations
    ys.sum().backward(retain_graph=True)
    once = func.evaluations - forward
    ys.sum().backward()
    assert solves[0].backward_passes == 2
    assert solves[0].evaluations_backward == 2 * once


def test_a_differentiable_backward_pass_is_counted_too():
    with record_solves() as solves:
        func, ys = solve()
        forward = func.evaluations
        (gradient,) = torch.autograd.grad(ys.sum(), func.params, create_graph=True)
        gradient.sum().backward()
    assert solves[0].evaluations_backward == func.evaluations - forward
    assert solves[0].backward_passes >= 1


def test_one_entry_per_solve_in_their_order():
    with record_solves() as solves:
        solve("bosh3")
        solve("rk4")
    solve("euler")
    assert [stats.method for stats in solves] == ["bosh3", "rk4"]


def test_blocks_nest_and_share_their_entries():
    with record_solves() as outer:
        solve("bosh3")
        with record_solves() as inner:
            _, ys = solve("rk4")
        solve("euler")
    assert [stats.method for stats in outer] == ["bosh3", "rk4", "euler"]
    assert len(inner) == 1
    assert inner[0] is outer[1]
    ys.sum().backward()
    assert outer[1].backward_passes == 1


def test_a_backward_pass_in_another_thread_belongs_to_its_solve():
    with record_solves() as solves:
        func, ys = solve()
    forward = func.evaluations
    thread = threading.Thread(target=ys.sum().backward)
    with record_solves() as others:
        thread.start()
        thread.join()
    assert not others
    assert solves[0].evaluations_backward == func.evaluations - forward > 0


def test_each_thread_records_its_own_solves():
    found, barrier = {}, threading.Barrier(3)

    def work(method):
        with record_solves() as solves:
            barrier.wait()
            for _ in range(3):
                solve(method)[1].sum().backward()
            barrier.wait()
        found[method] = [(stats.method, stats.backward_passes) for stats in solves]

    threads = [threading.Thread(target=work, args=(method,)) for method in ("bosh3", "rk4", "dopri5")]
    with record_solves() as outside:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {method: [(method, 1)] * 3 for method in ("bosh3", "rk4", "dopri5")}
    assert not outside


def test_recording_changes_neither_solution_nor_gradients():
    func, ys = solve()
    ys.sum().backward()
    with record_solves():
        watched, recorded = solve()
        recorded.sum().backward()
    assert torch.equal(ys, recorded)
    assert torch.equal(func.params.grad, watched.params.grad)
    assert (func.tries, func.rejected) == (watched.tries, watched.rejected)


def test_a_solve_that_fails_leaves_no_entry():
    with record_solves() as solves, pytest.raises(AssertionError, match="max_num_steps"):
        solve(options={"max_num_steps": 1})
    assert not solves


def test_events_and_the_registered_solver_are_recorded():
    def stop(t, y):
        return t - 0.5

    with install(), record_solves() as solves:
        solve(event_fn=stop, odeint=lambda func, y0, t, **kwargs: odeint_adjoint(func, y0, t[:2], **kwargs))
        func = Counted()
        y0 = torch.tensor(PROBLEM.y0, dtype=torch.float64, requires_grad=True)
        torchdiffeq.odeint(func, y0, T, method="aca", options={"method": "bosh3"}).sum().backward()
    event, registered = solves
    assert event.method == "dopri5"
    assert event.accepted_steps == event.states_kept > 1
    assert registered.method == "bosh3"
    assert registered.accepted_steps == func.tries - func.rejected
    assert registered.evaluations_forward + registered.evaluations_backward == func.evaluations


def test_outside_of_a_block_nothing_is_wrapped(monkeypatch):
    monkeypatch.setattr(_stats, "_Meter", None)
    with record_solves():
        pass
    solve()


def test_it_reads_well():
    with record_solves() as solves:
        assert str(solves) == "no solves"
        solve("bosh3")
    solves += [SolveStats("dopri5", 42, 9, 308, 253, 42, 3 << 20, 0.0123, 1.5, 1)]
    first, second = str(solves).splitlines()
    assert first.startswith("bosh3: ")
    assert "backward not run" in first
    assert second == (
        "dopri5: 42 steps accepted, 9 rejected; 308 evaluations in 12.3 ms, backward 253 in 1.5 s; 42 states kept, "
        "3 MiB held"
    )
    assert copy.copy(solves[0]) == solves[0]
