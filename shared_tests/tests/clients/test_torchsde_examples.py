"""The calls of torchsde's example scripts, on models of our own: two latent SDEs, and an SDE as a GAN."""

from itertools import pairwise

import pytest
import torch
import torchsde

from steptape_helpers.clients import installed
from steptape_helpers.torch_clients import assert_trains_as_by_back_propagation

torchcde = installed("torchcde")

ADJOINT = {"sdeint_adjoint": {}, "sdeint": {"override": True}}


def net(*sizes):
    layers = [torch.nn.Linear(*pair) for pair in pairwise(sizes)]
    return torch.nn.Sequential(layers[0], *(x for layer in layers[1:] for x in (torch.nn.Softplus(), layer)))


class Posterior(torchsde.SDEIto):
    """Its drift and diffusion of a state with the log-ratio have names of their own."""

    def __init__(self):
        super().__init__(noise_type="diagonal")
        self.net = net(3, 12, 1)
        self.mean, self.logvar = (torch.nn.Parameter(torch.full((1, 1), x)) for x in (0.1, -0.5))

    def f_aug(self, t, y):
        y = y[:, :1]
        f = self.net(torch.cat((t.sin().expand_as(y), t.cos().expand_as(y), y), dim=1))
        return torch.cat([f, 0.5 * ((f + y) / 0.5).square()], dim=1)

    def g_aug(self, t, y):
        return torch.tensor([[0.5, 0.0]]).repeat(len(y), 1)


@pytest.mark.parametrize("adjoint", ADJOINT)
@pytest.mark.parametrize("call", [{"method": "euler", "adaptive": False}, {"method": "milstein", "adaptive": True}])
def test_latent_sde(adjoint, call):
    def make(adjoint=adjoint):
        model = Posterior()

        def loss():
            y0 = model.mean + torch.randn(6, 1) * (0.5 * model.logvar).exp()
            ys = getattr(torchsde, adjoint)(
                sde=model,
                y0=torch.cat([y0, torch.zeros(6, 1)], dim=1),
                ts=torch.linspace(0.0, 1.0, 5),
                dt=0.05,
                rtol=1e-2,
                atol=1e-2,
                names={"drift": "f_aug", "diffusion": "g_aug"},
                **call,
            )
            return ys[:, :, 0].square().mean() + ys[-1, :, 1].mean()

        return model, loss

    name = f"torchsde, latent_sde.py, {adjoint}, {call['method']}{', adaptive' * call['adaptive']}"
    assert_trains_as_by_back_propagation(name, make, {"adjoint": "sdeint"}, **ADJOINT[adjoint])


class Lorenz(torch.nn.Module):
    """A drift that reads an encoder's context, at the place of the time."""

    sde_type, noise_type = "ito", "diagonal"

    def __init__(self):
        super().__init__()
        self.encoder, self.start = torch.nn.GRU(3, 8), net(8, 4)
        self.f_net, self.h = net(2 + 8, 12, 2), lambda t, y: self.h_net(y)
        self.h_net, self.g_nets = net(2, 12, 2), torch.nn.ModuleList([net(1, 4, 1) for _ in range(2)])

    def f(self, t, y):
        place = min(torch.searchsorted(self.ts, t, right=True), len(self.ts) - 1)
        return self.f_net(torch.cat((y, self.context[place]), dim=1))

    def g(self, t, y):
        columns = [g(x) for g, x in zip(self.g_nets, y.split(1, dim=1), strict=True)]
        return torch.cat(columns, dim=1).sigmoid()

    def solve(self, data, ts, adjoint):
        self.ts, self.context = ts, self.encoder(data.flip(0))[0].flip(0)
        mean, logstd = self.start(self.context[0]).chunk(2, dim=1)
        z0 = mean + logstd.exp() * torch.randn_like(mean)
        named = {}
        if adjoint == "sdeint_adjoint":
            nets = (self.f_net, self.g_nets, self.h_net)
            named = {"adjoint_params": (self.context, *(p for net in nets for p in net.parameters()))}
        return getattr(torchsde, adjoint)(self, z0, ts, dt=0.05, logqp=True, method="euler", **named)


@pytest.mark.parametrize("adjoint", ADJOINT)
def test_latent_sde_lorenz(adjoint):
    def make(adjoint=adjoint):
        model, ts = Lorenz(), torch.linspace(0.0, 1.0, 6)

        def loss():
            zs, log_ratio = model.solve(torch.randn(6, 4, 3), ts, adjoint)
            return zs.square().mean() + log_ratio.sum(0).mean()

        return model, loss

    name = f"torchsde, latent_sde_lorenz.py, {adjoint}"
    assert_trains_as_by_back_propagation(name, make, {"adjoint": "sdeint"}, **ADJOINT[adjoint])


class GeneratorField(torch.nn.Module):
    sde_type, noise_type = "stratonovich", "general"

    def __init__(self):
        super().__init__()
        self.drift, self.diffusion = net(1 + 4, 8, 4), net(1 + 4, 8, 4 * 3)

    def f_and_g(self, t, x):
        tx = torch.cat([t.expand(len(x), 1), x], dim=1)
        return self.drift(tx).tanh(), self.diffusion(tx).tanh().view(len(x), 4, 3)


class DiscriminatorField(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net(1 + 4, 8, 4 * 2)

    def forward(self, t, h):
        return self.net(torch.cat([t.expand(len(h), 1), h], dim=1)).tanh().view(len(h), 4, 2)


class Gan(torch.nn.Module):
    """A generator by torchsde, whose samples a neural CDE by torchcde judges."""

    def __init__(self, by_adjoint):
        super().__init__()
        self.generator, self.discriminator = GeneratorField(), DiscriminatorField()
        self.start, self.read, self.judge, self.score = net(2, 4), net(4, 1), net(2, 4), net(4, 1)
        self.solve = torchsde.sdeint_adjoint if by_adjoint else torchsde.sdeint
        self.named = {"adjoint_method": "adjoint_reversible_heun"} if by_adjoint else {}

    def generated(self, ts, size):
        xs = self.solve(
            self.generator, self.start(torch.randn(size, 2)), ts, method="reversible_heun", dt=1.0, **self.named
        )
        ys = self.read(xs.transpose(0, 1))
        return torchcde.linear_interpolation_coeffs(torch.cat([ts[None, :, None].expand(size, -1, 1), ys], dim=2))

    def forward(self, coefficients):
        path, named = torchcde.LinearInterpolation(coefficients), {"adjoint": False}
        if self.named:
            named = {**self.named, "adjoint_params": (coefficients, *self.discriminator.parameters())}
        h0 = self.judge(path.evaluate(path.interval[0]))
        call = {"method": "reversible_heun", "backend": "torchsde", "dt": 1.0, **named}
        return self.score(torchcde.cdeint(path, self.discriminator, h0, path.interval, **call)[:, -1]).mean()


@pytest.mark.filterwarnings("ignore::steptape.SteptapeWarning")
def test_sde_gan():
    """Both of its solves name an adjoint of torchsde's, and options of it."""

    def make(by_adjoint=True):
        model, ts = Gan(by_adjoint), torch.arange(8.0)

        def loss():
            real = torch.cat([ts[None, :, None].expand(6, -1, 1), torch.randn(6, 8, 1)], dim=2)
            return model(model.generated(ts, 6)) - model(torchcde.linear_interpolation_coeffs(real))

        return model, loss

    name = "torchsde, sde_gan.py, with torchcde"
    assert_trains_as_by_back_propagation(name, make, {"by_adjoint": False}, solves=3, override=True)
