"""The calls of torchdiffeq's example scripts, on models of our own: a latent ODE, a CNF, a bouncing ball."""

import math

import pytest
import torch
import torchdiffeq

from steptape_helpers.torch_clients import assert_trains_as_by_back_propagation, first_step

# By the script's `--adjoint`, how one reaches its call.
ADJOINT = {"odeint_adjoint": {}, "odeint": {"override": True}}


class Field(torch.nn.Module):
    """With activations in place, and a count of its evaluations."""

    def __init__(self):
        super().__init__()
        self.inner, self.elu, self.outer = torch.nn.Linear(4, 12), torch.nn.ELU(inplace=True), torch.nn.Linear(12, 4)
        self.nfe = 0

    def forward(self, t, x):
        self.nfe += 1
        return self.outer(self.elu(self.inner(x)))


class LatentOde(torch.nn.Module):
    """A recurrent encoder gives the initial state."""

    def __init__(self):
        super().__init__()
        self.encoder, self.func, self.decoder = torch.nn.RNNCell(2, 8), Field(), torch.nn.Linear(4, 2)
        self.code = torch.nn.Linear(8, 8)

    def initial(self, observed):
        h = torch.zeros(len(observed), 8)
        for step in reversed(range(observed.shape[1])):
            h = self.encoder(observed[:, step], h)
        mean, logvar = self.code(h).chunk(2, dim=1)
        return mean + torch.randn_like(mean) * (0.5 * logvar).exp()


@pytest.mark.parametrize("adjoint", ADJOINT)
@pytest.mark.parametrize("guess_held", [True, False])
def test_latent_ode(adjoint, guess_held):
    """The script names no first step. Its guess is held by a replay, and by a call that names the same."""
    times = torch.linspace(0.0, 2.0, 10)

    def make(held=None):
        model = LatentOde()

        def loss():
            observed = torch.randn(6, 10, 2)
            z0 = model.initial(observed)
            if held is None:
                predicted = getattr(torchdiffeq, adjoint)(model.func, z0, times)
            else:
                options = {"first_step": first_step(model.func, z0, times)} if held else {}
                predicted = torchdiffeq.odeint(model.func, z0, times, options=options)
            return (model.decoder(predicted.permute(1, 0, 2)) - observed).square().mean()

        return model, loss

    check(f"torchdiffeq, latent_ode.py, {adjoint}", make, guess_held, **ADJOINT[adjoint])


class Cnf(torch.nn.Module):
    """Weights from a net of time; the trace by `autograd.grad`, of a state that func itself marks."""

    def __init__(self):
        super().__init__()
        self.hyper = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4 * (2 + 2 + 1)))

    def forward(self, t, states):
        z, _ = states
        with torch.set_grad_enabled(True):
            z.requires_grad_(True)
            inner, outer, bias = self.hyper(t.reshape(1, 1)).flatten().split([8, 8, 4])
            dz_dt = torch.tanh(z @ inner.view(2, 4) + bias) @ outer.view(4, 2)
            columns = [torch.autograd.grad(dz_dt[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(2)]
        return dz_dt, -sum(columns).view(-1, 1)


@pytest.mark.parametrize("adjoint", ADJOINT)
@pytest.mark.parametrize("guess_held", [True, False])
def test_cnf(adjoint, guess_held):
    call = {"atol": 1e-5, "rtol": 1e-5, "method": "dopri5"}

    def make(held=None):
        func, prior = Cnf(), torch.distributions.MultivariateNormal(torch.zeros(2), 0.1 * torch.eye(2))

        def loss():
            state, times = (torch.randn(6, 2), torch.zeros(6, 1)), torch.tensor([2.0, 0.0])
            if held is None:
                z, log_density = getattr(torchdiffeq, adjoint)(func, state, times, **call)
            else:
                options = {"first_step": first_step(func, state, times, **call)} if held else {}
                z, log_density = torchdiffeq.odeint(func, state, times, options=options, **call)
            return -(prior.log_prob(z[-1]) - log_density[-1].view(-1)).mean(0)

        return func, loss

    check(f"torchdiffeq, cnf.py, {adjoint}", make, guess_held, **ADJOINT[adjoint])


def check(name, make, guess_held, **setting):
    """By the same first step exactly; the script's own back-propagation differs by its derivative of the guess."""
    if guess_held:
        assert_trains_as_by_back_propagation(name, make, {"held": True}, **setting)
        return
    name += ", beside the derivative of the guess"
    assert_trains_as_by_back_propagation(name, make, {"held": False}, at_most=1e-2, **setting)


class BouncingBall(torch.nn.Module):
    """Each bounce starts where, and when, the last one ended."""

    def __init__(self, odeint):
        super().__init__()
        start = {"gravity": 9.8, "log_radius": math.log(0.2), "position": 10.0, "velocity": 0.0, "absorption": 0.2}
        for name, value in start.items():
            setattr(self, name, torch.nn.Parameter(torch.tensor([value])))
        self.t0 = torch.nn.Parameter(torch.tensor([0.0]))
        self.odeint = odeint

    def forward(self, t, state):
        _, velocity, log_radius = state
        return velocity, -self.gravity, torch.zeros_like(log_radius)

    def event(self, t, state):
        return state[0] - torch.exp(state[2])

    def last_time(self, bounces):
        t, state = self.t0, (self.position, self.velocity, self.log_radius)
        for _ in range(bounces):
            t, solution = torchdiffeq.odeint_event(
                self,
                state,
                t,
                event_fn=self.event,
                reverse_time=False,
                atol=1e-8,
                rtol=1e-8,
                odeint_interface=self.odeint,
            )
            position, velocity, log_radius = (x[-1] for x in solution)
            state = position + 1e-7, -velocity * (1 - self.absorption), log_radius
        return t


@pytest.mark.parametrize("adjoint", ADJOINT)
def test_bouncing_ball(adjoint):
    def make(adjoint=adjoint):
        model = BouncingBall(getattr(torchdiffeq, adjoint))
        return model, lambda: model.last_time(3).sum()

    name = f"torchdiffeq, bouncing_ball.py, {adjoint}"
    assert_trains_as_by_back_propagation(name, make, {"adjoint": "odeint"}, solves=3, **ADJOINT[adjoint])
