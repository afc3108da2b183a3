"""
Least squares with optimistix
=============================

A predator and its prey, observed at forty times: find the four rates of Lotka and Volterra. ``optimistix`` has
Levenberg–Marquardt, which needs products with the residual's Jacobian and its transpose. diffrax's default adjoint
knows reverse mode alone, and one would have to choose another one for this solver. Ours knows every mode, so it runs
as it comes, and one ``grad`` goes through the fit.
"""

import os

import diffrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optimistix

from steptape.jax import AdaptiveCheckpointAdjoint

SMALL = os.environ.get("STEPTAPE_EXAMPLES") == "small"
jax.config.update("jax_enable_x64", True)

RATES = jnp.array([1.1, 0.4, 0.4, 0.1])
TIMES = jnp.linspace(0.0, 12.0, 40)


def lotka_volterra(t, y, rates):
    a, b, c, d = rates
    prey, predator = y
    return jnp.stack([a * prey - b * prey * predator, -c * predator + d * prey * predator])


def populations(rates, times=TIMES):
    return diffrax.diffeqsolve(
        diffrax.ODETerm(lotka_volterra),
        diffrax.Tsit5(),
        0.0,
        12.0,
        0.1,
        jnp.array([10.0, 5.0]),
        rates,
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=1e-7, atol=1e-9),
        adjoint=AdaptiveCheckpointAdjoint(),
        max_steps=256,
    ).ys


data = populations(RATES) + 0.5 * jax.random.normal(jax.random.key(0), (40, 2))


def residuals(log_rates, data):
    return populations(jnp.exp(log_rates)) - data


@jax.jit
def fit(start, data):
    solver = optimistix.LevenbergMarquardt(rtol=1e-8, atol=1e-8)
    found = optimistix.least_squares(residuals, solver, start, args=data, max_steps=4 if SMALL else 64, throw=not SMALL)
    return found.value, found.stats["num_steps"]


start = jnp.log(RATES * jnp.array([0.8, 1.3, 1.2, 0.8]))
best, steps = fit(start, data)
found = np.asarray(jnp.exp(best))
print(f"{steps} steps, rates {np.array2string(found, precision=3)}")

# %%
# How sure is it? The covariance of the estimate is σ² (JᵀJ)⁻¹, with the same Jacobian.

J = jax.jacfwd(residuals)(best, data).reshape(-1, 4)
std = jnp.sqrt(jnp.diag(0.25 * jnp.linalg.inv(J.T @ J)))
for name, x, s, true in zip("abcd", found, std, RATES, strict=True):
    print(f"{name} = {x:.3f} ± {x * s:.3f} (true {true})")

# %%
# The fit, its start, and the correlations that the data leave.

fine = jnp.linspace(0.0, 12.0, 200)
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), constrained_layout=True, width_ratios=[2, 1])
for i, name in enumerate(("prey", "predator")):
    axes[0].plot(TIMES, data[:, i], f"C{i}.", ms=4)
    axes[0].plot(fine, populations(jnp.exp(start), fine)[:, i], f"C{i}:", lw=1)
    axes[0].plot(fine, populations(jnp.exp(best), fine)[:, i], f"C{i}", label=name)
axes[0].set(xlabel="t", title="dotted: where the fit began")
axes[0].legend(frameon=False)
covariance = jnp.linalg.inv(J.T @ J)
scale = jnp.sqrt(jnp.diag(covariance))
image = axes[1].imshow(covariance / jnp.outer(scale, scale), vmin=-1, vmax=1, cmap="coolwarm")
axes[1].set(xticks=range(4), yticks=range(4), xticklabels="abcd", yticklabels="abcd", title="correlation of the rates")
figure.colorbar(image, ax=axes[1], shrink=0.8)
plt.show()
