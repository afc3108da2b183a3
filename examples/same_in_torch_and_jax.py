"""
The same model in PyTorch and in JAX
====================================

One network, one solver, one tolerance, in torchdiffeq and in diffrax. Each chooses steps of its own, so at a given
tolerance the gradients differ by as much as the solutions do. On the *same* steps the discrete solution is one
function, and the two exact gradients are equal to rounding.
"""

import functools
import os

import diffrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import torch

from steptape.jax import AdaptiveCheckpointAdjoint
from steptape.torch import odeint_adjoint

SMALL = os.environ.get("STEPTAPE_EXAMPLES") == "small"
jax.config.update("jax_enable_x64", True)

rng = np.random.default_rng(0)
weights = [rng.normal(size=shape) / 2 for shape in ((3, 16), (16, 3))]
start = rng.normal(size=(8, 3))

# %%
# Both read the same weights and give the gradient of the same loss in them.


def by_torch(tolerance, steps):
    net = [torch.tensor(w, requires_grad=True) for w in weights]

    def field(t, y):
        return torch.tanh(y @ net[0]) @ net[1]

    how = {"method": "rk4", "options": {"step_size": 1 / steps}} if steps else {"method": "dopri5"}
    y = odeint_adjoint(
        field,
        torch.tensor(start),
        torch.tensor([0.0, 1.0], dtype=torch.float64),
        rtol=tolerance,
        atol=tolerance,
        adjoint_method="aca",
        **how,
    )
    return [g.numpy() for g in torch.autograd.grad(y[-1].square().sum(), net)]


class RK4(diffrax.AbstractERK):
    """torchdiffeq's ``rk4``, the 3/8 rule, as a solver of diffrax."""

    tableau = diffrax.ButcherTableau(
        a_lower=(np.array([1 / 3]), np.array([-1 / 3, 1.0]), np.array([1.0, -1.0, 1.0])),
        b_sol=np.array([1 / 8, 3 / 8, 3 / 8, 1 / 8]),
        b_error=np.zeros(4),
        c=np.array([1 / 3, 2 / 3, 1.0]),
    )
    interpolation_cls = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms):
        return 4


@functools.partial(jax.jit, static_argnums=0)
def jax_gradient(fixed, net, size):
    """The gradient at a step size, or at a tolerance: one program for all of them."""

    def loss(net):
        term = diffrax.ODETerm(lambda t, y, net: jnp.tanh(y @ net[0]) @ net[1])
        solution = diffrax.diffeqsolve(
            term,
            RK4() if fixed else diffrax.Dopri5(),
            0.0,
            1.0,
            size if fixed else None,
            jnp.asarray(start),
            net,
            stepsize_controller=diffrax.ConstantStepSize() if fixed else diffrax.PIDController(rtol=size, atol=size),
            adjoint=AdaptiveCheckpointAdjoint(),
        )
        return jnp.sum(solution.ys[-1] ** 2)

    return jax.grad(loss)(net)


def by_jax(tolerance, steps):
    return [np.asarray(g) for g in jax_gradient(bool(steps), weights, 1 / steps if steps else tolerance)]


def apart(one, other):
    one, other = (np.concatenate([g.ravel() for g in gradients]) for gradients in (one, other))
    return np.linalg.norm(one - other) / np.linalg.norm(other)


# %%
# First each on steps of its own, at several tolerances; then both on the same fixed grids.

tolerances = [10.0**-k for k in range(3, 5 if SMALL else 11)]
own = [apart(by_torch(tolerance, None), by_jax(tolerance, None)) for tolerance in tolerances]
grids = [4, 8] if SMALL else [4, 8, 16, 32, 64]
same = [apart(by_torch(1.0, steps), by_jax(1.0, steps)) for steps in grids]
print(f"on the same steps: {max(same):.0e} at most")

# %%
# Left: how far the two frameworks are apart falls with the tolerance, as the solutions' errors do. Right: on the same
# steps there is nothing but rounding, at every number of them.

figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True, sharey=True)
axes[0].loglog(tolerances, own, "C1o-")
axes[0].invert_xaxis()
axes[0].set(xlabel="tolerance, own steps (dopri5)", ylabel="relative difference\nof the gradients")
axes[1].loglog(grids, same, "C0s-")
axes[1].set_xscale("log", base=2)
axes[1].axhline(np.finfo(float).eps, color="grey", lw=0.8, ls=":", label="eps of float64")
axes[1].set(xlabel="steps, the same in both (rk4)", ylim=(1e-17, 1e-1))
axes[1].legend(frameon=False)
plt.show()
