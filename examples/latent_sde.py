"""
A latent SDE
============

A stochastic differential equation as a prior over functions, fitted to a few noisy points by variational inference.
The posterior's drift is learned; ``logqp=True`` lets torchsde integrate the path's relative entropy to the prior
along the way. The replay takes the very steps and increments of the solve again, for Itô as it stands: no other SDE
is solved backward, and no Brownian path is queried in reverse.
"""

import os

import matplotlib.pyplot as plt
import torch

from steptape.torch import record_solves, sdeint_adjoint

ITERATIONS = 2 if os.environ.get("STEPTAPE_EXAMPLES") == "small" else 150
torch.manual_seed(0)

times = torch.tensor([0.0, 0.3, 0.6, 1.0, 1.6, 2.0])
observed = torch.tensor([0.0, 0.55, 0.8, 0.4, -0.6, -0.9])
with_end = torch.cat([times, torch.tensor([3.5])])
NOISE = 0.1


class Posterior(torch.nn.Module):
    """An Ornstein–Uhlenbeck prior (``h``) and a learned drift (``f``) under the same diffusion."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
        self.start = torch.nn.Parameter(torch.tensor([0.0, -2.0]))

    def f(self, t, y):
        t = t.expand_as(y)
        return self.net(torch.cat([torch.sin(t), torch.cos(t), y], 1))

    def h(self, t, y):
        return -y

    def g(self, t, y):
        return torch.full_like(y, 0.7)

    def sample(self, count, ts):
        """Paths from the posterior and what they cost: the relative entropy of start and path to the prior's."""
        mean, log_std = self.start
        y0 = mean + log_std.exp() * torch.randn(count, 1)
        ys, path_cost = sdeint_adjoint(
            self, y0, ts, method="euler", dt=0.05, logqp=True, adjoint_method="aca", adjoint_options={"checkpoints": 16}
        )
        start_cost = 0.5 * (mean**2 + (2 * log_std).exp() - 1) - log_std
        return ys[..., 0], path_cost.sum(0).mean() + start_cost


posterior = Posterior()
optimizer = torch.optim.Adam(posterior.parameters(), lr=2e-2)
bounds = []
with record_solves() as solves:
    for _ in range(ITERATIONS):
        ys, cost = posterior.sample(64, with_end)
        fit = torch.distributions.Normal(ys[:-1], NOISE).log_prob(observed[:, None]).sum(0).mean()
        loss = cost - fit
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bounds.append(-loss.item())
print(solves[-1])

# %%
# The posterior goes by the points. After the last one, at t = 2, nothing pulls but the prior, through the relative
# entropy of the rest of the path: it turns back towards the prior's mean, which is 0.

ts = torch.linspace(0.0, 3.5, 76)
with torch.no_grad():
    paths, _ = posterior.sample(200, ts)
low, middle, high = paths.quantile(torch.tensor([0.05, 0.5, 0.95]), dim=1)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
axes[0].fill_between(ts, low, high, color="C0", alpha=0.2, label="90 % of the posterior")
axes[0].plot(ts, paths[:, :5], "C0", lw=0.6, alpha=0.7)
axes[0].plot(ts, middle, "C0", label="median")
axes[0].plot(times, observed, "C3o", label="observed")
axes[0].set(xlabel="t")
axes[0].legend(frameon=False, fontsize=8)
axes[1].plot(bounds, lw=0.8)
axes[1].set(xlabel="iteration", ylabel="evidence lower bound")
plt.show()
