"""AdaptiveCheckpointAdjoint equals diffrax's own differentiation over a grid of what a call of diffrax can say.

Any two values of two factors (kind of solver, controller, output, event, state, memory) that diffrax takes together
meet in a case, and the solvers of a kind take turns. A case is compiled once, and run forwards and backwards in time.
By default a part of the cases runs that holds each value; ``nox -s full`` runs the others.
"""

import itertools
import random
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix
import pytest

from steptape.jax import AdaptiveCheckpointAdjoint
from steptape_helpers.jax_solves import HOST, forward, identical, worst, x64

RESULTS = diffrax.RESULTS
ROOTS = optimistix.Newton(rtol=1e-8, atol=1e-8)
SOLVERS = {
    "explicit": {
        "Tsit5": diffrax.Tsit5(),
        "Dopri8": diffrax.Dopri8(),
        "Dopri5": diffrax.Dopri5(),
        "Bosh3": diffrax.Bosh3(),
    },
    "explicit of low order": {
        "Euler": diffrax.Euler(),
        "Heun": diffrax.Heun(),
        "Midpoint": diffrax.Midpoint(),
        "Ralston": diffrax.Ralston(),
    },
    "implicit": {
        "Kvaerno3": diffrax.Kvaerno3(root_finder=ROOTS),
        "ImplicitEuler": diffrax.ImplicitEuler(root_finder=ROOTS),
        "KenCarp3": diffrax.KenCarp3(root_finder=ROOTS),
    },
    "structured": {
        "SemiImplicitEuler": diffrax.SemiImplicitEuler(),
        "ReversibleHeun": diffrax.ReversibleHeun(),
        "LeapfrogMidpoint": diffrax.LeapfrogMidpoint(),
    },
    "stochastic": {
        # Last, for ShARK takes three times as long to compile.
        "StochasticHeun": diffrax.Heun(),
        "EulerHeun": diffrax.EulerHeun(),
        "ShARK": diffrax.ShARK(),
    },
}
ADAPTIVE = ("pid", "pid with all its settings", "clipped")
# diffrax's controllers refuse these: they have no error estimate.
FIXED_ONLY = ("Euler", "SemiImplicitEuler", "LeapfrogMidpoint", "EulerHeun")
FACTORS = {
    "kind": list(SOLVERS),
    "controller": ["constant", "step_to", *ADAPTIVE],
    "output": ["t1", "t0 ts", "steps fn", "dense", "subs"],
    "event": [None, "boolean", "newton", "bisection"],
    "state": ["array", "pytree", "complex"],
    "memory": [{}, {"checkpoints": 3}, {"graph": "stage"}, {"checkpoints": 3, "graph": "stage"}],
}
# The pairs of no case: an SDE's noise is real, and so are the unknowns of diffrax's implicit solvers.
LEFT_OUT = {
    frozenset([("kind", FACTORS["kind"].index(kind)), ("state", FACTORS["state"].index("complex"))])
    for kind in ("implicit", "stochastic")
}
PART = 5


def all_pairs():
    indexed = [[(name, i) for i in range(len(values))] for name, values in FACTORS.items()]
    return [frozenset(pair) for a, b in itertools.combinations(indexed, 2) for pair in itertools.product(a, b)]


def pairs_in(choice):
    return {frozenset(pair) for pair in itertools.combinations(choice.items(), 2)}


def covering(seed):
    """Choices of a value for each factor that together hold all pairs, each the best of some grown at random."""
    generator = random.Random(seed)
    missing = set(all_pairs()) - LEFT_OUT
    choices = []

    def grown(pair):
        choice = dict(sorted(pair))
        for name in generator.sample(sorted(FACTORS.keys() - choice), len(FACTORS) - 2):
            gains = {}
            for i in range(len(FACTORS[name])):
                new = {frozenset([(name, i), other]) for other in choice.items()}
                if not new & LEFT_OUT:
                    gains[i] = len(new & missing), generator.random()
            choice[name] = max(gains, key=gains.get)
        return choice

    def gain(choice):
        values = set(choice.items()) - {value for other in choices for value in other.items()}
        return len(values), len(pairs_in(choice) & missing)

    while missing:
        seeds = generator.choices(sorted(missing, key=sorted), k=30)
        best = max((grown(pair) for pair in seeds), key=gain)
        choices.append({name: best[name] for name in FACTORS})
        missing -= pairs_in(choices[-1])
    return choices


CHOICES = covering(seed=403)


def takes(solver, case):
    """Whether diffrax takes the solver with the controller, and its solve comes to the event."""
    if case["controller"] in ADAPTIVE and solver in FIXED_ONLY:
        return False
    never_there = case["state"] == "complex" and case["event"]
    return not (never_there and solver in ("SemiImplicitEuler", "LeapfrogMidpoint"))


