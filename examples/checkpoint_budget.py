"""
A checkpoint budget at work
===========================

How memory is spent: the states a plan keeps while a solve goes on, and what it costs to get the others back. The
solve does not know its length in advance; when the budget is full, the state goes whose loss costs least.
"""

import os

import matplotlib.pyplot as plt
import numpy as np
import torch

from steptape.torch import odeint_adjoint, record_solves

STEPS = 40 if os.environ.get("STEPTAPE_EXAMPLES") == "small" else 300
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(32, 128), torch.nn.Tanh(), torch.nn.Linear(128, 32))
y0, t = torch.randn(16, 32), torch.tensor([0.0, 1.0])

# %%
# Each evaluation of the field is noted with its time: that shows the order in which the solve, and the replay, work.


def traced(options):
    """The times of all evaluations in their order, the gradient, and what was held."""
    seen = []

    def field(t, y):
        seen.append(t.item())
        return net(y)

    with record_solves() as solves:
        how = {"method": "euler", "options": {"step_size": 1 / STEPS}, "adjoint_method": "aca"}
        y = odeint_adjoint(field, y0, t, **how, adjoint_options=options)
        gradient = torch.autograd.grad(y[-1].square().sum(), tuple(net.parameters()))
    return np.array(seen), torch.cat([g.reshape(-1) for g in gradient]), solves[0]


budgets = {"all states": {}, "24 checkpoints": {"checkpoints": 24}, "6 checkpoints": {"checkpoints": 6}}
runs = {name: traced(options) for name, options in budgets.items()}
for name, (_, gradient, solve) in runs.items():
    apart = (gradient - runs["all states"][1]).norm() / gradient.norm()
    print(
        f"{name}: {solve.bytes_held / 2**10:.0f} KiB, {solve.evaluations_backward} evaluations back; {apart:.0e} apart"
    )

# %%
# Left: the way through time. All go forward once; with all states each step is taken once more, from the last to the
# first; with fewer, stretches are computed again from the kept state before them. Right: the price list.

figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
for colour, (name, (seen, _, _)) in zip(("C0", "C1", "C3"), runs.items(), strict=True):
    axes[0].plot(seen, color=colour, lw=1, label=name)
axes[0].set(xlabel="evaluations of the field, in their order", ylabel="their time t")
axes[0].legend(frameon=False, fontsize=8)

ks = sorted({max(3, round(STEPS ** (i / 9))) for i in range(3, 10)})
held, extra = zip(
    *((s.bytes_held / 2**10, s.evaluations_backward / STEPS) for *_, s in (traced({"checkpoints": k}) for k in ks)),
    strict=True,
)
axes[1].semilogx(held, extra, "ko-", ms=4)
for k, x, y in zip(ks, held, extra, strict=True):
    axes[1].annotate(f"{k}", (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8)
axes[1].set(xlabel="KiB held (numbers: checkpoints)", ylabel="backward evaluations per step")
plt.show()
