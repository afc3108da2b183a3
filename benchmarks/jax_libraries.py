"""Libraries that differentiate a diffrax solve as they please, by diffrax's adjoints and by ours: a cell an algorithm.

Of an adjoint that does not know the mode that the algorithm asks for, there are its words in place of a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp

from benchmarks import jax_programs as programs
from benchmarks import timing
from benchmarks.envelope import Rows
from benchmarks.measurements import Cells, Scope
from benchmarks.ways import DEFAULT, REPLAY
from steptape.jax import AdaptiveCheckpointAdjoint

# The default, what one must choose where that does not do, and ours.
ADJOINTS: dict[str, diffrax.AbstractAdjoint] = {
    DEFAULT: diffrax.RecursiveCheckpointAdjoint(),
    "DirectAdjoint()": diffrax.DirectAdjoint(),
    "ForwardMode()": diffrax.ForwardMode(),
    REPLAY: AdaptiveCheckpointAdjoint(),
}
CHAINS, STEP, NOISE = 4, 0.05, 0.3
# Of a chain that are compared: from move to move a difference grows, as in any chaotic system.
MOVES = 10
Run = Callable[[Any], Any]


def missed(velocity: Any, target: Any, adjoint: diffrax.AbstractAdjoint) -> Any:
    """How far from a target a ball with drag in gusts of wind is at t = 1."""

    def field(t, y, args):
        drag = 0.1 * jnp.sqrt(jnp.sum(y[2:] ** 2)) * y[2:]
        return jnp.concatenate([y[2:], jnp.array([5 * jnp.cos(20 * t), -9.81]) - drag])

    start = jnp.concatenate([jnp.zeros(2), velocity])
    return programs.solved(field, 1.0, start, None, **programs.adaptive(1e-9), adjoint=adjoint).ys[0][:2] - target


def aimed(name: str, adjoint: diffrax.AbstractAdjoint) -> Run:
    """The velocity that hits a target, by an algorithm of optimistix."""
    import optimistix

    solver = getattr(optimistix, name)(rtol=1e-8, atol=1e-8)
    find: Any = optimistix.least_squares
    residual: Any = functools.partial(missed, adjoint=adjoint)
    if name == "Newton":
        find = optimistix.root_find
    elif name == "BFGS":
        find, residual = optimistix.minimise, lambda v, target: jnp.sum(missed(v, target, adjoint) ** 2)
    return lambda target: find(residual, solver, jnp.array([5.0, 5.0]), target).value


def log_density(log_rates: Any, adjoint: diffrax.AbstractAdjoint) -> Any:
    """Of the rate, the capacity and the first size of a logistic growth, observed twelve times; none where it fails."""
    (rate, capacity, first), times = jnp.exp(log_rates), jnp.linspace(0.5, 10.0, 12)
    how = {**programs.adaptive(1e-4), "saveat": diffrax.SaveAt(ts=times), "adjoint": adjoint, "dt0": 0.5}
    how |= {"max_steps": 256, "throw": False}
    solution = programs.solved(lambda t, y, args: rate * y * (1 - y / capacity), 10.0, first, None, **how)
    observed = 5 / (1 + (5 / 0.3 - 1) * jnp.exp(-0.9 * times)) + NOISE * jnp.sin(7 * times)
    density = -0.5 * jnp.sum((solution.ys - observed) ** 2) / NOISE**2 - 0.5 * jnp.sum(log_rates**2)
    return jnp.where(solution.result == diffrax.RESULTS.successful, density, -jnp.inf)


def by_blackjax(moves: int, adjoint: diffrax.AbstractAdjoint) -> Run:
    """The places of chains that move together: a scan of moves, each of a batch."""
    import blackjax

    sampler = blackjax.nuts(functools.partial(log_density, adjoint=adjoint), STEP, jnp.ones(3))

    def move(states, key):
        states, _ = jax.vmap(sampler.step)(jax.random.split(key, CHAINS), states)
        return states, states.position

    keys = jax.random.split(jax.random.key(0), moves)
    return lambda starts: jax.lax.scan(move, jax.vmap(sampler.init)(starts), keys)[1]


def by_numpyro(moves: int, adjoint: diffrax.AbstractAdjoint) -> Run:
    """The places of one chain."""
    from numpyro.infer import NUTS

    kernel = NUTS(potential_fn=lambda x: -log_density(x, adjoint), step_size=STEP, adapt_step_size=False)

    def move(state, _):
        state = kernel.sample(state, (), {})
        return state, state.z

    def sampled(starts):
        return jax.lax.scan(move, kernel.init(jax.random.PRNGKey(0), 0, starts[0], (), {}), length=moves)[1]

    return sampled


def cells(scope: Scope) -> Cells:
    """A cell an algorithm; quick: few moves and rounds."""
    moves, rounds = (10, 3) if scope.quick else (100, 11)
    starts = jnp.log(jnp.array([1.0, 4.8, 0.4])) + 0.05 * jnp.arange(CHAINS)[:, None]
    names = ("LevenbergMarquardt", "GaussNewton", "Dogleg", "Newton", "BFGS")
    target, through = jnp.array([3.0, 1.0]), "optimistix, LevenbergMarquardt, and jacrev through it"
    made: dict[str, tuple[Callable[..., Run], Any]] = {
        f"optimistix, {n}": (functools.partial(aimed, n), target) for n in names
    }
    made[through] = (lambda adjoint: jax.jacrev(aimed(names[0], adjoint)), target)
    made[f"blackjax, NUTS, a scan over vmap of {CHAINS} chains"] = (functools.partial(by_blackjax, moves), starts)
    made["numpyro, NUTS"] = (functools.partial(by_numpyro, moves), starts)
    return {name: functools.partial(_cell, name, *each, rounds) for name, each in made.items()}


def _cell(name: str, build: Callable[..., Run], given: Any, rounds: int) -> Rows:
    made: list[programs.Program] = []
    refused: Rows = []
    for way, adjoint in ADJOINTS.items():
        try:
            made.append(programs.Program.compiled(way, build(adjoint), (given,)))
        except (TypeError, ValueError, NotImplementedError) as error:
            refused.append({"algorithm": name, "way": way, "refuses": f"{type(error).__name__}: {error}"[:160]})
    programs.race(made, rounds)
    ours = made[-1]
    shown = [
        (one, timing.ratio(one.times, ours.times), programs.difference(one.result[:MOVES], ours.result[:MOVES]))
        for one in made
    ]
    times = [
        {"algorithm": name, "way": one.name, "seconds": one.seconds, "over_replay": ratio, "difference": apart}
        for one, ratio, apart in shown
    ]
    return times + refused
