"""What the first evaluation computes and keeps has its gradient, or is refused where others come in its place."""

import functools

import pytest
import torch
import torch.nn.utils.parametrize as parametrize
import torchdiffeq

from steptape import GradientError
from steptape.shared_tests.oracles.distance import distance
from steptape.torch import odeint_adjoint

T = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
Y0 = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3)
SAID = r"^odeint_adjoint.*computed a tensor of shape \(3, 3\) in its first evaluation, which the next one used again"


class Field(torch.nn.Module):
    """dy/dt = A(W)y, where ``cache`` computes A."""

    def __init__(self):
        super().__init__()
        self.W = torch.nn.Parameter(torch.linspace(-1, 1, 9, dtype=torch.float64).view(3, 3))
        self.A = None
        self.memory = {}

    def computed(self):
        return (self.W - self.W.T).tanh()

    def forward(self, t, y):
        return y @ self.cache().T


class Attribute(Field):
    def cache(self):
        if self.A is None:
            self.A = self.computed()
        return self.A


class Dictionary(Field):
    def cache(self):
        if "A" not in self.memory:
            self.memory["A"] = [self.computed()]
        return self.memory["A"][0]


class Property(Field):
    @functools.cached_property
    def weight(self):
        return self.computed()

    def cache(self):
        return self.weight


class OfState(Field):
    """Not of parameters but of the initial state."""

    def cache(self):
        return self.A

    def forward(self, t, y):
        if self.A is None:
            self.A = y.T @ y
        return super().forward(t, y)


class MadeWhenFirstCalled(Field):
    """Whose parameter is made by its first evaluation; of a layer, or its own."""

    def cache(self):
        if not hasattr(self, "made"):
            self.made = torch.nn.Parameter(torch.full((3, 3), 0.3, dtype=torch.float64))
            self.layer = torch.nn.Linear(3, 3, dtype=torch.float64)
            torch.nn.init.constant_(self.layer.weight, 0.2)
        return self.made * self.W + self.layer.weight


class Skew(torch.nn.Module):
    def forward(self, x):
        return x.triu(1) - x.triu(1).T


