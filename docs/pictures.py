"""The pictures of the pages: `python docs/pictures.py` writes them beside this file, in less than a minute."""

import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from scipy.integrate import solve_ivp

from steptape.torch import odeint_adjoint, record_solves

matplotlib.use("Agg")
import matplotlib.pyplot as plt

WAYS = {
    "aca": ({"adjoint_method": "aca"}, "C0", "o-"),
    "quadrature": ({"adjoint_method": "quadrature"}, "C2", "s-"),
    "the host's adjoint": ({"adjoint_options": {"max_num_steps": 400}}, "C3", "^--"),
}


def gradient(field, y0, end, tolerance, rate, method="dopri5", **way):
    """The gradient of the sum of squares of the end in y0 and a parameter, NaN where the host gives up."""
    t = torch.tensor([0.0, end])
    y0 = y0.clone().requires_grad_()
    try:
        y = odeint_adjoint(
            field, y0, t, rtol=tolerance, atol=tolerance, method=method, **{**way, "adjoint_params": (rate,)}
        )
        return torch.cat([x.reshape(-1) for x in torch.autograd.grad(y[-1].square().sum(), (y0, rate))])
    except (AssertionError, RuntimeError):
        return torch.full((y0.numel() + 1,), torch.nan)


def backward_in_time(folder):
    """What a solve in reverse makes of a trajectory that attracts."""

    def field(t, y):
        return [y[1], (0.15 - y[0] ** 2) * y[1] - y[0]]

    t = np.linspace(0.0, 20.0, 400)
    there = solve_ivp(field, (0.0, 20.0), [2.0, 0.0], t_eval=t, rtol=1e-3, atol=1e-6).y
    back = solve_ivp(field, (20.0, 0.0), there[:, -1], t_eval=t[::-1], rtol=1e-3, atol=1e-6).y[:, ::-1]
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), constrained_layout=True)
    axes[0].plot(*there, "C0", label="forward")
    axes[0].plot(*back, "C3--", label="back from its end")
    axes[0].set(xlabel="$y_1$", ylabel="$y_2$", xlim=(-3, 3), ylim=(-3, 3))
    axes[0].legend(frameon=False)
    axes[1].semilogy(t, np.linalg.norm(there - back, axis=0), "C3")
    axes[1].set(xlabel="t", ylabel="distance of the two")
    figure.savefig(folder / "gradients-reverse.png", dpi=110)
    plt.close(figure)


def errors(folder, tolerances):
    """Each gradient against the ODE's own and against that of the solution that was computed."""
    rate = torch.tensor(1.0, requires_grad=True)
    problems = {
        "a pendulum, t = 5": (lambda t, y: torch.stack([y[1], -rate * torch.sin(y[0])]), torch.tensor([1.0, 0.0]), 5.0),
        "a stable system, t = 5": (
            lambda t, y: torch.stack([-4 * rate * y[0] + torch.sin(3 * y[1]), torch.cos(y[0])]),
            torch.tensor([1.0, 0.0]),
            5.0,
        ),
    }
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), constrained_layout=True, sharey=True)
    for axis, (title, (field, y0, end)) in zip(axes, problems.items(), strict=True):
        truth = gradient(field, y0, end, 1e-11, rate, adjoint_method="aca", method="dopri8")
        for name, (way, colour, marks) in WAYS.items():
            found = [gradient(field, y0, end, tolerance, rate, **way) for tolerance in tolerances]
            axis.loglog(tolerances, [(g - truth).norm() / truth.norm() for g in found], marks, color=colour, label=name)
        axis.set(xlabel="tolerance of the solve", title=title)
        axis.invert_xaxis()
    axes[0].set_ylabel("relative error of the gradient\nagainst the ODE's own")
    axes[0].legend(frameon=False)
    figure.savefig(folder / "gradients-errors.png", dpi=110)
    plt.close(figure)


