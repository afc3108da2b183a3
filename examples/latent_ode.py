"""
A latent ODE on irregular data
==============================

Each series is seen at times of its own, a dozen of them, with noise. A recurrent encoder reads a series backwards
with the gaps between its samples, and proposes where it starts in a latent space; an ODE carries it on, and a decoder
reads it off.

All series of a batch are solved together, at the union of their times: hundreds of outputs. torchdiffeq's adjoint
would solve backward from each output to the one before. In the replay an output is read off inside the step it lies
in.
"""

import os

import matplotlib.pyplot as plt
import torch

from steptape.torch import odeint_adjoint, record_solves

SMALL = os.environ.get("STEPTAPE_EXAMPLES") == "small"
ITERATIONS, SEEN, LATENT = (2 if SMALL else 900), 12, 4
torch.manual_seed(0)


def series(count):
    """Damped waves of different phase and size, at sorted times of their own in [0, 2]."""
    times = 2 * torch.rand(count, SEEN).sort(1).values
    phase, size = 6.3 * torch.rand(count, 1), 0.5 + torch.rand(count, 1)

    def wave(t):
        return size * torch.exp(-0.3 * t) * torch.cos(5 * t + phase)

    return times, wave(times) + 0.05 * torch.randn(count, SEEN), wave


field = torch.nn.Sequential(torch.nn.Linear(LATENT, 32), torch.nn.Tanh(), torch.nn.Linear(32, LATENT))
encoder, start = torch.nn.GRU(2, 24, batch_first=True), torch.nn.Linear(24, LATENT)
decoder = torch.nn.Linear(LATENT, 1)
parameters = [p for part in (field, encoder, start, decoder) for p in part.parameters()]


def latent_start(times, values):
    gaps = torch.diff(times, dim=1, prepend=times.new_zeros(len(times), 1))
    _, state = encoder(torch.stack([gaps, values], -1).flip(1))
    return start(state[0])


def decoded(z0, times):
    """The series at all ``times``, shape (times, series)."""
    z = odeint_adjoint(lambda t, z: field(z), z0, times, rtol=1e-4, atol=1e-4, method="dopri5", adjoint_method="aca")
    return decoder(z).squeeze(-1)


# %%
# Training: the places of a series' own times in the union pick its values out.

optimizer = torch.optim.Adam(parameters, lr=1e-2)
losses = []
with record_solves() as solves:
    for _ in range(ITERATIONS):
        times, values, _ = series(32)
        union, places = torch.cat([torch.zeros(1), times.reshape(-1)]).unique(return_inverse=True)
        found = decoded(latent_start(times, values), union)
        own = found.gather(0, places[1:].view_as(times).T).T
        loss = (own - values).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
print(f"{len(union)} outputs; {solves[-1]}")

# %%
# New series: the solve reads off what lies between the samples.

times, values, wave = series(4)
with torch.no_grad():
    fine = torch.linspace(0.0, 2.0, 100)
    found = decoded(latent_start(times, values), fine)
figure, axes = plt.subplots(1, 4, figsize=(11, 2.6), constrained_layout=True, sharey=True)
for i, axis in enumerate(axes[:3]):
    axis.plot(fine, wave(fine.expand(4, -1))[i], "C7--", lw=1, label="truth")
    axis.plot(fine, found[:, i], "C0", label="latent ODE")
    axis.plot(times[i], values[i], "C3.", label="seen")
    axis.set(xlabel="t")
axes[0].legend(frameon=False, fontsize=8)
axes[3].remove()
axis = figure.add_subplot(1, 4, 4)
axis.semilogy(losses, lw=0.8)
axis.axhline(0.05**2, color="grey", lw=0.8, ls=":")
axis.set(xlabel="iteration", title="loss; dotted: the noise")
plt.show()
