"""``compare`` and ``compare_sde``: counts and gradients of each way, failures in words, a model left as it was."""

import itertools
import math
import random
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from steptape import OptionError
from steptape.torch import compare

T = torch.linspace(0, 1, 3, dtype=torch.float64)
RK4 = {"method": "rk4", "options": {"step_size": 0.1}, "time_limit": 20.0}


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch):
    """What is asked of the times is that they are taken."""
    monkeypatch.setattr("steptape._compare.race.ROUNDS", 3)


class Net(torch.nn.Module):
    """Dropout, a buffer of what was seen, and a count: all that a solve changes."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2, dtype=torch.float64)
        self.register_buffer("largest", torch.zeros((), dtype=torch.float64))
        self.calls = 0

    def forward(self, t, y):
        self.calls += 1
        self.largest.copy_(torch.maximum(self.largest, y.detach().abs().max()))
        return torch.nn.functional.dropout(self.layer(y).tanh(), 0.1, self.training)


def start():
    torch.manual_seed(0)
    return torch.randn(4, 2, dtype=torch.float64)


def by_name(found):
    return {row.way: row for row in found.rows}


def of_runge_and_kutta(a, n, h=0.1):
    """The derivative in a of its solution of y' = -a y after n steps, from 1."""
    z = -a * h
    return n * (1 + z + z**2 / 2 + z**3 / 6 + z**4 / 24) ** (n - 1) * (1 + z + z**2 / 2 + z**3 / 6) * -h


def test_each_way_is_counted_and_held_against_the_discrete_gradient():
    rate = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    rows = by_name(compare(lambda t, y: -rate * y, start(), T, **RK4, loss=lambda ys: ys.sum()))
    missing = {name: row.why_not for name, row in rows.items() if row.why_not}
    assert list(missing) == ["aca, compile=True"]
    assert missing["aca, compile=True"].startswith("skipped: it would take about 60 s")
    exact = -sum(t * math.exp(-1.3 * t) for t in (0.5, 1.0))
    error = abs(sum(of_runge_and_kutta(1.3, n) for n in (5, 10)) / exact - 1)
    for name in ("back-propagation", "aca", 'aca, memory="graphs"', "aca, checkpoints=3", 'aca, graph="stage"'):
        assert rows[name].difference < 1e-13
        assert rows[name].error == pytest.approx(error, rel=1e-4)
        assert rows[name].evaluations_forward == 40
        assert rows[name].rounds >= 3
        assert rows[name].peak > rows[name].held > 0
    assert rows["back-propagation"].evaluations_backward == rows['aca, memory="graphs"'].evaluations_backward == 0
    assert rows["aca"].evaluations_backward == 40
    assert rows["odeint_adjoint"].difference > 1e-9
    assert rows["aca"].held < rows["back-propagation"].held


def test_the_first_step_s_guess_is_no_part_of_the_discrete_gradient():
    rate = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    ways = ["back-propagation", "aca", "quadrature"]
    found = compare(lambda t, y: -rate * y * (1 + t), start(), T, rtol=1e-3, atol=1e-3, method="dopri5", ways=ways)
    rows = by_name(found)
    assert list(rows) == ways
    assert rows["aca"].difference < 1e-13 < rows["back-propagation"].difference
    assert not rows["quadrature"].is_discrete
    assert found.best().way == "aca"
    assert 'adjoint_method="aca"' in found.advice()
    assert "dopri8 in float64" in str(found)


def test_the_model_its_gradients_and_all_generators_are_as_they_were():
    func, y0 = Net(), start().requires_grad_()
    head = torch.nn.BatchNorm1d(2, dtype=torch.float64)
    for p in (*func.parameters(), *head.parameters()):
        p.grad = torch.ones_like(p)
    values = [x.clone() for m in (func, head) for x in (*m.state_dict().values(), *(p.grad for p in m.parameters()))]
    grads = [p.grad for p in func.parameters()]
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())

    found = compare(func, y0, T, loss=lambda ys: head(ys[-1]).square().sum() + random.random(), **RK4)

    assert by_name(found)["aca"].difference < 1e-12
    kept = [x for m in (func, head) for x in (*m.state_dict().values(), *(p.grad for p in m.parameters()))]
    assert all(map(torch.equal, kept, values))
    assert all(p.grad is grad for p, grad in zip(func.parameters(), grads, strict=True))
    assert y0.grad is None
    assert (func.calls, func.training, head.training) == (0, True, True)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])


def test_a_graph_behind_what_func_uses_is_left_for_the_caller():
    encoder, context = torch.nn.Linear(2, 2).double(), start()
    y0 = encoder(context)
    shift = encoder(context).mean(0)
    found = compare(lambda t, y: shift - y, y0, T, ways=["back-propagation", "aca"], **RK4)
    assert by_name(found)["aca"].difference < 1e-13
    (y0.sum() + shift.sum()).backward()
    assert encoder.weight.grad is not None


def test_a_tuple_state_and_parameters_that_are_named():
    rate, other = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (1.0, 2.0))
    named = {"adjoint_params": (rate,), "ways": ["back-propagation", "odeint_adjoint", "aca"]}
    with pytest.warns(UserWarning, match="also uses tensors"):
        found = compare(lambda t, y: (-rate * y[0], other * y[0]), (start(), start()), T, **named, **RK4)
    assert by_name(found)["aca"].difference < 1e-13
    assert by_name(found)["odeint_adjoint"].difference < 1e-3


