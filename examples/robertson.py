"""
Stiff kinetics: Robertson's problem in diffrax
==============================================

Three chemicals, three rates between 0.04 and 3·10⁷, eleven decades of time: the classic stiff problem. An implicit
solver takes some hundreds of steps, and as many tries that it rejects. Its state cannot be integrated in reverse,
which is unstable; the replay takes the accepted steps of the implicit solver again, and no other try, and asks for no
stability of anything but the forward solve.

Here the rates are found again from noisy concentrations, by Gauss–Newton on their logarithms.
"""

import os

import diffrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from steptape.jax import AdaptiveCheckpointAdjoint

ITERATIONS = 1 if os.environ.get("STEPTAPE_EXAMPLES") == "small" else 6
jax.config.update("jax_enable_x64", True)

RATES = np.array([0.04, 3e7, 1e4])
TIMES = jnp.logspace(-5, 5, 30)


def kinetics(t, y, rates):
    slow, fast, back = rates
    first = -slow * y[0] + back * y[1] * y[2]
    third = fast * y[1] ** 2
    return jnp.stack([first, -first - third, third])


@jax.jit
def concentrations(log_rates):
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(kinetics),
        diffrax.Kvaerno5(),
        0.0,
        TIMES[-1],
        1e-6,
        jnp.array([1.0, 0.0, 0.0]),
        jnp.exp(log_rates),
        saveat=diffrax.SaveAt(ts=TIMES),
        stepsize_controller=diffrax.PIDController(rtol=1e-7, atol=1e-10),
        adjoint=AdaptiveCheckpointAdjoint(),
    )
    # The second one is scarce, and is measured on a scale of its own.
    return (solution.ys * jnp.array([1.0, 1e4, 1.0])).ravel(), solution.stats


# %%
# The same adjoint in forward mode: three columns are cheaper than ninety rows.

truth, stats = concentrations(jnp.log(RATES))
print(f"{stats['num_accepted_steps']} steps accepted, {stats['num_rejected_steps']} rejected")
noisy = truth + 0.005 * jax.random.normal(jax.random.key(0), truth.shape)
jacobian = jax.jit(jax.jacfwd(lambda p: concentrations(p)[0]))

estimate = jnp.log(RATES * np.array([2.0, 0.3, 3.0]))
history = [estimate]
for _ in range(ITERATIONS):
    residual = concentrations(estimate)[0] - noisy
    step = jnp.linalg.lstsq(jacobian(estimate), residual)[0]
    estimate = estimate - jnp.clip(step, -1.0, 1.0)
    history.append(estimate)
errors = jnp.abs(jnp.exp(jnp.stack(history)) / RATES - 1)
print("relative errors of the rates:", np.array2string(np.asarray(errors[-1]), precision=3))

# %%
# Reverse mode is as exact, also through eleven decades: the gradient of the misfit is the Jacobian's transpose times
# the residual.


def misfit(p):
    return 0.5 * jnp.sum((concentrations(p)[0] - noisy) ** 2)


start = history[0]
reverse = jax.grad(misfit)(start)
forward = jacobian(start).T @ (concentrations(start)[0] - noisy)
print(f"reverse over forward mode: {jnp.linalg.norm(reverse - forward) / jnp.linalg.norm(forward):.0e} apart")

figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
for i, name in enumerate(("$y_1$", "$10^4\\,y_2$", "$y_3$")):
    axes[0].semilogx(TIMES, noisy.reshape(-1, 3)[:, i], f"C{i}.", ms=4)
    axes[0].semilogx(TIMES, concentrations(estimate)[0].reshape(-1, 3)[:, i], f"C{i}", label=name)
axes[0].set(xlabel="t", ylabel="concentration")
axes[0].legend(frameon=False)
axes[1].semilogy(errors, "o-")
axes[1].set(xlabel="iteration of Gauss–Newton", ylabel="relative error of a rate")
plt.show()
