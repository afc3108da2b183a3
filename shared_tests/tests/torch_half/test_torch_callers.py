"""Callers of torchdiffeq with nothing changed but an option: torchcde, and the host's own example scripts."""

import pytest
import torch
import torchdiffeq

from steptape.shared_tests.oracles.distance import distance
from steptape.torch import install

ACA = {"adjoint_method": "aca"}


@pytest.fixture(autouse=True)
def _same_random_numbers():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def gradients(module):
    return [p.grad for p in module.parameters()]


class CDEFunc(torch.nn.Module):
    """As in torchcde's example: (batch, hidden) to (batch, hidden, input channels)."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.channels, self.hidden = channels, hidden
        self.linear1 = torch.nn.Linear(hidden, 16)
        self.linear2 = torch.nn.Linear(16, channels * hidden)

    def forward(self, t, z):
        z = self.linear2(self.linear1(z).relu()).tanh()
        return z.view(*z.shape[:-1], self.hidden, self.channels)


class NeuralCDE(torch.nn.Module):
    """As in torchcde's example: path to initial state, controlled solve, readout."""

    def __init__(self, channels=3, hidden=4):
        super().__init__()
        self.func = CDEFunc(channels, hidden)
        self.initial = torch.nn.Linear(channels, hidden)
        self.readout = torch.nn.Linear(hidden, 1)

    def forward(self, torchcde, coeffs, **kwargs):
        X = torchcde.CubicSpline(coeffs)
        z0 = self.initial(X.evaluate(X.interval[0]))
        z_t = torchcde.cdeint(X=X, func=self.func, z0=z0, t=X.interval, **kwargs)
        return self.readout(z_t[..., -1, :]).squeeze(-1)


def train_neural_cde(torchcde, **kwargs):
    """One training step: the loss, the gradients, and the parameters after it."""
    torch.manual_seed(0)
    model, x = NeuralCDE().double(), torch.rand(5, 10, 3, dtype=torch.float64).cumsum(1)
    coeffs = torchcde.hermite_cubic_coefficients_with_backward_differences(x)
    labels = (x[:, -1, 0] > x[:, -1, 1]).double()
    optimizer = torch.optim.Adam(model.parameters())
    loss = torch.nn.functional.binary_cross_entropy_with_logits(model(torchcde, coeffs, **kwargs), labels)
    loss.backward()
    optimizer.step()
    return loss, gradients(model), list(model.parameters())


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("rk4", {"step_size": 0.5}),
        ("rk4", {}),
        ("dopri5", {"first_step": 0.1}),
        ("dopri5", {"first_step": 0.1, "jump_t": torch.arange(1.0, 9.0, dtype=torch.float64)}),
    ],
    ids=str,
)
def test_torchcde(method, options):
    torchcde = pytest.importorskip("torchcde")
    loss, expected, stepped = train_neural_cde(torchcde, adjoint=False, method=method, options=options)
    with install():
        calls = [
            train_neural_cde(torchcde, **ACA, method=method, options=options),
            train_neural_cde(torchcde, adjoint=False, method="aca", options={"method": method, **options}),
        ]
    for ours, found, ours_stepped in calls:
        assert torch.equal(loss, ours)
        assert distance(found, expected) <= 1e-12
        assert distance(ours_stepped, stepped) <= 1e-9  # Adam divides a gradient by its own size


def test_torchcde_with_a_path_that_is_learned():
    torchcde = pytest.importorskip("torchcde")

    def solve(**kwargs):
        torch.manual_seed(0)
        func, coeffs = CDEFunc(3, 4).double(), torch.rand(5, 9, 12, dtype=torch.float64, requires_grad=True)
        X, z0 = torchcde.CubicSpline(coeffs), torch.ones(5, 4, dtype=torch.float64)
        if kwargs:
            kwargs["adjoint_params"] = (*func.parameters(), coeffs)
        z_t = torchcde.cdeint(X=X, func=func, z0=z0, t=X.interval, adjoint=bool(kwargs), method="midpoint", **kwargs)
        return torch.autograd.grad(z_t.square().sum(), (coeffs, *func.parameters()))

    with install():
        assert distance(solve(**ACA), solve()) <= 1e-12


def both(script):
    """What a script finds with the host's back-propagation, and with the option added to its adjoint calls."""
    expected = script(torchdiffeq.odeint)
    with install():
        found = script(torchdiffeq.odeint_adjoint, **ACA)
    return found, expected


