"""
A neural ODE of a spiral
========================

The first example of torchdiffeq: learn the vector field of a spiral from points on it. Only the adjoint is another
one. With ``adjoint_method="aca"`` the gradient is that of back-propagation, to rounding, and what is held between the
passes is one small state per accepted step.
"""

import os

import matplotlib.pyplot as plt
import torch
from torchdiffeq import odeint

from steptape.torch import odeint_adjoint, record_solves

ITERATIONS = 5 if os.environ.get("STEPTAPE_EXAMPLES") == "small" else 500

# %%
# The data: a trajectory of dy/dt = A y³, which is that of torchdiffeq's own demonstration.

torch.manual_seed(0)
A = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
t = torch.linspace(0.0, 25.0, 400)
with torch.no_grad():
    truth = odeint(lambda t, y: y**3 @ A, torch.tensor([[2.0, 0.0]]), t)

# %%
# The model. It is trained on short pieces that begin anywhere on the spiral, a batch of them at a time.

net = torch.nn.Sequential(torch.nn.Linear(2, 50), torch.nn.Tanh(), torch.nn.Linear(50, 2))
for layer in net[::2]:
    torch.nn.init.normal_(layer.weight, std=0.1)
    torch.nn.init.zeros_(layer.bias)


def field(t, y):
    return net(y**3)


optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, ITERATIONS)
losses = []
with record_solves() as solves:
    for _ in range(ITERATIONS):
        start = torch.randint(0, len(t) - 10, (20,))
        wanted = torch.stack([truth[start + i] for i in range(10)])
        found = odeint_adjoint(field, wanted[0], t[:10], rtol=1e-5, atol=1e-5, method="dopri5", adjoint_method="aca")
        loss = (found - wanted).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        losses.append(loss.item())
print(solves[-1])

# %%
# The gradient, beside back-propagation's through the host's own solver. Both solves are given their first step:
# torchdiffeq's back-propagation would otherwise also differentiate its guess of it.

call = {"rtol": 1e-5, "atol": 1e-5, "method": "dopri5", "options": {"first_step": 0.05}}
gradients = []
for solve in (lambda *a: odeint(*a, **call), lambda *a: odeint_adjoint(*a, **call, adjoint_method="aca")):
    loss = (solve(field, wanted[0], t[:10]) - wanted).square().mean()
    gradients.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, tuple(net.parameters()))]))
difference = ((gradients[0] - gradients[1]).norm() / gradients[0].norm()).item()
print(f"relative difference in float32: {difference:.0e}")

# %%
# The whole spiral, solved from its start by the learned field, which has seen pieces of ten points alone.

with torch.no_grad():
    learned = odeint(field, truth[0], t)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), constrained_layout=True)
axes[0].plot(*truth[:, 0].T, "C7.", ms=3, label="data")
axes[0].plot(*learned[:, 0].T, "C0", label="learned")
axes[0].set(xlabel="$y_1$", ylabel="$y_2$", aspect="equal")
axes[0].legend(frameon=False, loc="center")
axes[1].semilogy(losses, "C0", lw=0.8)
axes[1].set(xlabel="iteration", ylabel="loss of a batch of pieces")
plt.show()
