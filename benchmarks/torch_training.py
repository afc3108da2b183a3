"""The trainings in PyTorch: a latent ODE on irregular series, a flow to two moons, a latent SDE on Lorenz paths."""

import functools
import itertools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torchsde
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from benchmarks import meters, training
from benchmarks.fields import Field
from benchmarks.measurements import Cells, Scope
from benchmarks.papers import latent_ode
from benchmarks.peers import METHODS, ours
from benchmarks.tasks.data import DENSITIES
from benchmarks.tasks.measure import Gradient
from benchmarks.training import Model
from benchmarks.ways import GRAPHS, HOST, HOST_ADJOINT, OURS, QUADRATURE
from steptape.torch import sdeint_adjoint

Solve = Callable[..., Any]
_FLOAT = torch.float64


def _model(net: nn.Module, loss: Callable[..., Tensor], batches: Sequence[Any], test: Any, counts: Counter) -> Model:
    """``loss``: of a batch; ``counts``: of the field's evaluations."""
    weights = list(net.parameters())

    def gradient(vector: np.ndarray, batch: Any) -> Gradient:
        vector_to_parameters(torch.tensor(vector), weights)
        value = loss(*batch)
        found = torch.autograd.grad(value, weights)
        return Gradient(value.item(), torch.cat([x.flatten() for x in found]).numpy())

    def count(vector: np.ndarray, batch: Any) -> int:
        before = counts["evaluations"]
        gradient(vector, batch)
        return counts["evaluations"] - before

    @torch.no_grad()
    def held_out(vector: np.ndarray) -> float:
        vector_to_parameters(torch.tensor(vector), weights)
        return loss(*test).item()

    def memory(vector: np.ndarray) -> int:
        with meters.Account() as account:
            gradient(vector, batches[0])
        return account.peak

    start = parameters_to_vector(weights).detach().numpy().copy()
    return Model(start, batches, gradient, count, held_out, memory)