class ODEFunc(torch.nn.Module):
    """As in ode_demo.py."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 50), torch.nn.Tanh(), torch.nn.Linear(50, 2))

    def forward(self, t, y):
        return self.net(y**3)


def ode_demo(odeint, **option):
    """Fit a spiral to batches of pieces of it: the losses, and the gradients of the last."""
    torch.manual_seed(0)
    t = torch.linspace(0.0, 2.5, 100, dtype=torch.float64)
    true_a = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=torch.float64)
    with torch.no_grad():
        true_y = torchdiffeq.odeint(lambda t, y: y**3 @ true_a, t.new_tensor([[2.0, 0.0]]), t, method="dopri5")
    func = ODEFunc().double()
    optimizer = torch.optim.RMSprop(func.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        s = torch.randint(90, (20,))
        batch_y = torch.stack([true_y[s + i] for i in range(10)], dim=0)
        optimizer.zero_grad()
        pred_y = odeint(func, true_y[s], t[:10], options={"first_step": 0.02}, **option)
        loss = torch.mean(torch.abs(pred_y - batch_y))
        loss.backward()
        optimizer.step()
        losses.append(loss)
    return losses, gradients(func)


def test_ode_demo():
    (losses, found), (expected_losses, expected) = both(ode_demo)
    assert distance(losses, expected_losses) <= 1e-12
    assert distance(found, expected) <= 1e-10  # the third step's, after two of RMSprop


class LatentODEFunc(torch.nn.Module):
    """As in latent_ode.py, counting its evaluations as there."""

    def __init__(self, latent_dim=4, nhidden=20):
        super().__init__()
        self.elu = torch.nn.ELU(inplace=True)
        self.fc1 = torch.nn.Linear(latent_dim, nhidden)
        self.fc2 = torch.nn.Linear(nhidden, nhidden)
        self.fc3 = torch.nn.Linear(nhidden, latent_dim)
        self.nfe = 0

    def forward(self, t, x):
        self.nfe += 1
        return self.fc3(self.elu(self.fc2(self.elu(self.fc1(x)))))


class RecognitionRNN(torch.nn.Module):
    """As in latent_ode.py."""

    def __init__(self, latent_dim=4, obs_dim=2, nhidden=25):
        super().__init__()
        self.i2h = torch.nn.Linear(obs_dim + nhidden, nhidden)
        self.h2o = torch.nn.Linear(nhidden, latent_dim * 2)

    def forward(self, x, h):
        h = torch.tanh(self.i2h(torch.cat((x, h), dim=1)))
        return self.h2o(h), h


def latent_ode(odeint, **option):
    """One step of a variational autoencoder: encode, draw, solve, decode."""
    torch.manual_seed(0)
    func, rec, dec = LatentODEFunc().double(), RecognitionRNN().double(), torch.nn.Linear(4, 2).double()
    samp_trajs, samp_ts = torch.randn(8, 12, 2, dtype=torch.float64), torch.linspace(0, 1, 12, dtype=torch.float64)
    h = torch.zeros(8, 25, dtype=torch.float64)
    for t in reversed(range(12)):
        out, h = rec(samp_trajs[:, t, :], h)
    mean, logvar = out[:, :4], out[:, 4:]
    z0 = torch.randn_like(mean) * torch.exp(0.5 * logvar) + mean
    pred_z = odeint(func, z0, samp_ts, options={"first_step": 0.02}, **option).permute(1, 0, 2)
    loss = (dec(pred_z) - samp_trajs).square().sum() - 0.5 * (1 + logvar - mean**2 - logvar.exp()).sum()
    loss.backward()
    assert func.nfe > 0
    return [*gradients(func), *gradients(rec), *gradients(dec)]


def test_latent_ode():
    assert distance(*both(latent_ode)) <= 1e-12


class HyperNetwork(torch.nn.Module):
    """As in cnf.py: the weights of a planar flow as a function of time."""

    def __init__(self, in_out_dim=2, hidden_dim=8, width=6):
        super().__init__()
        self.in_out_dim, self.width, self.block = in_out_dim, width, width * in_out_dim
        self.fc1 = torch.nn.Linear(1, hidden_dim)
        self.fc2 = torch.nn.Linear(hidden_dim, 3 * self.block + width)

    def forward(self, t):
        params = self.fc2(torch.tanh(self.fc1(t.reshape(1, 1)))).reshape(-1)
        W = params[: self.block].reshape(self.width, self.in_out_dim, 1)
        U = params[self.block : 2 * self.block].reshape(self.width, 1, self.in_out_dim)
        G = params[2 * self.block : 3 * self.block].reshape(self.width, 1, self.in_out_dim)
        return W, params[3 * self.block :].reshape(self.width, 1, 1), U * torch.sigmoid(G)


class CNF(torch.nn.Module):
    """As in cnf.py: a flow with its log-density, whose divergence func differentiates by itself."""

    def __init__(self):
        super().__init__()
        self.hyper_net = HyperNetwork()

    def forward(self, t, states):
        z = states[0]
        with torch.set_grad_enabled(True):
            z.requires_grad_(True)
            W, B, U = self.hyper_net(t)
            Z = torch.unsqueeze(z, 0).repeat(self.hyper_net.width, 1, 1)
            dz_dt = torch.matmul(torch.tanh(torch.matmul(Z, W) + B), U).mean(0)
            trace = 0.0
            for i in range(z.shape[1]):
                trace += torch.autograd.grad(dz_dt[:, i].sum(), z, create_graph=True)[0].contiguous()[:, i].contiguous()
        return dz_dt, -trace.view(z.shape[0], 1)


def cnf(odeint, **option):
    """One maximum-likelihood step, backward in time."""
    torch.manual_seed(0)
    func, x = CNF().double(), torch.randn(16, 2, dtype=torch.float64)
    logp_diff_t1 = torch.zeros(16, 1, dtype=torch.float64)
    t = torch.tensor([1.0, 0.0], dtype=torch.float64)
    settings = {"atol": 1e-5, "rtol": 1e-5, "method": "dopri5", "options": {"first_step": 0.05}}
    z_t, logp_diff_t = odeint(func, (x, logp_diff_t1), t, **settings, **option)
    normal = torch.distributions.MultivariateNormal(x.new_zeros(2), 0.1 * torch.eye(2, dtype=torch.float64))
    loss = -(normal.log_prob(z_t[-1]) - logp_diff_t[-1].view(-1)).mean(0)
    loss.backward()
    return gradients(func)


def test_cnf():
    assert distance(*both(cnf)) <= 1e-12