def cases():
    """The values of each choice, and a solver of its kind: the one that has waited longest; the last has those left."""
    turns = {kind: list(solvers) for kind, solvers in SOLVERS.items()}
    left = {kind: [{}, *solvers] for kind, solvers in SOLVERS.items()}
    for choice in CHOICES:
        case = {name: FACTORS[name][i] for name, i in choice.items()}
        turn = turns[case["kind"]]
        name = next(name for name in turn if takes(name, case))
        turn.append(turn.pop(turn.index(name)))
        left[case["kind"]] = [case, *(other for other in left[case["kind"]][1:] if other != name)]
        yield {**case, "solver": name}
    for case, *names in left.values():
        yield from ({**case, "solver": name} for name in names)


CASES = list(cases())


class Inputs(NamedTuple):
    """All that a solve is differentiated for."""

    rate: Any
    drive: Any
    y0: Any
    args: Any
    times: Any  # t0, t1, dt0
    ts: Any


SPANS = [[0.1, 2.3, 0.31], [1.9, -0.3, -0.31]]


def inputs(state, span):
    y0: Any = jnp.array([0.9, -0.4])
    rate = jnp.array(-0.4)
    if state == "pytree":
        y0 = {"a": y0, "b": (jnp.array([[0.3], [0.7]]), jnp.array(-0.2))}
    if state == "complex":
        y0, rate = y0.astype(complex) * (1 - 0.4j), rate.astype(complex) + 1.3j
    t0, t1, _ = span
    ts = t0 + (t1 - t0) * jnp.array([0.0, 0.13, 0.61, 0.62, 1.0])
    return Inputs(rate, jnp.array([1.4, 6.0, 0.3]), y0, jnp.array(0.7), jnp.array(span), ts)


def slope(x, t, y, args):
    """A forced, damped field whose parts are coupled; its forcing is fast enough that tries are rejected."""
    strength, frequency, shift = x.drive
    mean = sum(jnp.mean(part) for part in jax.tree.leaves(y))
    wave, shift, damped = (a.astype(mean.dtype) for a in (strength * jnp.cos(frequency * t), shift, 1 + abs(mean) ** 2))
    push = wave * (mean + shift) / damped
    return jax.tree.map(lambda part: x.rate * args.astype(x.rate.dtype) * part + push, y)


def terms_of(x, case, y0):
    def drift(t, y, args):
        return slope(x, t, y, args)

    def half(t, y, args):
        return jax.tree.map(lambda part: 0.5 * part, drift(t, y, args))

    if case["solver"] == "KenCarp3":
        return diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ODETerm(half))
    if case["solver"] == "SemiImplicitEuler":
        return diffrax.ODETerm(drift), diffrax.ODETerm(half)
    if case["kind"] != "stochastic":
        return diffrax.ODETerm(drift)
    shape = jax.tree.map(lambda _: jax.ShapeDtypeStruct((), jnp.float64), y0)
    # ShARK is for additive noise.
    additive = case["solver"] == "ShARK"
    area = diffrax.SpaceTimeLevyArea if additive else diffrax.BrownianIncrement
    path = diffrax.VirtualBrownianTree(-1.0, 3.0, 1e-2, shape, jax.random.key(2), levy_area=area)

    def noise(t, y, args):
        return jax.tree.map(lambda part: args * (jnp.full(part.shape, 0.2) if additive else 0.3 * jnp.sin(part)), y)

    return diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(noise, path))


def controller_of(name, times):
    t0, t1, _ = times
    if name == "constant":
        return diffrax.ConstantStepSize()
    if name == "step_to":
        ts = t0 + (t1 - t0) * jnp.linspace(0.0, 1.0, 12) ** 1.3
        return diffrax.StepTo(ts.at[0].set(t0).at[-1].set(t1))
    tolerances = {"rtol": 1e-2, "atol": 1e-2}
    if name == "pid with all its settings":
        coefficients = {"pcoeff": 0.2, "icoeff": 0.5, "dcoeff": 0.05}
        return diffrax.PIDController(**tolerances, **coefficients, dtmin=0.02, dtmax=0.25)
    if name == "clipped":
        step_ts, jump_ts = jnp.array([0.35, 1.21]), jnp.array([0.8])
        return diffrax.ClipStepSizeController(diffrax.PIDController(**tolerances), step_ts=step_ts, jump_ts=jump_ts)
    return diffrax.PIDController(**tolerances)


def saveat_of(name, ts):
    def scaled(t, y, args):
        return t * args, jax.tree.map(lambda part: args * part * part, y)

    if name == "t1":
        return diffrax.SaveAt(t1=True)
    if name == "t0 ts":
        return diffrax.SaveAt(t0=True, ts=ts)
    if name == "steps fn":
        return diffrax.SaveAt(steps=2, t1=True, fn=scaled)
    if name == "dense":
        return diffrax.SaveAt(dense=True)
    ends = diffrax.SubSaveAt(t0=True, t1=True)
    return diffrax.SaveAt(subs=[ends, diffrax.SubSaveAt(ts=ts, fn=scaled), diffrax.SubSaveAt(steps=True)], dense=True)


