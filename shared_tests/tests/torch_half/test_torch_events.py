"""Solves that end at an event."""

import math

import pytest
import torch
import torchdiffeq

from steptape import UnsupportedError
from steptape.shared_tests.oracles.distance import distance
from steptape.torch import install, odeint_adjoint
from steptape_helpers.torch_solves import ADAMS, ADAPTIVE, FIXED_GRID

ACA = {"adjoint_method": "aca", "adjoint_params": ()}


class Falling(torch.nn.Module):
    """A ball under gravity with drag, as a tuple (height, velocity)."""

    def __init__(self):
        super().__init__()
        self.gravity = torch.nn.Parameter(torch.tensor([9.8], dtype=torch.float64))
        self.drag = torch.nn.Parameter(torch.tensor([0.3], dtype=torch.float64))

    def forward(self, t, state):
        _, velocity = state
        return velocity, -self.gravity - self.drag * velocity + 0.1 * t


def hits_the_ground(t, state):
    return state[0].sum()


def is_late(t, state):
    return t - 0.7


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("event_fn", [hits_the_ground, is_late])
@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED_GRID, *ADAMS])
def test_equal_to_back_propagation(method, event_fn, reverse):
    def solve(odeint, **kwargs):
        func = Falling()
        height = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
        velocity = torch.tensor([-4.0 if reverse else 1.0], dtype=torch.float64, requires_grad=True)
        t0 = torch.tensor(1.5 if reverse else 0.2, dtype=torch.float64, requires_grad=True)
        options = {"first_step": 0.05} if method in ADAPTIVE else {"step_size": 0.013}
        event_t, ys = torchdiffeq.odeint_event(
            func,
            (height, velocity),
            t0,
            event_fn=event_fn,
            reverse_time=reverse,
            odeint_interface=odeint,
            method=method,
            atol=1e-4,
            rtol=1e-4,
            options=options,
            **kwargs,
        )
        loss = event_t * 0.3 + ys[1][-1].square().sum() + ys[0][0].sum() + ys[0][-1].sum()
        wrt = (height, velocity, t0, func.gravity, func.drag)
        return event_t, ys, torch.autograd.grad(loss, wrt)

    host_t, host, expected = solve(torchdiffeq.odeint)
    ours_t, ours, found = solve(odeint_adjoint, adjoint_method="aca")
    assert torch.equal(host_t, ours_t)
    assert all(torch.equal(a, b) for a, b in zip(host, ours, strict=True))
    assert distance(found, expected) <= 1e-11


@pytest.mark.parametrize("interp", ["linear", "cubic"])
def test_a_fixed_grid_interpolates_its_event(interp):
    def solve(odeint, **kwargs):
        y0 = torch.tensor([1.0, 0.5], dtype=torch.float64, requires_grad=True)
        t = torch.tensor([0.0, 1.0], dtype=torch.float64, requires_grad=True)
        options = {"step_size": 0.3, "interp": interp}
        _, ys = odeint(
            lambda t, y: torch.stack([y[1] + t, -y[0]]),
            y0,
            t,
            method="rk4",
            options=options,
            event_fn=lambda t, y: y[1],
            **kwargs,
        )
        return ys, torch.autograd.grad(ys.square().sum(), (y0, t))

    (host, expected), (ours, found) = solve(torchdiffeq.odeint), solve(odeint_adjoint, **ACA)
    assert torch.equal(host, ours)
    assert distance(found, expected) <= 1e-12


def test_a_bouncing_ball_against_its_closed_form():
    """Three bounces as in torchdiffeq's example; the time of the last in height, gravity and restitution."""
    height = torch.tensor([10.0], dtype=torch.float64, requires_grad=True)
    gravity = torch.tensor([9.8], dtype=torch.float64, requires_grad=True)
    restitution = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)

    def fall(t, state):
        return state[1], -gravity.expand_as(state[1])

    time, state = torch.tensor([0.0], dtype=torch.float64), (height, torch.zeros_like(height))
    for _ in range(3):
        time, path = torchdiffeq.odeint_event(
            fall,
            state,
            time,
            event_fn=hits_the_ground,
            odeint_interface=odeint_adjoint,
            adjoint_method="aca",
            adjoint_params=(gravity,),
            rtol=1e-10,
            atol=1e-10,
        )
        state = (path[0][-1] + 1e-7, -restitution * path[1][-1])
    found = torch.autograd.grad(time.sum(), (height, gravity, restitution))

    h, g, r = height.item(), gravity.item(), restitution.item()
    bounces = 1 + 2 * r + 2 * r * r
    once = math.sqrt(2 * h / g)
    assert time.item() == pytest.approx(once * bounces, abs=1e-6)
    expected = (once * bounces / (2 * h), -once * bounces / (2 * g), once * (2 + 4 * r))
    for got, want in zip(found, expected, strict=True):
        assert got.item() == pytest.approx(want, rel=1e-5)


def test_an_event_at_the_start():
    y0 = torch.tensor([0.0, 2.0], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    settings = {"event_fn": lambda t, y: y[0] * y[0], **ACA}
    event_t, ys = odeint_adjoint(lambda t, y: y.flip(0), y0, t, **settings)
    assert event_t == 0
    for create_graph in (False, True):
        (gradient,) = torch.autograd.grad(ys.sum(), y0, retain_graph=True, create_graph=create_graph)
        assert torch.equal(gradient, torch.full_like(y0, 2.0))


class Threshold(torch.nn.Module):
    """y = h, for a decay y' = -ay from 1: at t = log(1/h)/a."""

    def __init__(self):
        super().__init__()
        self.h = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, t, y):
        return y[0] - self.h