def between_the_nodes(folder):
    """A term that is 0 and varies fast: the steps of the solve, and what the quadrature sees of the integrand."""
    b, omega = torch.tensor(0.0, requires_grad=True), 60.0
    t = torch.tensor([0.0, 1.0])

    def field(t, y):
        return -y + b * torch.cos(omega * t)

    truth = (
        (torch.cos(torch.tensor(omega)) + omega * torch.sin(torch.tensor(omega))) - torch.exp(torch.tensor(-1.0))
    ) / (1 + omega**2)
    bounds, found, evaluations = [1.0, 0.3, 0.1, 0.03, 0.01], [], []
    for bound in bounds:
        with record_solves() as solves:
            y = odeint_adjoint(
                field,
                torch.ones(1),
                t,
                rtol=1e-6,
                atol=1e-6,
                adjoint_method="quadrature",
                adjoint_options={"max_step": bound},
                adjoint_params=(b,),
            )
            found.append(torch.autograd.grad(y[-1].sum(), b)[0])
        evaluations.append(solves[0].evaluations_backward)
    figure, axis = plt.subplots(figsize=(5, 3.2), constrained_layout=True)
    axis.loglog(bounds, [abs(g / truth - 1) for g in found], "C2s-")
    for bound, g, count in zip(bounds, found, evaluations, strict=True):
        axis.annotate(f"{count}", (bound, abs(g / truth - 1)), textcoords="offset points", xytext=(6, 6), fontsize=8)
    axis.axvline(0.5 / omega, color="grey", lw=0.8, ls=":")
    axis.invert_xaxis()
    axis.set(xlabel="max_step; dotted: 0.5 / ω", ylabel="relative error in b\n(numbers: backward evaluations)")
    figure.savefig(folder / "gradients-driven.png", dpi=110)
    plt.close(figure)


def memory(folder, steps):
    """What is held and what is evaluated, by the number of checkpoints."""
    torch.manual_seed(0)
    func = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.Tanh(), torch.nn.Linear(64, 16))
    y0, t = torch.randn(32, 16, requires_grad=True), torch.tensor([0.0, 1.0])
    options = {"step_size": 1 / steps}
    budgets = sorted({round(3 * (steps / 3) ** (i / 6)) for i in range(7)})
    ways = [{"checkpoints": k} for k in budgets] + [{}, {"memory": "graphs"}]
    stats = []
    for way in ways:
        with record_solves() as solves:
            y = odeint_adjoint(
                lambda t, y: func(y), y0, t, method="rk4", options=options, adjoint_method="aca", adjoint_options=way
            )
            y[-1].square().sum().backward()
        stats.append(solves[0])
    figure, axis = plt.subplots(figsize=(6, 3.4), constrained_layout=True)
    held = [s.bytes_held / 2**20 for s in stats]
    work = [s.evaluations_backward / s.evaluations_forward for s in stats]
    axis.semilogx(held[:-2], work[:-2], "C0o-", label='{"checkpoints": k}')
    axis.semilogx(held[-2], work[-2], "C1s", label="nothing: one state per step")
    axis.semilogx(held[-1], work[-1], "C2D", label='{"memory": "graphs"}')
    for k, x, y in zip(budgets, held, work, strict=False):
        axis.annotate(f"k = {k}", (x, y), textcoords="offset points", xytext=(6, 4), fontsize=8)
    axis.set(xlabel="MiB held between the passes", ylabel="backward evaluations\nover forward ones")
    axis.legend(frameon=False)
    figure.savefig(folder / "memory.png", dpi=110)
    plt.close(figure)


def draw(folder, small=False):
    """All of them; ``small``: coarser, for a test."""
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    try:
        backward_in_time(folder)
        errors(folder, [10.0**-k for k in range(2, 4 if small else 9)])
        between_the_nodes(folder)
        memory(folder, 20 if small else 200)
    finally:
        torch.set_default_dtype(kept)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
