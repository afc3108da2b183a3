"""A func that is no function of its arguments alone is refused, and one under autocast is none of these."""

import random

import pytest
import torch
import torchdiffeq

from steptape import GradientError
from steptape.shared_tests.oracles.distance import distance
from steptape.torch import odeint_adjoint

T = torch.tensor([0.0, 1.0], dtype=torch.float64)
Y0 = torch.ones(2, dtype=torch.float64)
METHODS = ["dopri5", "rk4", "fixed_adams"]


def solved(func, method, params, **call):
    options = {"first_step": 0.05} if method == "dopri5" else {"step_size": 0.05}
    settings = {"method": method, "rtol": 1e-6, "atol": 1e-6, "options": options}
    return odeint_adjoint(func, Y0, T, adjoint_method="aca", adjoint_params=params, **settings, **call)[-1].sum()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", [{}, {"checkpoints": 2}])
@pytest.mark.filterwarnings("ignore:Functional iteration did not converge")
def test_a_callback_that_changes_what_func_computes(method, keep):
    class Switched(torch.nn.Module):
        k = 1.0

        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

        def callback_step(self, t, y, h):
            self.k = 2.0 if 0.3 < t < 0.6 else 1.0

        def forward(self, t, y):
            return -self.k * self.w * y

    loss = solved(Switched(), method, None, adjoint_options=keep)
    with pytest.raises(GradientError, match="other values"):
        loss.backward()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.filterwarnings("ignore:Functional iteration did not converge")
def test_a_tensor_that_is_used_half_way_alone(method, create_graph):
    a, b = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.5, 0.7))

    def func(t, y):
        return -(a if 0.3 < t < 0.6 else b) * y

    found = torch.autograd.grad(solved(func, method, None), (a, b), create_graph=create_graph)
    options = {"first_step": 0.05} if method == "dopri5" else {"step_size": 0.05}
    ys = torchdiffeq.odeint(func, Y0, T, method=method, rtol=1e-6, atol=1e-6, options=options)
    assert distance([x.detach() for x in found], torch.autograd.grad(ys[-1].sum(), (a, b))) < 1e-12


@pytest.mark.parametrize("method", ["explicit_adams", "rk4", "dopri5"])
def test_a_pure_func_under_autocast(method):
    """Whose slopes are of less precision than the state, also in a multistep solver's history: to bfloat16's 8 bits."""

    class Func(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))

        def forward(self, t, y):
            return self.net(y)

    def gradient(solve, **call):
        func = Func()
        options = {"first_step": 0.1} if method == "dopri5" else {"step_size": 0.05}
        settings = {"method": method, "rtol": 1e-3, "atol": 1e-3, "options": options}
        with torch.autocast("cpu", dtype=torch.bfloat16):
            ys = solve(func, torch.ones(3, 4), T.float(), **settings, **call)
        return torch.autograd.grad(ys[-1].square().sum(), tuple(func.parameters()))

    assert distance(gradient(odeint_adjoint, adjoint_method="aca"), gradient(torchdiffeq.odeint)) <= 0.1


class Counted(torch.nn.Module):
    """Its evaluations are counted, in the way of ``where``, which its values go by as far as ``weight`` says."""

    def __init__(self, where, weight, dtype):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(0.7, dtype=dtype))
        self.where, self.weight, self.seen, self.times = where, weight, 0, []
        self.register_buffer("other", torch.zeros((), dtype=dtype))

    def forward(self, t, y):
        if self.where == "number":
            self.seen += 1
        elif self.where == "list":
            self.times.append(t)
        else:
            self.other = self.other + 1
        return -self.a * y * (1 + self.weight * (self.seen + len(self.times) + self.other))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("where", ["number", "list", "another buffer"])
@pytest.mark.parametrize("create_graph", [False, True])
def test_values_that_go_by_a_count_of_evaluations(where, dtype, create_graph):
    """Of each step less than what its end is rounded by; of the gradient more. What is counted alone is no matter."""
    y0, t = torch.ones(2, dtype=dtype), torch.tensor([0.0, 1.0], dtype=dtype)

    def gradient(weight, odeint=odeint_adjoint, **kwargs):
        func = Counted(where, weight, dtype)
        ys = odeint(func, y0, t, method="rk4", options={"step_size": 0.125}, **kwargs)
        return torch.autograd.grad(ys[-1].sum(), func.a, create_graph=create_graph)

    aca = {"adjoint_method": "aca"}
    with pytest.raises(GradientError, match="other values"):
        gradient(torch.finfo(dtype).eps, **aca)
    host, ours = gradient(0.0, torchdiffeq.odeint), gradient(0.0, **aca)
    assert distance([x.detach().double() for x in ours], [x.double() for x in host]) <= 4 * torch.finfo(dtype).eps