class Decay(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

    def forward(self, t, y):
        return -self.a * y


WAYS = {
    "dopri5": {"adjoint_method": "aca"},
    "checkpoints": {"adjoint_method": "aca", "adjoint_options": {"checkpoints": 1}},
    "rk4": {"adjoint_method": "aca", "method": "rk4", "options": {"step_size": 0.05, "interp": "cubic"}},
    "quadrature": {"adjoint_method": "quadrature"},
}


def ends(func, event_fn, y0=None, reverse=False, **call):
    y0 = torch.ones(1, dtype=torch.float64) if y0 is None else y0
    call = {"rtol": 1e-10, "atol": 1e-10, **call}
    t0 = torch.tensor(0.0, dtype=torch.float64)
    interface = {"event_fn": event_fn, "odeint_interface": odeint_adjoint, "reverse_time": reverse}
    return torchdiffeq.odeint_event(func, y0, t0, **interface, **call)


def assert_near(found, *expected):
    assert distance(found, [torch.full_like(x, value) for x, value in zip(found, expected, strict=True)]) < 1e-6


@pytest.mark.parametrize("way", WAYS)
def test_parameters_of_the_event(way):
    """dt/dh = -1/(ha), dt/da = -log(1/h)/a²; the state there is h."""
    func, event_fn, h, a = Decay(), Threshold(), 0.3, 1.3
    time, ys = ends(func, event_fn, **WAYS[way])
    found = torch.autograd.grad(time, (event_fn.h, func.a), retain_graph=True)
    assert_near(found, -1 / (h * a), -math.log(1 / h) / a**2)
    found = torch.autograd.grad(ys[-1].sum(), (event_fn.h, func.a))
    assert_near(found, 1.0, 0.0)


@pytest.mark.parametrize("way", WAYS)
def test_the_time_that_odeint_adjoint_returns(way):
    """And the state there is one at a fixed time."""
    func, h, a = Decay(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True), 1.3
    y0, t = torch.ones(1, dtype=torch.float64, requires_grad=True), torch.tensor([0.0, 1.0], dtype=torch.float64)
    call = {"rtol": 1e-10, "atol": 1e-10, "event_fn": lambda t, y: y - h, **WAYS[way]}
    time, ys = odeint_adjoint(func, y0, t, **call)
    found = torch.autograd.grad(time, (h, func.a, y0), retain_graph=True)
    assert_near(found, -1 / (0.3 * a), -math.log(1 / 0.3) / a**2, 1 / a)
    found = torch.autograd.grad(ys[-1].sum(), (h, func.a), allow_unused=True)
    assert found[0] is None
    assert_near(found[1:], -0.3 * math.log(1 / 0.3) / a)


def test_in_reverse_for_a_tuple_and_a_computed_level():
    """y' = -ay backward from 1 reaches 1/h."""
    func, h = Decay(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    level, y0 = 1 / h, (torch.ones(1, dtype=torch.float64),)
    time, _ = ends(lambda t, y: (func(t, y[0]),), lambda t, y: y[0] - level, y0, reverse=True, adjoint_method="aca")
    assert time.item() == pytest.approx(-math.log(1 / 0.3) / 1.3)
    assert_near(torch.autograd.grad(time.sum(), (h, func.a)), 1 / (0.3 * 1.3), math.log(1 / 0.3) / 1.3**2)


def test_an_event_of_the_initial_state():
    """y = y0/2 does not depend on y0."""
    y0 = torch.ones(1, dtype=torch.float64, requires_grad=True)
    time, _ = ends(Decay(), lambda t, y: y[0] - y0[0] / 2, y0, adjoint_method="aca")
    (found,) = torch.autograd.grad(time, y0)
    assert found.abs().item() < 1e-8


def test_parameters_of_the_event_under_install():
    func, event_fn = Decay(), Threshold()
    y0, t = torch.ones(1, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    with install():
        time, _ = torchdiffeq.odeint(func, y0, t, rtol=1e-10, atol=1e-10, event_fn=event_fn, method="aca")
    assert_near(torch.autograd.grad(time, (event_fn.h,)), -1 / (0.3 * 1.3))


@pytest.mark.parametrize("of_event", [False, True])
def test_what_is_named_counts_for_the_event_as_well(of_event):
    func, event_fn = Decay(), Threshold()
    named = (event_fn.h,) if of_event else (func.a,)
    time, _ = ends(func, event_fn, adjoint_method="aca", adjoint_params=named)
    h, a = torch.autograd.grad(time, (event_fn.h, func.a), allow_unused=True)
    assert_near([h if of_event else a], -1 / (0.3 * 1.3) if of_event else -math.log(1 / 0.3) / 1.3**2)
    assert (a if of_event else h) is None


def test_second_derivatives_of_the_time_are_refused():
    func, event_fn = Decay(), Threshold()
    time, _ = ends(func, event_fn, adjoint_method="aca")
    with pytest.raises(UnsupportedError, match=r"second derivatives .* of the time of an event"):
        torch.autograd.grad(time, func.a, create_graph=True)


def test_the_host_s_own_events_stay_as_they_are():
    """Also once a solve of ours has had an event with parameters."""

    def gradient():
        func, t0 = Decay(), torch.tensor(0.0, dtype=torch.float64)
        settings = {"rtol": 1e-10, "atol": 1e-10, "event_fn": lambda t, y: y[0] - 0.3}
        time, ys = torchdiffeq.odeint_event(func, torch.ones(1, dtype=torch.float64), t0, **settings)
        return torch.autograd.grad(time + ys.sum(), func.a)[0]

    before = gradient()
    ends(Decay(), Threshold(), adjoint_method="aca")
    assert torch.equal(gradient(), before)