def _of_odes(build: Callable[[Solve, int], Model], seed: int) -> dict[str, Model]:
    """The ways; a budget is a quarter of what back-propagation takes at the start."""
    base = build(METHODS[HOST].solve, seed)
    ways = {way: METHODS[way].solve for way in (HOST_ADJOINT, f"{HOST_ADJOINT}, seminorm", OURS, GRAPHS)}
    ways[f"{OURS}, memory: 1/4"] = ours(memory=base.memory(base.start) // 4)
    ways[f"{OURS}, {QUADRATURE}"] = ours("quadrature")
    return {HOST: base, **{way: build(solve, seed) for way, solve in ways.items()}}


def _how(rtol: float, atol: float) -> dict[str, Any]:
    # Back-propagation differentiates torchdiffeq's guess of the first step as well, where none is given.
    return {"rtol": rtol, "atol": atol, "method": "dopri5", "options": {"first_step": 0.05}}


def _oscillators(solve: Solve, seed: int) -> Model:
    torch.manual_seed(seed)
    times = torch.cat([torch.zeros(1), (5 * torch.rand(14)).sort().values]).to(_FLOAT)
    (_, seen, mask), (truth, *test) = latent_ode.data(times), latent_ode.data(times)
    net = latent_ode.LatentODE(functools.partial(solve, **_how(1e-6, 1e-6)), nn.RNN, 16).to(_FLOAT)

    def loss(wanted: Tensor, weight: Tensor, *given: Tensor) -> Tensor:
        return ((net(times, *given) - wanted).square() * weight).sum() / weight.sum()

    held_out = truth, torch.ones_like(truth), *test
    return _model(net, loss, [(seen, mask, seen, mask)], held_out, net.field.counts)


def _moons(solve: Solve, seed: int) -> Model:
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    points = torch.tensor(DENSITIES["moons"](2048, random))
    batches = [(points[torch.tensor(random.choice(1024, 128))],) for _ in range(64)]
    layers = [nn.Linear(*ends, dtype=_FLOAT) for ends in itertools.pairwise((3, 32, 32, 2))]

    def slope(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        # Of each unit vector the tangent goes along, for the exact trace.
        x, along = torch.cat([state[0], t.expand(len(state[0]), 1)], 1), torch.eye(2, 3, dtype=_FLOAT)[:, None]
        for i, layer in enumerate(layers):
            x, along = layer(x), along @ layer.weight.T
            if i < 2:
                x = torch.tanh(x)
                along = along * (1 - x.square())
        return x, -along.diagonal(dim1=0, dim2=2).sum(1)

    field = Field(slope, *layers)

    def loss(points: Tensor) -> Tensor:
        start, times = (points, points.new_zeros(len(points))), torch.tensor([0.0, 1.0], dtype=_FLOAT)
        z, change = (x[-1] for x in solve(field, start, times, **_how(1e-4, 1e-6)))
        return (z.square().sum(1) / 2 + math.log(2 * math.pi) + change).mean()

    return _model(field, loss, batches, (points[1024:],), field.counts)


class LatentSDE(nn.Module):
    """That of torchsde's example on the Lorenz system, smaller: a GRU reads the series backward as the context.

    The loss is the negative evidence bound, over the numbers in a series.
    """

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, solve: Solve, times: Tensor):
        super().__init__()
        self.solve, self.times, self.counts = solve, times, Counter[str]()
        self.encoder, self.first = nn.GRU(3, 16), nn.Linear(16, 8)
        self.posterior, self.prior = _net(4 + 16, 4), _net(4, 4)
        self.pitch, self.level = (nn.Parameter(torch.zeros(4)) for _ in range(2))
        self.middle, self.width = (nn.Parameter(torch.zeros(4)) for _ in range(2))
        self.reader = nn.Linear(4, 3)

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        self.counts["evaluations"] += 1
        place = min(int(torch.searchsorted(self.times, t, right=True)), len(self.times) - 1)
        return self.posterior(torch.cat([y, self.context[place]], 1))

    def h(self, t: Tensor, y: Tensor) -> Tensor:
        return self.prior(y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """The diffusion of each entry by itself, which the host's adjoint is right for."""
        return torch.sigmoid(self.pitch * y + self.level)

    def loss(self, series: Tensor, entropy: int) -> Tensor:
        """Of series (times, batch, 3), on the Brownian path of a number."""
        self.context = self.encoder(series.flip(0))[0].flip(0)
        mean, log_width = self.first(self.context[0]).chunk(2, 1)
        random = torch.Generator().manual_seed(entropy)
        z0 = mean + log_width.exp() * torch.randn(mean.shape, generator=random, dtype=_FLOAT)
        start, prior = (
            torch.distributions.Normal(m, w.exp()) for m, w in ((mean, log_width), (self.middle, self.width))
        )
        dt, size = float(self.times[1]) / 2, (len(z0), 5)
        bm = torchsde.BrownianInterval(0.0, float(self.times[-1]), size=size, dtype=_FLOAT, dt=dt, entropy=entropy)
        z, path = self.solve(self, z0, self.times, bm=bm, method="euler", dt=dt, logqp=True)
        seen = torch.distributions.Normal(self.reader(z), 0.1).log_prob(series).sum((0, 2))
        entropies = path.sum(0) + torch.distributions.kl_divergence(start, prior).sum(1)
        return (entropies - seen).mean() / (3 * len(series))


def _net(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 32), nn.Softplus(), nn.Linear(32, outputs))


def _lorenz(solve: Solve, seed: int) -> Model:
    torch.manual_seed(seed)
    times = torch.linspace(0, 1, 21, dtype=_FLOAT)
    series = _series(320, len(times))
    net = LatentSDE(solve, times).to(_FLOAT)
    batches = [(series[:, torch.randperm(256)[:32]], n) for n in range(256)]
    return _model(net, net.loss, batches, (series[:, 256:], 1000), net.counts)


def _series(count: int, length: int) -> Tensor:
    """The Lorenz system with noise, by Euler's method: (length, count, 3), each entry of mean 0 and deviation 1."""
    x, found = torch.randn(count, 3, dtype=_FLOAT), []
    for n in range(20 * length):
        found += [x] * (n % 20 == 0)
        a, b, c = x.T
        slope = torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], 1)
        x = x + slope / 400 + 0.15 * x * torch.randn(count, 3, dtype=_FLOAT) / 20
    series = torch.stack(found)
    series = (series - series.mean((0, 1))) / series.std((0, 1))
    return series + 0.01 * torch.randn_like(series)


def _of_sdes(seed: int) -> dict[str, Model]:
    warnings.filterwarnings("ignore", module="torchsde")

    def host(sde: LatentSDE, *given: Any, **settings: Any) -> Any:
        # It has to be told of the context.
        return torchsde.sdeint_adjoint(sde, *given, **settings, adjoint_params=(sde.context, *sde.parameters()))

    ways: dict[str, Solve] = {"sdeint": torchsde.sdeint, "sdeint_adjoint": host}
    for way, options in {OURS: {}, GRAPHS: {"memory": "graphs"}, f"{OURS}, checkpoints=8": {"checkpoints": 8}}.items():
        ways[way] = functools.partial(sdeint_adjoint, adjoint_method="aca", adjoint_options=options)
    return {way: _lorenz(solve, seed) for way, solve in ways.items()}


PLANS = {
    "latent ODE": training.Plan(
        "an RNN, an ODE of dimension 6 and a reader on 100 damped oscillators, each seen at a random half of 15 "
        "irregular times; dopri5, tolerance 1e-6, first step 0.05",
        "MSE of 100 other series against the truth at all times",
        functools.partial(_of_odes, _oscillators),
        100,
        0.02,
    ),
    "flow": training.Plan(
        "a continuous normalising flow to two moons, width 32, exact trace, batch 128; dopri5, tolerances 1e-4, 1e-6, "
        "first step 0.05",
        "nats of 1024 other points",
        functools.partial(_of_odes, _moons),
        120,
        0.02,
    ),
    "latent SDE": training.Plan(
        "a GRU, an Itô SDE of dimension 4 and a reader on 256 noisy paths of the Lorenz system, batch 32; euler, "
        "40 steps, 21 outputs",
        "negative evidence bound of 64 other paths, per number",
        _of_sdes,
        100,
        0.02,
    ),
}


def cells(scope: Scope) -> Cells:
    return training.cells(PLANS, scope)
