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


def ends(event_fn, y0=None, func=lambda t, y: -1.3 * y, **call):
    y0 = torch.ones(1, dtype=torch.float64, requires_grad=True) if y0 is None else y0
    call = {"adjoint_method": "aca", "adjoint_params": (), "rtol": 1e-9, "atol": 1e-9, **call}
    t0 = torch.tensor(0.0, dtype=torch.float64)
    return torchdiffeq.odeint_event(func, y0, t0, event_fn=event_fn, odeint_interface=odeint_adjoint, **call)


@pytest.mark.parametrize(
    "call",
    [{}, {"method": "rk4", "options": {"step_size": 0.1}}, {"adjoint_method": "quadrature"}],
    ids=["dopri5", "rk4", "quadrature"],
)
@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
def test_parameters_of_the_event_are_refused(call, named):
    event_fn = Threshold()
    params = tuple(event_fn.parameters()) if named else ()
    with pytest.raises(UnsupportedError, match=r"event_fn depends on tensors.*channels of the state.*or detach"):
        ends(event_fn, adjoint_params=params, **call)


def test_parameters_of_the_event_are_refused_under_install():
    y0, t = torch.ones(1, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    call = {"method": "aca", "options": {"adjoint_params": ()}}
    with install(), pytest.raises(UnsupportedError, match="event_fn depends on tensors"):
        torchdiffeq.odeint(lambda t, y: -y, y0, t, event_fn=Threshold(), **call)


def test_an_event_of_the_initial_state_is_refused():
    y0 = torch.ones(1, dtype=torch.float64, requires_grad=True)
    with pytest.raises(UnsupportedError, match="event_fn depends on tensors"):
        ends(lambda t, y: y[0] - y0[0] / 2, y0)


def test_the_ways_out_of_parameters_of_the_event():
    event_fn = Threshold()
    with torch.no_grad():
        assert ends(event_fn)[0].item() == pytest.approx(math.log(1 / 0.3) / 1.3)
    ends(lambda t, y: y[0] - event_fn.h.detach())
    # As a channel of the state: dt/dh = -1/(ha).
    state = (torch.ones(1, dtype=torch.float64), event_fn.h[None])
    time, _ = ends(lambda t, y: (y[0] - y[1]).sum(), state, lambda t, y: (-1.3 * y[0], torch.zeros_like(y[1])))
    (found,) = torch.autograd.grad(time, event_fn.h)
    assert found.item() == pytest.approx(-1 / (0.3 * 1.3), rel=1e-6)
