"""What cannot be right is refused, in words: the call, the reason, the way out."""

import re

import pytest
import torch

from steptape import GradientError, OptionError, UnsupportedError
from steptape.compat._torchdiffeq import SOLVERS
from steptape.torch import odeint_adjoint

Y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
T = torch.tensor([0.0, 1.0], dtype=torch.float64)


def solve(func=torch.sin, t=T, **kwargs):
    kwargs = {"adjoint_method": "aca", "adjoint_params": (), **kwargs}
    return odeint_adjoint(lambda t, y: func(y), Y0, t, **kwargs)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ({"checkpoint": 3}, "unknown option.*'checkpoints', 'checkpoint_device', 'graph', 'compile' and 'lean'"),
        ({"checkpoints": 0}, "must be a positive number of states, or None"),
        ({"checkpoints": 2.5}, "must be a positive number of states, or None"),
        ({"checkpoint_device": "disk"}, "no torch device"),
        ({"graph": "solve"}, "must be 'step' or 'stage'"),
        ({"lean": 1}, "must be True or False"),
    ],
    ids=repr,
)
def test_a_wrong_adjoint_option(option, reason):
    call = re.escape(f"adjoint_options={option}")
    with pytest.raises(OptionError, match=f"{call}.*{reason}"):
        solve(adjoint_options=option)


@pytest.mark.parametrize("t", [[0.0, 1.0, 0.5], [0.0, 0.0], [0.0, float("nan")]], ids=str)
def test_times_that_are_not_monotone(t):
    with pytest.raises(OptionError, match=r"t=\[0.0, .*strictly increasing or strictly decreasing"):
        solve(t=torch.tensor(t, dtype=torch.float64))


@pytest.mark.parametrize("t", [torch.tensor([0, 1]), torch.zeros(0), torch.tensor(1.0), [0.0, 1.0]], ids=repr)
def test_times_that_are_no_times(t):
    with pytest.raises(OptionError, match="non-empty 1-D floating-point tensor"):
        solve(t=t)


def test_a_solver_that_cannot_be_replayed():
    with pytest.raises(
        UnsupportedError, match=r"method='scipy_solver'.*Use one of dopri8, dopri5.*leave out adjoint_m"
    ):
        solve(method="scipy_solver")


def test_a_stage_at_a_time_where_steps_are_replayed_whole():
    with pytest.raises(UnsupportedError, match=r"'implicit_adams'.*'graph': 'stage'.*as a whole. Leave out 'graph'"):
        solve(method="implicit_adams", adjoint_options={"graph": "stage"})


def test_a_solver_of_the_user_s_that_steps_its_own_way(monkeypatch):
    class Mine(SOLVERS["dopri5"]):
        def _adaptive_step(self, state):
            return super()._adaptive_step(state)

    monkeypatch.setitem(SOLVERS, "mine", Mine)
    with pytest.raises(UnsupportedError, match="method='mine'"):
        solve(method="mine")


@pytest.mark.parametrize("name", ["ACA", "checkpoint", 5], ids=repr)
def test_an_unknown_adjoint_method(name):
    with pytest.raises(OptionError, match=rf"adjoint_method={name!r}\).*'aca' and 'quadrature'; .*'dopri8', 'dopri5'"):
        solve(adjoint_method=name)


def test_an_unknown_method_in_the_host_s_words():
    with pytest.raises(ValueError, match='Invalid method "dopri6"'):
        solve(method="dopri6")


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize(
    ("method", "options"),
    [("dopri5", {"max_step": 0.1}), ("rk4", {"step_size": 0.1}), ("implicit_adams", {"step_size": 0.1})],
)
def test_a_tensor_that_func_first_uses_later_on(method, options, create_graph):
    deep = [[[[[[torch.tensor([0.5, 0.1], dtype=torch.float64, requires_grad=True)]]]]]]
    func = lambda t, y: deep[0][0][0][0][0][0].exp() * y if t > 0.5 else y  # noqa: E731
    ys = odeint_adjoint(func, Y0, T, method=method, options=options, adjoint_method="aca")
    with pytest.raises(GradientError, match=r"its first evaluation did not use \(shapes: \(2,\)\).*adjoint_params="):
        torch.autograd.grad(ys.sum(), Y0, create_graph=create_graph)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("checkpoints", [None, 1])
@pytest.mark.parametrize("method", ["dopri5", "rk4", "explicit_adams"])
def test_a_func_that_changes_between_the_passes(method, checkpoints, create_graph):
    out_of_sight = [[[[[[[torch.Generator()]]]]]]]

    def func(y):
        return y * (0.5 + torch.rand((), generator=out_of_sight[0][0][0][0][0][0][0]).round())

    options = {"max_step": 0.1} if method == "dopri5" else {"step_size": 0.1}
    keep = {"checkpoints": checkpoints}
    ys = solve(func, method=method, rtol=1e-1, atol=1e3, options=options, adjoint_options=keep)
    with pytest.raises(GradientError, match=r"returned other values in the backward pass.*of its arguments"):
        torch.autograd.grad(ys.sum(), Y0, create_graph=create_graph)


def test_a_grid_constructor_that_changes_its_mind():
    calls = []

    def grid(func, y0, t):
        calls.append(None)
        return torch.linspace(0, 1, 3 + len(calls), dtype=torch.float64)

    ys = solve(method="euler", options={"grid_constructor": grid})
    with pytest.raises(GradientError, match="grid constructor returned another grid"):
        ys.sum().backward()
