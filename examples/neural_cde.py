"""
A neural CDE with torchcde, unedited
====================================

A controlled differential equation reads a path: irregular samples become a spline, and the hidden state moves with
it. ``torchcde.cdeint`` calls torchdiffeq for us and knows nothing of steptape. Under ``install()`` its
``adjoint_method`` may be ``"aca"``, and the gradient reaches the spline's coefficients as well, without being listed.

The task: does a noisy spiral turn left or right, when four of ten samples are missing?
"""

import math
import os

import matplotlib.pyplot as plt
import torch
import torchcde

from steptape.torch import install, record_solves

ITERATIONS = 2 if os.environ.get("STEPTAPE_EXAMPLES") == "small" else 40
torch.manual_seed(0)


def spirals(count, length=40):
    """Paths (time, x, y) of which four of ten samples are missing, and whether each turns left."""
    t = torch.linspace(0, 1, length).expand(count, length)
    left = (torch.rand(count) < 0.5).float()
    phase = 2 * math.pi * torch.rand(count, 1)
    angle = phase + 4 * math.pi * t * (2 * left[:, None] - 1)
    points = torch.stack([torch.cos(angle), torch.sin(angle)], -1) * (1 - 0.5 * t[..., None])
    points = points + 0.1 * torch.randn_like(points)
    points[torch.rand(count, length) < 0.4] = math.nan
    return torch.cat([t[..., None], points], -1), left


class Field(torch.nn.Module):
    def __init__(self, channels, hidden):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(hidden, 32), torch.nn.ReLU(), torch.nn.Linear(32, hidden * channels), torch.nn.Tanh()
        )
        self.shape = (hidden, channels)

    def forward(self, t, z):
        return self.net(z).view(*z.shape[:-1], *self.shape)


field, first, last = Field(3, 8), torch.nn.Linear(3, 8), torch.nn.Linear(8, 1)
parameters = [*field.parameters(), *first.parameters(), *last.parameters()]


def logits(coefficients, **way):
    path = torchcde.CubicSpline(coefficients)
    z0 = first(path.evaluate(path.interval[0]))
    z = torchcde.cdeint(path, field, z0, path.interval, method="rk4", options={"step_size": 1.0}, **way)
    return last(z[:, -1]).squeeze(-1)


# %%
# Training. Nothing of torchcde is edited.

paths, left = spirals(256)
coefficients = torchcde.natural_cubic_coeffs(paths)
optimizer = torch.optim.Adam(parameters, lr=1e-2)
losses = []
with install(), record_solves() as solves:
    for _ in range(ITERATIONS):
        batch = torch.randint(len(left), (64,))
        found = logits(coefficients[batch], adjoint_method="aca")
        loss = torch.nn.functional.binary_cross_entropy_with_logits(found, left[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
print(solves[-1])

# %%
# Which samples did the decision rest on? That is the gradient in the path's coefficients, a tensor that the spline
# holds. torchcde warns that they would receive none where they are not listed; with the replay they do.

test, truth = spirals(200)
watched = torchcde.natural_cubic_coeffs(test).requires_grad_()
with install():
    found = logits(watched, adjoint_method="aca")
    [slope] = torch.autograd.grad(found.sum(), watched)
accuracy = ((found > 0).float() == truth).float().mean()
print(f"{accuracy:.1%} of new spirals are told right")

figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), constrained_layout=True)
for i, colour in ((int(truth.argmax()), "C0"), (int(truth.argmin()), "C1")):
    spline = torchcde.CubicSpline(watched[i].detach())
    path = torch.stack([spline.evaluate(s) for s in torch.linspace(*spline.interval, 200)])
    axes[0].plot(*path[:, 1:].T, color=colour, lw=0.6, alpha=0.6)
    axes[0].plot(*test[i, :, 1:].T, ".", color=colour, label="left" if truth[i] else "right")
axes[0].set(title="what is seen, and its spline", aspect="equal")
axes[0].legend(frameon=False)
axes[1].plot(losses)
axes[1].set(xlabel="iteration", title="loss")
axes[2].plot(slope.norm(dim=-1).mean(0))
axes[2].set(xlabel="piece of the path", title="weight of the path's pieces")
plt.show()
