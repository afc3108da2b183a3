"""
Three bodies: masses from an orbit
==================================

The example of the ACA paper in which the model is physics: Newton's law for three bodies, of which the masses alone are
unknown. The orbits are observed; each step of training solves them anew and goes down the gradient. The set-up is the
paper's, with fewer points and iterations: the truth is 1.1, 1.1 and 0.9.
"""

import os

import matplotlib.pyplot as plt
import torch

from steptape.torch import odeint_adjoint, record_solves

ITERATIONS = 2 if os.environ.get("STEPTAPE_EXAMPLES") == "small" else 35
torch.set_default_dtype(torch.float64)

K1, K2 = 0.200484, 7.239324
TRUE = torch.tensor([1.1, 1.1, 0.9])
PLACES = torch.tensor([[0.0, 0.2, 0.0], [0.5, 0.0, 0.5], [0.0, 0.0, 0.5]])
SPEEDS = torch.tensor([[0.0, 0.1, 0.0], [0.0, 0.0, 0.1], [0.1, 0.0, 0.0]])
TIMES = torch.linspace(0.0, 1.0, 100)


def orbits(masses, times=TIMES):
    def newton(t, state):
        r, v = state
        apart = r[None] - r[:, None]
        cubes = apart.square().sum(-1, keepdim=True).add(torch.eye(3)[..., None]).pow(1.5)
        return K2 * v, K1 * (masses[None, :, None] * apart / cubes).sum(1)

    call = {"rtol": 1e-7, "atol": 1e-7, "method": "dopri5", "adjoint_method": "aca"}
    return odeint_adjoint(newton, (PLACES, SPEEDS), times, **call, adjoint_options={"memory": "graphs"})[0]


# %%
# The distance of a body to itself is 0, and 1 is added there: the force is 0 then, and so is its gradient.

with torch.no_grad():
    observed = orbits(TRUE)
masses = torch.tensor([0.95, 1.05, 1.02], requires_grad=True)
optimizer = torch.optim.Adam([masses], lr=0.1, betas=(0.5, 0.5))
decay = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.88)
history, losses = [], []
with record_solves() as solves:
    for _ in range(ITERATIONS):
        found = orbits(masses)
        loss = (0.01**TIMES * (found - observed).square().sum((1, 2))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        history.append(masses.detach().clone())
        losses.append(loss.item())
print(solves[-1])
print("masses:", [round(m, 5) for m in masses.tolist()])

# %%
# The orbits to t = 2, of which the second half was never seen: with the learned masses they go on as the true ones do.

times = torch.linspace(0.0, 2.0, 200)
with torch.no_grad():
    ahead, truth = orbits(masses, times), orbits(TRUE, times)
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), constrained_layout=True)
for i in range(3):
    axes[0].plot(*truth[:, i, 1:].T, f"C{i}", lw=3, alpha=0.25)
    axes[0].plot(*ahead[:, i, 1:].T, f"C{i}--", lw=1)
    axes[1].plot(torch.stack(history)[:, i], f"C{i}")
    axes[1].axhline(TRUE[i], color=f"C{i}", lw=0.8, ls=":")
axes[0].set(xlabel="y", ylabel="z", title="wide: truth; dashed: learned")
axes[1].set(xlabel="iteration", ylabel="mass; dotted: truth")
plt.show()
