"""
A continuous normalising flow on two moons
==========================================

A flow carries a Gaussian to the data by an ODE, and the change of log-density is the integral of the field's
divergence along the way. Training solves the ODE back from the data for each batch. The state is a tuple, of which
the second part is that integral; in two dimensions the divergence is taken exactly, by autograd inside the field.
"""

import math
import os

import matplotlib.pyplot as plt
import torch

from steptape.torch import odeint_adjoint

ITERATIONS = 3 if os.environ.get("STEPTAPE_EXAMPLES") == "small" else 250
torch.manual_seed(0)


def moons(count):
    """Points of two interleaved half circles."""
    angle = math.pi * torch.rand(count)
    upper = torch.rand(count) < 0.5
    x = torch.where(upper, torch.cos(angle), 1 - torch.cos(angle)) - 0.5
    y = torch.where(upper, torch.sin(angle), 0.5 - torch.sin(angle)) - 0.25
    return 1.5 * torch.stack([x, y], 1) + 0.08 * torch.randn(count, 2)


net = torch.nn.Sequential(
    torch.nn.Linear(3, 48), torch.nn.Tanh(), torch.nn.Linear(48, 48), torch.nn.Tanh(), torch.nn.Linear(48, 2)
)


def field(t, state):
    """The velocity, and minus its divergence: one row of the Jacobian for each of the two channels."""
    z = state[0]
    with torch.enable_grad():
        z = z if z.requires_grad else z.detach().requires_grad_()
        velocity = net(torch.cat([z, t.expand(len(z), 1)], 1))
        rows = [torch.autograd.grad(velocity[:, i].sum(), z, create_graph=True)[0][:, i] for i in range(2)]
    return velocity, -sum(rows)


def log_density(x):
    """log p(x): solve from the data at t = 1 back to the Gaussian at t = 0."""
    times = torch.tensor([1.0, 0.0])
    state = (x, torch.zeros(len(x)))
    z, integral = odeint_adjoint(field, state, times, method="rk4", options={"step_size": 0.1}, adjoint_method="aca")
    gaussian = -z[-1].square().sum(1) / 2 - math.log(2 * math.pi)
    return gaussian - integral[-1]


# %%
# The integral's sign: solved from 1 to 0, it is the integral of the divergence over [0, 1], which log p(x) loses.

optimizer = torch.optim.Adam(net.parameters(), lr=8e-3)
losses = []
for _ in range(ITERATIONS):
    loss = -log_density(moons(256)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"nats per point: {losses[0]:.2f} before, {losses[-1]:.2f} after")

# %%
# The density on a grid, by the same function; and that it integrates to 1, which nothing in training asked for.

side = torch.linspace(-3.2, 3.2, 60 if ITERATIONS > 3 else 12)
grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1).reshape(-1, 2)
with torch.no_grad():
    density = log_density(grid).exp().reshape(len(side), len(side))
print(f"the density integrates to {density.sum() * (side[1] - side[0]) ** 2:.3f}")

figure, axes = plt.subplots(1, 3, figsize=(10, 3.3), constrained_layout=True)
axes[0].plot(*moons(600).T, "C7.", ms=2)
axes[1].pcolormesh(side, side, density, shading="gouraud", cmap="magma")
for axis, title in zip(axes, ("data", "density of the flow"), strict=False):
    axis.set(title=title, aspect="equal", xlim=(-3.2, 3.2), ylim=(-3.2, 3.2))
axes[2].plot(losses, lw=0.8)
axes[2].set(xlabel="iteration", ylabel="nats per point")
plt.show()
