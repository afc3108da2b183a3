"""Hooks on parameters see the whole gradient, once, as in back-propagation; parts of it pass them by."""

import threading

import pytest
import torch
import torchdiffeq

from steptape import GradientError
from steptape.torch import install, odeint_adjoint

T = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
Y0 = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)
OPTIONS = {"dopri5": {"first_step": 0.05}, "rk4": {"step_size": 0.1}, "implicit_adams": {"step_size": 0.1}}
HOOKS = {
    "double": lambda g: 2 * g,
    "clip": lambda g: g.clamp(-0.1, 0.1),
    "mask": lambda g: g * (torch.arange(g.numel()) % 2).view_as(g),
    "look": lambda g: None,
}


class Field(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(3, 3, dtype=torch.float64)
        with torch.no_grad():
            self.net.weight.copy_(torch.linspace(-1, 1, 9).view(3, 3))
            self.net.bias.copy_(torch.linspace(0, 1, 3))

    def forward(self, t, y):
        return self.net(y).tanh()


def hooked(hook):
    field, calls = Field(), []
    for p in field.parameters():
        p.register_hook(lambda g: calls.append(None) or hook(g))
    return field, calls


def gradients(odeint, field, method="dopri5", **adjoint):
    loss = odeint(field, Y0, T, method=method, options=OPTIONS[method], **adjoint).sin().sum()
    loss.backward()
    return torch.cat([p.grad.reshape(-1) for p in field.parameters()])


@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
@pytest.mark.parametrize("method", OPTIONS)
def test_once_on_the_whole_gradient(method, hook):
    field, calls = hooked(hook)
    expected = gradients(torchdiffeq.odeint, field, method)
    ours, counted = hooked(hook)
    found = gradients(odeint_adjoint, ours, method, adjoint_method="aca")
    assert len(counted) == len(calls) == 2
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("keep", [{"graph": "stage"}, {"checkpoints": 2}], ids=repr)
def test_with_less_memory(keep):
    expected = gradients(torchdiffeq.odeint, hooked(HOOKS["double"])[0])
    found = gradients(odeint_adjoint, hooked(HOOKS["double"])[0], adjoint_method="aca", adjoint_options=keep)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("nodes", [None, 3])
def test_by_quadrature(nodes):
    settings = {"adjoint_method": "quadrature", "adjoint_options": {"nodes": nodes}}
    plain = gradients(odeint_adjoint, Field(), **settings)
    field, calls = hooked(HOOKS["double"])
    assert torch.equal(gradients(odeint_adjoint, field, **settings), 2 * plain)
    assert len(calls) == 2


def test_under_install():
    expected = gradients(torchdiffeq.odeint, hooked(HOOKS["double"])[0])
    with install():
        field, calls = hooked(HOOKS["double"])
        torchdiffeq.odeint(field, Y0, T, method="aca", options=OPTIONS["dopri5"]).sin().sum().backward()
    assert len(calls) == 2
    torch.testing.assert_close(torch.cat([p.grad.reshape(-1) for p in field.parameters()]), expected)


@pytest.mark.parametrize("method", OPTIONS)
def test_in_second_derivatives(method):
    def penalty(odeint, **adjoint):
        field, calls = hooked(HOOKS["double"])
        y0 = Y0.clone().requires_grad_()
        loss = odeint(field, y0, T, method=method, options=OPTIONS[method], **adjoint).sin().sum()
        first = torch.autograd.grad(loss, (y0, *field.parameters()), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (y0, *field.parameters()))
        return torch.cat([g.reshape(-1) for g in (*first, *second)]), len(calls)

    (expected, count), (found, counted) = penalty(torchdiffeq.odeint), penalty(odeint_adjoint, adjoint_method="aca")
    assert counted == count == 4
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


def test_what_retain_grad_keeps():
    def retained(odeint, **adjoint):
        scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        weight = torch.eye(3, dtype=torch.float64) * scale
        weight.retain_grad()
        weight.register_hook(lambda g: 3 * g)
        adjoint = {**adjoint, "adjoint_params": (weight,)} if adjoint else {}
        odeint(lambda t, y: (y @ weight).sin(), Y0, T, options=OPTIONS["dopri5"], **adjoint).sum().backward()
        return torch.cat([weight.grad.reshape(-1), scale.grad[None]])

    expected, found = retained(torchdiffeq.odeint), retained(odeint_adjoint, adjoint_method="aca")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_hooks_are_the_user_s_own_again():
    field = Field()
    handle = field.net.weight.register_hook(HOOKS["double"])
    before = dict(field.net.weight._backward_hooks)
    gradients(odeint_adjoint, field, adjoint_method="aca")
    assert dict(field.net.weight._backward_hooks) == before
    handle.remove()
    assert not field.net.weight._backward_hooks


def test_another_thread_s_gradient_meets_its_hooks():
    """While one thread replays, another one takes the gradient in the same parameter."""
    field, seen = Field(), []
    solved, entered, done = threading.Event(), threading.Event(), threading.Event()

    class Waiting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.field = field

        def forward(self, t, y):
            if solved.is_set() and not entered.is_set():
                entered.set()
                assert done.wait(20)
            return self.field(t, y)

    field.net.bias.register_hook(lambda g: seen.append(threading.get_ident()) or 2 * g)

    def other():
        entered.wait(20)
        (g,) = torch.autograd.grad(field.net.bias.sum(), field.net.bias)
        found.append(g)
        done.set()

    found = []
    thread = threading.Thread(target=other)
    thread.start()
    ys = odeint_adjoint(Waiting(), Y0, T, options=OPTIONS["dopri5"], adjoint_method="aca")
    solved.set()
    torch.autograd.grad(ys.sum(), field.net.bias)
    thread.join()
    assert entered.is_set()
    assert torch.equal(found[0], torch.full((3,), 2.0, dtype=torch.float64))
    assert seen == [thread.ident, threading.get_ident()]


def test_hooks_on_modules_run_at_each_evaluation():
    def calls(odeint, **adjoint):
        field, seen = Field(), []
        field.net.register_full_backward_hook(lambda *_: seen.append(None))
        y0 = Y0.clone().requires_grad_()
        odeint(field, y0, T, method="rk4", **adjoint).sum().backward()
        return len(seen)

    assert calls(odeint_adjoint, adjoint_method="aca") == calls(torchdiffeq.odeint) == 8


def clipped_in(where):
    """A field that clips a cotangent of each evaluation."""

    class Clipping(Field):
        def forward(self, t, y):
            x = self.net(y.view_as(y) if where == "at a view of the state" else y)
            if where == "at a function of one's own":
                return Clip.apply(x).tanh()
            if x.requires_grad:
                x.register_hook(HOOKS["clip"])
            return x.tanh()

    return Clipping()


class Clip(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return HOOKS["clip"](g)


@pytest.mark.parametrize("memory", ["states", "graphs"])
@pytest.mark.parametrize("where", ["at a view of the state", "inside", "at a function of one's own"])
@pytest.mark.parametrize("method", OPTIONS)
def test_each_evaluation_s_cotangent_is_clipped_by_itself(method, where, memory):
    if (method, memory) == ("implicit_adams", "graphs"):
        pytest.skip("its steps keep no graphs")
    expected = gradients(torchdiffeq.odeint, clipped_in(where), method)
    keep = {"adjoint_method": "aca", "adjoint_options": {"memory": memory}}
    found = gradients(odeint_adjoint, clipped_in(where), method, **keep)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("memory", ["states", "graphs"])
def test_a_hook_on_the_state_is_refused_where_it_would_be_first_put_on_a_later_one(memory):
    """Before the solve, since the first evaluation is looked at from a state that requires a gradient, too.

    Where graphs are asked for, the host takes over, if no parameters are named.
    """

    def field(t, y):
        if y.requires_grad:
            y.register_hook(HOOKS["clip"])
        return net(y)

    net, keep = Field().net, {"adjoint_method": "aca", "adjoint_options": {"memory": memory}}
    with pytest.raises(GradientError, match="puts a hook on the state y itself"):
        odeint_adjoint(field, Y0, T, method="rk4", adjoint_params=tuple(net.parameters()), **keep)