def event_of(name, start):
    def decayed(t, y, args, **kwargs):
        """Below zero until the distance of two parts, which forwards in time shrinks, has changed by a third."""
        part, first = jax.tree.leaves(y)[0], jax.tree.leaves(start)[0]
        size = jnp.abs(part[1] - part[0]) / jax.lax.stop_gradient(jnp.abs(first[1] - first[0]))
        return jnp.log(size) ** 2 - 0.16

    if name is None:
        return None
    if name == "boolean":
        return diffrax.Event(lambda *args, **kwargs: decayed(*args, **kwargs) > 0)
    finder: Any = optimistix.Newton if name == "newton" else optimistix.Bisection
    return diffrax.Event(decayed, finder(1e-8, 1e-8))


def loss(tree):
    """A scalar in which every finite number of the tree takes part."""

    def part(x):
        x = jnp.where(jnp.isfinite(x), x, 0.0)
        return jnp.sum(jnp.sin(x.real + 0.3) + (x.imag**2 if jnp.iscomplexobj(x) else 0.0))

    return sum(part(x) for x in jax.tree.leaves(tree))


def solve(x, case, adjoint):
    """What a solve says: all that it saved, its interpolation at some times, and the numbers of its steps."""
    y0 = (x.y0, x.y0) if case["solver"] == "SemiImplicitEuler" else x.y0
    times, ts = x.times, x.ts
    if case["kind"] == "stochastic":
        # A Brownian path does not let itself be differentiated for time.
        times, ts = jax.lax.stop_gradient((times, ts))
    t0, t1, dt0 = times
    solution = diffrax.diffeqsolve(
        terms_of(x, case, y0),
        SOLVERS[case["kind"]][case["solver"]],
        t0,
        t1,
        None if case["controller"] == "step_to" else dt0,
        y0,
        x.args,
        stepsize_controller=controller_of(case["controller"], times),
        saveat=saveat_of(case["output"], ts),
        event=event_of(case["event"], y0),
        adjoint=adjoint,
        max_steps=96,
        throw=False,
    )
    # Only before any event: beyond its end, an interpolation is not a number.
    inside = jax.vmap(solution.evaluate)(t0 + 0.4 * (ts - t0)) if case["output"] in ("dense", "subs") else None
    return (solution.ts, solution.ys, inside), (solution.stats, solution.result._value)


def name_of(case):
    return "-".join(str(value) for name, value in case.items() if name != "kind")


@pytest.mark.filterwarnings("ignore:Complex dtype support")
@pytest.mark.filterwarnings("ignore:`.*` is not marked as converging")
@pytest.mark.by_default(where=lambda case: case in CASES[:PART])
@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_solution_and_gradient_are_the_hosts(case):
    def of(adjoint):
        def fun(x):
            out, counts = solve(x, case, adjoint)
            return loss(out), (out, counts)

        return fun

    @jax.jit
    def both(x):
        ours = jax.value_and_grad(of(AdaptiveCheckpointAdjoint(**case["memory"])), has_aux=True)(x)
        # Of complex numbers the host's reverse mode alone gives the gradient at once.
        if case["state"] == "complex":
            return jax.value_and_grad(of(HOST), has_aux=True)(x), ours
        return forward(of, x), ours

    with x64():
        for span in SPANS:
            ((_, (out, counts)), want), ((_, (same, again)), got) = both(inputs(case["state"], span))
            if not identical((same, again), (out, counts)):
                # Another program may round otherwise: the host's own solve, undifferentiated as ours is.
                _, (out, counts) = jax.jit(of(HOST))(inputs(case["state"], span))
            assert identical((same, again), (out, counts))
            assert counts[0]["num_accepted_steps"] >= 3
            assert counts[1] == (RESULTS.event_occurred if case["event"] else RESULTS.successful)._value
            assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(want))
            # The iterations of an implicit solver are replayed to rounding, magnified by the Jacobian's condition.
            limit = 1e-10 if case["kind"] == "implicit" else 1e-12
            if not worst(got, want) < limit:
                # Derivatives in times are sums of terms that cancel, which the host's modes round each in its own way.
                want, _ = jax.jit(jax.grad(of(HOST), has_aux=True))(inputs(case["state"], span))
            assert worst(got, want) < limit


def test_the_grid_holds_every_pair_of_values():
    assert set().union(*map(pairs_in, CHOICES)) == set(all_pairs()) - LEFT_OUT


def test_the_grid_holds_every_solver_with_each_sort_of_controller_it_has():
    held = {(case["solver"], case["controller"] in ADAPTIVE) for case in CASES}
    names = {name for solvers in SOLVERS.values() for name in solvers}
    assert {name for name, _ in held} == names
    assert not {(name, True) for name in FIXED_ONLY} & held


def test_the_part_that_always_runs_holds_every_value_of_every_factor():
    held = {value for choice in CHOICES[:PART] for value in choice.items()}
    assert held == {(name, i) for name, values in FACTORS.items() for i in range(len(values))}