def test_what_a_way_refuses_is_shown_in_its_words():
    rate = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    call = {**RK4, "method": "explicit_adams", "ways": ["back-propagation", "aca", 'aca, graph="stage"']}
    found = compare(lambda t, y: -rate * y, start(), T, **call)
    assert by_name(found)['aca, graph="stage"'].why_not.startswith("failed: UnsupportedError: odeint_adjoint(")
    assert "Leave out 'graph'" in str(found)
    assert by_name(found)["aca"].difference < 1e-13


@pytest.fixture
def now(monkeypatch):
    """The time, by a clock that stands still."""
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], process_time=lambda: 0.1 * now[0])
    monkeypatch.setattr("steptape._compare.clock.time", clock)
    return now


def test_a_slow_model_ends_with_its_time(now):
    rate = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)

    def func(t, y):
        now[0] += 0.01
        return -rate * y

    found = compare(func, start(), T, **{**RK4, "time_limit": 4.0})
    assert now[0] < 4.1
    assert found.rows[0].difference < 1e-13
    assert found.rows[-1].why_not.startswith("skipped: ")
    assert "none: not within 1 s" in found.reference


def test_a_slow_backward_pass_ends_with_its_time(now):
    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return -y

        @staticmethod
        def backward(ctx, g):
            now[0] += 0.1
            return -g

    found = compare(lambda t, y: Slow.apply(y) * y, start().requires_grad_(), T, **{**RK4, "time_limit": 2.0})
    assert now[0] < 2.2
    assert "none: not within 2 s" in found.discrete
    assert all(row.why_not.startswith("skipped: ") for row in found.rows)


@pytest.mark.parametrize(("threads", "said"), [(2, True), (1, False)])
def test_threads_that_wait_for_each_other_are_told_of(monkeypatch, threads, said):
    looks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: 0.01 * next(looks), process_time=lambda: 0.0)
    monkeypatch.setattr("steptape._compare.clock.time", clock)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    call = {"func": lambda t, y: -y, "y0": start().requires_grad_(), "t": T, **RK4}
    assert ("had a processor 0% of the time" in compare(**call, ways=["aca"]).note) == said
    with pytest.raises(OptionError, match="the solve alone, without a gradient, takes longer") as refused:
        compare(**{**call, "time_limit": 0.2})
    assert ("torch.set_num_threads(1)" in str(refused.value)) == said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"y0": torch.ones(2)}, "neither y0 nor anything"),
        ({"loss": lambda ys: ys}, "must map the solution to a scalar"),
        ({"memory": "much"}, "must be a size"),
        ({"y0": 1.0}, "y0=1.0, .*: y0 must be a tensor or a tuple of them"),
        ({"t": [0.0, 1.0]}, "and t a tensor"),
        ({"ways": ["acca"]}, "is none of the ways, which are here: back-propagation; aca"),
    ],
)
def test_a_wrong_call_is_refused(change, said):
    call = {"y0": torch.ones(2, requires_grad=True), "t": torch.tensor([0.0, 1.0]), "method": "euler", **change}
    with pytest.raises(OptionError, match=said):
        compare(lambda t, y: -y, **call)


def test_what_func_raises_is_raised():
    with pytest.raises(ZeroDivisionError):
        compare(lambda t, y: y / (1 // 0), torch.ones(2, requires_grad=True), T)


def test_an_sde_along_one_path():
    pytest.importorskip("torchsde")
    from steptape.torch import compare_sde

    class Growth(torch.nn.Module):
        noise_type, sde_type = "diagonal", "stratonovich"

        def __init__(self):
            super().__init__()
            self.rate = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

        def f(self, t, y):
            return self.rate * y

        def g(self, t, y):
            return 0.3 * self.rate * y

    sde = Growth()
    before = torch.get_rng_state()
    rows = by_name(compare_sde(sde, start(), [0.0, 1.0], dt=0.05, method="midpoint", loss=torch.sum, time_limit=20.0))
    assert torch.equal(torch.get_rng_state(), before)
    assert sde.rate.grad is None
    for name in ("back-propagation", "aca", 'aca, memory="graphs"', "aca, checkpoints=4"):
        assert rows[name].difference < 1e-13
        assert 0 < rows[name].error < 0.1
    assert rows["sdeint_adjoint"].difference > 1e-9
    assert rows["aca"].evaluations_forward == rows["aca"].evaluations_backward


def test_the_command_prints_the_table_of_a_script_s_problem(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "my.py").write_text(
        "import torch\ndef problem():\n    rate = torch.ones((), requires_grad=True)\n"
        "    return dict(func=lambda t, y: -rate * y, y0=torch.ones(2), t=torch.tensor([0.0, 1.0]), method='rk4',\n"
        "                ways=['back-propagation', 'aca'])\n"
    )
    command = ("compare", "my.py:problem", "--memory", "1 GiB", "--plot", "plot.png")
    call = [sys.executable, "-m", "steptape", *command]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "Advice: " in done.stdout
    assert "that fits 1 GiB" in done.stdout
    assert done.stderr == ""
    assert (tmp_path / "plot.png").stat().st_size > 1000