class BehindZeros(torch.nn.Module):
    """A last layer of zeros, from which flows start, so that no value tells of what evaluations change before it."""

    def __init__(self, which):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = (torch.nn.Linear(3, 3, dtype=torch.float64) for _ in range(2))
        torch.nn.init.zeros_(self.b.weight)
        self.which, self.seen, self.state, self.times = which, 0, {"scale": 1.0}, [0.0]
        self.register_buffer("mean", torch.zeros(3, dtype=torch.float64))
        random.seed(0)

    def forward(self, t, y):
        return self.b(torch.tanh(self.a(y * self._scale(float(t)) - self.mean)))

    def _scale(self, t):
        if self.which == "number":
            self.seen += 1
        elif self.which == "dictionary" and t > 0.5:
            self.state["scale"] = 2.0
        elif self.which == "list":
            self.times.append(t)
        elif self.which == "another buffer":
            self.mean = 0.9 * self.mean + 0.1
        elif self.which == "drawn from t = 0.5 on" and t > 0.5:
            return random.random()
        return self.state["scale"] * (1 + 0.01 * self.seen + sum(self.times))


@pytest.mark.parametrize("which", ["number", "dictionary", "list", "another buffer", "drawn from t = 0.5 on"])
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("keep", [{}, {"checkpoints": 2}, {"memory": "graphs"}], ids=str)
def test_what_evaluations_change_behind_a_layer_of_zeros(which, create_graph, keep):
    def gradient(odeint, **kwargs):
        func, y0 = BehindZeros(which), torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3)
        ys = odeint(func, y0, T, method="rk4", options={"step_size": 0.1}, **kwargs)
        return torch.autograd.grad(ys.square().sum(), func.b.weight, create_graph=create_graph)

    aca = {"adjoint_method": "aca", "adjoint_options": keep}
    if "memory" in keep and not create_graph:
        assert distance(gradient(odeint_adjoint, **aca), gradient(torchdiffeq.odeint)) <= 1e-12
        return
    with pytest.raises(GradientError, match="other values"):
        gradient(odeint_adjoint, **aca)


class Stores(torch.nn.Module):
    """A net whose slopes, or something of its weights alone, are summed up for the loss."""

    def __init__(self, of_weights, listed, noisy):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Linear(2, 2, dtype=torch.float64)
        self.of_weights, self.noisy = of_weights, noisy
        self.listed, self.summed = [] if listed else None, 0.0

    def forward(self, t, y):
        slope = self.net(y).tanh()
        if self.noisy:
            slope = torch.nn.functional.dropout(slope, 0.3)
        term = self.net.weight.square().sum() if self.of_weights else slope.square().mean()
        if self.listed is None:
            self.summed = self.summed + term
        else:
            self.listed.append(term)
        return slope

    @property
    def penalty(self):
        return self.summed if self.listed is None else torch.stack(self.listed).sum()


@pytest.mark.parametrize("keep", [{}, {"checkpoints": 2}, {"memory": "graphs"}, {"memory": "64 KB"}], ids=str)
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize(("of_weights", "noisy"), [(False, False), (True, False), (False, True)])
def test_what_func_stores_for_the_loss(keep, listed, of_weights, noisy):
    """Its value is that by the host; and its gradient, unless that comes through the state and no graph is kept."""

    def solved_by(odeint, **adjoint):
        func = Stores(of_weights, listed, noisy)
        ys = odeint(func, Y0, T, method="rk4", options={"step_size": 0.1}, **adjoint)
        return func, ys[-1].sum() + func.penalty

    expected, loss = solved_by(torchdiffeq.odeint)
    loss.backward()
    func, found = solved_by(odeint_adjoint, adjoint_method="aca", adjoint_options=keep)
    assert found == loss
    if of_weights or keep == {"memory": "graphs"}:
        found.backward()
        assert distance([func.net.weight.grad], [expected.net.weight.grad]) < 1e-12
    else:
        for backward in (lambda: torch.autograd.grad(found, func.net.bias, retain_graph=True), found.backward):
            with pytest.raises(GradientError, match="computed from the state y and stored"):
                backward()


@pytest.mark.parametrize("keep", [{}, {"checkpoints": 2}, {"memory": "graphs"}], ids=str)
@pytest.mark.parametrize("listed", [False, True])
def test_what_func_logs(keep, listed):
    """The solve logs as the host does."""

    class Logs(Stores):
        def forward(self, t, y):
            with torch.no_grad():
                super().forward(t, y)
            return self.net(y).tanh()

    def logged_by(odeint, **adjoint):
        func = Logs(False, listed, False)
        ys = odeint(func, Y0, T, method="rk4", options={"step_size": 0.1}, **adjoint)
        return func.penalty, torch.autograd.grad(ys[-1].sum(), [*func.parameters()])

    value, gradient = logged_by(torchdiffeq.odeint)
    found, ours = logged_by(odeint_adjoint, adjoint_method="aca", adjoint_options=keep)
    assert found == value
    assert distance(ours, gradient) < 1e-12
