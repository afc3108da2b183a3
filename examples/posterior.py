"""
A posterior by Hamiltonian Monte Carlo
======================================

How fast does something grow, and to what size? ``blackjax`` samples the posterior of a logistic growth by NUTS. Its
moves conserve energy only as far as the gradient is that of the log-density it is given: the discrete one, which a
replay gives to rounding at any tolerance. The ODE may be solved as loosely as the noise allows.
"""

import os

import blackjax
import diffrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from steptape.jax import AdaptiveCheckpointAdjoint

SMALL = os.environ.get("STEPTAPE_EXAMPLES") == "small"
jax.config.update("jax_enable_x64", True)

TIMES, NOISE = jnp.linspace(0.5, 10.0, 12), 0.3
TRUE = jnp.log(jnp.array([0.9, 5.0, 0.3]))


def growth(log_parameters, times=TIMES):
    """The size at some times, by the logarithms of rate, capacity and first size, and whether the solve got there."""
    rate, capacity, first = jnp.exp(log_parameters)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: rate * y * (1 - y / capacity)),
        diffrax.Tsit5(),
        0.0,
        10.0,
        0.5,
        first,
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=1e-3, atol=1e-3),
        adjoint=AdaptiveCheckpointAdjoint(),
        max_steps=64,
        throw=False,
    )
    return solution.ys, solution.result == diffrax.RESULTS.successful


data = growth(TRUE)[0] + NOISE * jax.random.normal(jax.random.key(1), TIMES.shape)


def log_density(x):
    """Gaussian noise, and a Gaussian prior of the logarithms; where the warm-up strays too far to solve, nothing."""
    ys, solved = growth(x)
    return jnp.where(solved, -0.5 * jnp.sum((ys - data) ** 2) / NOISE**2 - 0.5 * jnp.sum(x**2), -jnp.inf)


# %%
# NUTS from a guess by eye, with a step size and a mass matrix from a warm-up of its own.

warm, count = (20, 20) if SMALL else (200, 600)
start = jnp.log(jnp.array([1.0, data[-1], 0.5]))
adaptation = blackjax.window_adaptation(blackjax.nuts, log_density)
(state, tuned), _ = adaptation.run(jax.random.key(2), start, num_steps=warm)
sampler = blackjax.nuts(log_density, **tuned)


@jax.jit
def sampled(state, keys):
    def move(state, key):
        state, told = sampler.step(key, state)
        return state, (state.position, told.acceptance_rate, told.is_divergent)

    return jax.lax.scan(move, state, keys)[1]


positions, acceptance, diverged = sampled(state, jax.random.split(jax.random.key(3), count))
print(f"acceptance {acceptance.mean():.2f}, {int(diverged.sum())} divergences")
for name, x, true in zip(("rate", "capacity", "first size"), jnp.exp(positions).T, jnp.exp(TRUE), strict=True):
    low, high = np.quantile(x, [0.05, 0.95])
    print(f"{name}: {low:.2f} to {high:.2f} (true {true:.2f})")

# %%
# Rate and first size are told apart badly by the data: a fast growth from little is as likely as a slow one from more.

fine = jnp.linspace(0.0, 10.0, 80)
curves = jax.vmap(lambda x: growth(x, fine)[0])(positions[:: max(1, len(positions) // 60)])
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
axes[0].plot(fine, curves.T, "C0", lw=0.5, alpha=0.3)
axes[0].plot(TIMES, data, "C3o", ms=4)
axes[0].set(xlabel="t", ylabel="size")
axes[1].plot(jnp.exp(positions[:, 0]), jnp.exp(positions[:, 2]), "C0.", ms=3, alpha=0.5)
axes[1].plot(jnp.exp(TRUE[0]), jnp.exp(TRUE[2]), "C3x", ms=9, mew=2)
axes[1].set(xlabel="rate", ylabel="first size", title="posterior; cross: truth")
plt.show()
