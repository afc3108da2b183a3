"""
A bouncing ball that stops where one learns
===========================================

An event ends the solve where a function of the state is zero, and the time of it has a gradient. Here a ball falls and
bounces. What it keeps of its speed at each bounce is unknown, and so is the height of the ground, the threshold of the
event. All that is observed is *when* it hits the ground, and that tells both.
"""

import os

import matplotlib.pyplot as plt
import torch
from torchdiffeq import odeint, odeint_event

from steptape.torch import odeint_adjoint

ITERATIONS = 2 if os.environ.get("STEPTAPE_EXAMPLES") == "small" else 60
torch.set_default_dtype(torch.float64)


class Ball(torch.nn.Module):
    """Height and speed under gravity, above a ground at some height."""

    def __init__(self, bounce, ground):
        super().__init__()
        self.bounce, self.ground = (torch.nn.Parameter(torch.tensor(x)) for x in (bounce, ground))

    def forward(self, t, state):
        _, speed = state
        return speed, torch.full_like(speed, -9.81)

    def event(self, t, state):
        return state[0] - self.ground

    def hits(self, count):
        """The times at which the ball touches the ground."""
        t, state, times = torch.tensor(0.0), (torch.tensor(10.0), torch.tensor(0.0)), []
        for _ in range(count):
            t, ends = odeint_event(
                self,
                state,
                t,
                event_fn=self.event,
                odeint_interface=odeint_adjoint,
                method="dopri5",
                rtol=1e-8,
                atol=1e-8,
                adjoint_method="aca",
            )
            times.append(t)
            height, speed = (x[-1] for x in ends)
            # A little above the ground, so that the next solve does not end where it begins.
            state = (height + 1e-6, -self.bounce * speed)
        return torch.stack(times)


with torch.no_grad():
    observed = Ball(0.8, 0.5).hits(5)

# %%
# The event's function has a parameter of its own, the threshold ``ground``. Its gradient is found like any other:
# nothing is listed. Gauss–Newton takes few iterations, and the Jacobian is five rows of the same replay.

ball = Ball(0.6, 1.5)
parameters = tuple(ball.parameters())
history = []
for _ in range(ITERATIONS):
    times = ball.hits(5)
    residual = times - observed
    history.append([*(p.item() for p in parameters), residual.square().mean().sqrt().item()])
    if history[-1][-1] < 1e-9:
        break
    rows = [torch.stack(torch.autograd.grad(r, parameters, retain_graph=True)) for r in residual]
    step = torch.linalg.lstsq(torch.stack(rows), residual.detach()).solution
    with torch.no_grad():
        for p, s in zip(parameters, step.clamp(-0.5, 0.5), strict=True):
            p -= s
print("bounce {:.4f}, ground at {:.4f} m; error of the times {:.0e} s".format(*history[-1]))

# %%
# What the fit went through, and the two balls.


def heights(ball, end):
    """Times and heights to draw, bounce by bounce."""
    t, state, found = torch.tensor(0.0), (torch.tensor(10.0), torch.tensor(0.0)), []
    for hit in ball.hits(5):
        ts = torch.linspace(0.0, 1.0, 40) * (hit - t) + t
        ys = odeint(ball, state, ts)
        found.append(torch.stack([ts, ys[0]]))
        t, state = hit, (ys[0][-1] + 1e-6, -ball.bounce * ys[1][-1])
    return torch.cat(found, 1).detach()


figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
axes[0].plot(*heights(Ball(0.6, 1.5), 5), "C7--", label="before")
axes[0].plot(*heights(ball, 5), "C0", label="fitted")
axes[0].plot(observed, torch.full((5,), 0.5), "C3x", label="observed hits")
axes[0].set(xlabel="t / s", ylabel="height / m")
axes[0].legend(frameon=False)
axes[1].semilogy([row[-1] for row in history], "C0o-")
axes[1].set(xlabel="iteration of Gauss–Newton", ylabel="error of the times / s")
plt.show()