class Parametrized(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(3, 3, dtype=torch.float64)
        parametrize.register_parametrization(self.net, "weight", Skew())

    def forward(self, t, y):
        return self.net(y).tanh()


class ReadFirst(Parametrized):
    """Whose weight shows in no call where it is read: it is looked at anew, and the first look is to leave nothing."""

    def forward(self, t, y):
        return self.net(y.to(self.net.weight.dtype)).tanh()


CACHES = (Attribute, Dictionary, Property, OfState, MadeWhenFirstCalled, Parametrized, ReadFirst)
SOLVES = {
    "dopri5": {"method": "dopri5"},
    "rk4": {"method": "rk4"},
    "one evaluation": {"method": "euler"},
    "implicit_adams": {"method": "implicit_adams"},
    "quadrature": {"adjoint_method": "quadrature"},
    "checkpoints": {"adjoint_options": {"checkpoints": 1}},
    "graphs": {"adjoint_options": {"memory": "graphs"}},
}


def solve(func, y0=None, t=T, **call):
    y0 = Y0.clone().requires_grad_() if y0 is None else y0
    with parametrize.cached():
        return odeint_adjoint(func, y0, t, **{"adjoint_method": "aca", **call})


@pytest.mark.parametrize("call", SOLVES.values(), ids=SOLVES)
@pytest.mark.parametrize("cache", CACHES)
def test_has_its_gradient(cache, call):
    t = T[::2] if call.get("method") == "euler" else T
    tight = {"rtol": 1e-9, "atol": 1e-9} if call.get("adjoint_method") == "quadrature" else {}
    first = {"options": {"first_step": 0.1}} if call.get("method", "dopri5") == "dopri5" else {}

    def gradient(odeint, **call):
        torch.manual_seed(0)
        func, y0 = cache(), Y0.clone().requires_grad_()
        with parametrize.cached():
            ys = odeint(func, y0, t, **tight, **first, **call)
        found = torch.autograd.grad(ys.sum(), (y0, *func.parameters()), allow_unused=True)
        return [x for x in found if x is not None]

    found = gradient(odeint_adjoint, **{"adjoint_method": "aca", **call})
    expected = gradient(torchdiffeq.odeint, method=call.get("method"))
    assert distance(found, expected) < (1e-6 if tight else 1e-12)


def test_has_its_gradient_with_the_tensors_that_are_named():
    W, memory = torch.ones(3, 3, dtype=torch.float64, requires_grad=True), []

    def func(t, y):
        if not memory:
            memory.append(W.sin())
        return y @ memory[0]

    def gradient(odeint, **call):
        memory.clear()
        return torch.autograd.grad(odeint(func, Y0, T, method="rk4", **call).sum(), W)

    found = gradient(odeint_adjoint, adjoint_method="aca", adjoint_params=(W,))
    assert distance(found, gradient(torchdiffeq.odeint)) < 1e-12


def test_not_where_no_gradient_is_asked_for():
    with torch.no_grad():
        expected = torchdiffeq.odeint(Attribute(), Y0, T)
        assert torch.equal(solve(Attribute()), expected)


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_each_way_out(method):
    """Computed in each evaluation, computed before and named, or detached."""

    def gradient(odeint, func, wrt, **adjoint):
        ys = odeint(func, Y0, T, method=method, options={"first_step": 0.1} if method == "dopri5" else None, **adjoint)
        return torch.autograd.grad(ys.sum(), wrt)[0]

    class Anew(Field):
        def cache(self):
            return self.computed()

    func = Anew()
    expected = gradient(torchdiffeq.odeint, func, func.W)
    torch.testing.assert_close(gradient(odeint_adjoint, func, func.W, adjoint_method="aca"), expected)
    func = Attribute()
    func.A = func.computed()
    found = gradient(odeint_adjoint, func, func.W, adjoint_method="aca", adjoint_params=(func.A,))
    torch.testing.assert_close(found, expected)

    class Detached(Attribute):
        def computed(self):
            return super().computed().detach()

    func, y0 = Detached(), Y0.clone().requires_grad_()
    assert torch.autograd.grad(solve(func, y0, method=method).sum(), y0)[0].abs().sum() > 0


class Noise(Field):
    """What is drawn, or made of shapes, has no history to lose; nor has what is overwritten before it is used."""

    def forward(self, t, y):
        if self.A is None:
            self.A = torch.randn_like(self.W) + torch.zeros_like(y[:1]).sum() * 0
            self.mask = torch.bernoulli(torch.full_like(y, 0.5))
        self.memory["last"] = y @ self.W
        return (self.memory["last"] @ self.A).sin() * self.mask


@pytest.mark.parametrize("adjoint_method", ["aca", "quadrature"])
def test_what_is_no_cache_of_parameters(adjoint_method):
    def gradient(odeint, **adjoint):
        torch.manual_seed(0)
        func = Noise()
        ys = odeint(func, Y0, T, rtol=1e-9, atol=1e-9, options={"first_step": 0.01}, **adjoint)
        return torch.autograd.grad(ys.sum(), func.W)[0]

    found, expected = gradient(odeint_adjoint, adjoint_method=adjoint_method), gradient(torchdiffeq.odeint)
    torch.testing.assert_close(found, expected, rtol=1e-12 if adjoint_method == "aca" else 1e-6, atol=0)


@pytest.mark.parametrize("inside", [False, True], ids=["backward outside", "backward inside"])
def test_autocast_s_copies_of_weights_have_their_history(inside):
    func = torch.nn.Linear(3, 3)
    y0 = Y0.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ys = odeint_adjoint(_OfTime(func), y0, T.float(), method="rk4", adjoint_method="aca")
        if inside:
            ys.sum().backward()
    if not inside:
        ys.sum().backward()
    assert func.weight.grad.abs().sum() > 0


class _OfTime(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, t, y):
        return self.net(y)


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_inside_a_transform_the_cache_has_its_derivatives(method):
    def loss(W, odeint, **call):
        func = Attribute()

        def field(t, y):
            return torch.func.functional_call(func, {"W": W}, (t, y))

        return odeint(field, Y0, T, **call)[-1].sin().sum()

    W, tight = Attribute().W.detach(), {"rtol": 1e-10, "atol": 1e-10}
    expected = torch.func.grad(loss)(W, torchdiffeq.odeint, method="rk4", options={"step_size": 0.01})
    call = tight if method == "dopri5" else {"options": {"step_size": 0.01}}
    call |= {"method": method, "adjoint_method": "aca", "adjoint_params": ()}
    found = torch.func.grad(loss)(W, odeint_adjoint, **call)
    torch.testing.assert_close(found, expected, rtol=1e-6 if method == "dopri5" else 1e-12, atol=1e-12)


class LastTime(Field):
    """Keeps what it computed for the last time; ``OfTimes`` for all of them, ``OfBoth`` for time and state."""

    def kept(self, t, y):
        if self.A is None or self.A[0] != t:
            self.A = t.clone(), torch.sin(self.W * (1 + t))
        return self.A[1]

    def forward(self, t, y):
        return torch.tanh(y @ self.kept(t, y))


class OfTimes(LastTime):
    def kept(self, t, y):
        return self.memory.setdefault(t.item(), torch.sin(self.W * (1 + t)))


class OfBoth(LastTime):
    def kept(self, t, y):
        if self.A is None or self.A[0] != t or not torch.equal(self.A[1], y):
            self.A = t.clone(), y.detach().clone(), torch.sin(self.W * (1 + t)) + y.T @ y
        return self.A[2]


class OfThisState(LastTime):
    def kept(self, t, y):
        if self.A is None or self.A[0] is not y:
            self.A = y, torch.sin(self.W * (1 + t)) + y.T @ y
        return self.A[1]


@pytest.mark.parametrize("name", SOLVES)
@pytest.mark.parametrize("cache", [LastTime, OfTimes, OfBoth])
def test_what_is_kept_for_a_time_or_a_state_is_refused(cache, name):
    """Unless graphs are asked for, when the host takes over."""
    if name != "graphs":
        with pytest.raises(GradientError, match=SAID):
            solve(cache(), **SOLVES[name])
        return
    found = []
    for odeint, call in ((torchdiffeq.odeint, {}), (odeint_adjoint, {"adjoint_method": "aca", **SOLVES[name]})):
        func = cache()
        found.append(torch.autograd.grad(odeint(func, Y0, T, method="rk4", **call).sum(), func.W)[0])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_what_is_kept_for_this_very_tensor_is_right(method):
    def gradient(odeint, **adjoint):
        func = OfThisState()
        options = {"first_step": 0.1} if method == "dopri5" else None
        ys = odeint(func, Y0, T, method=method, options=options, **adjoint)
        return torch.autograd.grad(ys.sum(), func.W)[0]

    expected, found = gradient(torchdiffeq.odeint), gradient(odeint_adjoint, adjoint_method="aca")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("sde_type", "method"),
    # Of the last two, only the next step uses what is kept for a time.
    [("ito", "euler"), ("ito", "milstein"), ("stratonovich", "heun"), ("stratonovich", "euler_heun")],
    ids=lambda x: x,
)
def test_an_sde_whose_drift_and_diffusion_share_what_is_kept_for_a_time(sde_type, method):
    pytest.importorskip("torchsde")
    from steptape.torch import sdeint_adjoint

    class Shared(LastTime):
        noise_type = "diagonal"

        def f(self, t, y):
            return torch.tanh(y @ self.kept(t, y))

        def g(self, t, y):
            return torch.sigmoid(y @ self.kept(t, y))

    y0 = Y0.clone().requires_grad_()
    sde = Shared()
    sde.sde_type = sde_type
    with pytest.raises(GradientError, match=r"^sdeint_adjoint.*computed"):
        sdeint_adjoint(sde, y0, [0.0, 1.0], dt=0.1, method=method, adjoint_method="aca")


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_what_is_only_recorded_is_no_cache(method):
    """States in a list, and running values that no slope depends on."""

    class Recording(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(3, 3, dtype=torch.float64)
            self.states, self.largest, self.total = [], torch.zeros(()), torch.zeros(())

        def forward(self, t, y):
            self.states.append(y)
            self.largest = torch.maximum(self.largest, y.detach().abs().max())
            with torch.no_grad():
                self.total = self.total + y.norm()
            return self.net(y).tanh()

    def gradient(odeint, **adjoint):
        torch.manual_seed(0)
        func = Recording()
        options = {"first_step": 0.1} if method == "dopri5" else None
        ys = odeint(func, Y0, T, method=method, options=options, **adjoint)
        return torch.autograd.grad(ys.square().sum(), tuple(func.net.parameters()))

    assert distance(gradient(odeint_adjoint, adjoint_method="aca"), gradient(torchdiffeq.odeint)) < 1e-12


@pytest.mark.parametrize("adjoint_options", [{}, {"checkpoints": 1}, {"memory": "graphs"}], ids=str)
def test_what_is_kept_for_an_interval_has_no_history_to_lose(adjoint_options):
    class Driven(torch.nn.Module):
        """By a path that has no gradient, whose slope is kept until the next interval."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = torch.nn.Linear(3, 3, dtype=torch.float64)
            self.path, self.interval = torch.randn(5, 3, dtype=torch.float64), None

        def forward(self, t, y):
            i = min(int(t * 4), 3)
            if i != self.interval:
                self.interval, self.slope = i, self.path[i + 1] - self.path[i]
            return self.net(y).tanh() * self.slope

    def gradient(odeint, **aca):
        func = Driven()
        ys = odeint(func, Y0, T, method="rk4", options={"step_size": 0.125}, **aca)
        return torch.autograd.grad(ys.sum(), [*func.parameters()])

    found = gradient(odeint_adjoint, adjoint_method="aca", adjoint_options=adjoint_options)
    assert distance(found, gradient(torchdiffeq.odeint)) <= 1e-12
