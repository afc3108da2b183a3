"""Every SDE solver of diffrax: AdaptiveCheckpointAdjoint gives the host's solution and the host's gradient.

Each solver on the kind of noise it is for: by default one for each kind with constant steps, and one with a PID
controller. In ``nox -s full`` all that estimate their error have the latter, all others the former, and with the
estimate of ``HalfSolver`` one each for general, diagonal and additive noise. A solver that a new diffrax adds fails a
test until it has a case here.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import lineax
import pytest

from steptape._errors import UnsupportedError
from steptape_helpers.jax_solves import HOST, OURS, forward, identical, loss, worst, x64

BASES = (
    diffrax.AbstractItoSolver,
    diffrax.AbstractStratonovichSolver,
    diffrax.AbstractSRK,
    diffrax.AbstractFosterLangevinSRK,
)
STATE, CHANNELS = 3, 2


@pytest.fixture(autouse=True)
def _double_precision():
    with x64():
        yield


class Inputs(NamedTuple):
    """All that a solve of dY = f dt + g dW is differentiated for; ``field`` is what the terms themselves hold."""

    y0: Any
    drift: Any
    diffusion: Any
    field: Any


def inputs() -> Inputs:
    return Inputs(
        y0=jnp.array([0.9, -0.4, 0.2]),
        drift=jnp.array([[0.3, -1.4, 0.5], [1.1, 0.2, -0.6], [-0.2, 0.8, -0.9]]),
        diffusion=jnp.array([[0.9, 0.4], [-0.3, 1.2], [0.5, -0.7]]),
        field=jnp.array(0.7),
    )


def path(channels: int, levy_area: Any) -> diffrax.VirtualBrownianTree:
    # Of the generators of numbers that JAX has, the one of which a program is compiled in three quarters of the time.
    key = jax.random.key(3, impl="rbg")
    return diffrax.VirtualBrownianTree(0.0, 1.0, 2**-8, (channels,), key, levy_area=levy_area)


def with_noise(x: Inputs, diffusion: Callable[..., Any], noise: Any) -> Any:
    def drift(t, y, args):
        return jnp.tanh(args.drift @ y) + x.field * jnp.cos(3 * t) * y

    return diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, noise))


def general(x: Inputs, levy_area: Any) -> tuple[Any, Any]:
    def diffusion(t, y, args):
        return args.diffusion * jnp.sin(x.field * y + t)[:, None]

    return with_noise(x, diffusion, path(CHANNELS, levy_area)), x.y0


def diagonal(x: Inputs, levy_area: Any) -> tuple[Any, Any]:
    def diffusion(t, y, args):
        return lineax.DiagonalLinearOperator(args.diffusion[:, 0] * jnp.sin(x.field * y + t))

    return with_noise(x, diffusion, path(STATE, levy_area)), x.y0


def additive(x: Inputs, levy_area: Any) -> tuple[Any, Any]:
    def diffusion(t, y, args):
        return args.diffusion * jnp.cos(x.field * t)

    return with_noise(x, diffusion, path(CHANNELS, levy_area)), x.y0


def langevin(x: Inputs, levy_area: Any) -> tuple[Any, Any]:
    """Position and velocity in a potential; ``diffusion`` gives their friction and their temperature."""
    gamma, u = 1 + x.diffusion[:, 0] ** 2, jnp.exp(x.diffusion[:, 1])

    def slope(y, args):
        return x.field * y + args.drift.T @ jnp.tanh(args.drift @ y)

    terms = diffrax.MultiTerm(
        diffrax.UnderdampedLangevinDriftTerm(gamma, u, slope),
        diffrax.UnderdampedLangevinDiffusionTerm(gamma, u, path(STATE, levy_area)),
    )
    return terms, (x.y0, 0.5 * x.y0)


W = diffrax.BrownianIncrement
H = diffrax.SpaceTimeLevyArea
K = diffrax.SpaceTimeTimeLevyArea
SOLVERS: dict[str, tuple[Callable[..., Any], Any]] = {
    "Euler": (general, W),
    "EulerHeun": (general, W),
    "Heun": (general, W),
    "Midpoint": (general, W),
    "Ralston": (general, W),
    "ReversibleHeun": (general, W),
    "ItoMilstein": (diagonal, W),
    "StratonovichMilstein": (diagonal, W),
    "SPaRK": (general, H),
    "GeneralShARK": (general, H),
    "SlowRK": (general, H),
    "SEA": (additive, H),
    "ShARK": (additive, H),
    "SRA1": (additive, H),
    "ALIGN": (langevin, H),
    "ShOULD": (langevin, K),
    "QUICSORT": (langevin, K),
}


# With steps chosen by a PID controller by default, by HalfSolver's estimate.
ADAPTIVE = {"StratonovichMilstein"}
# With constant ones: a kind of noise each.
CONSTANT = {"Euler", "ItoMilstein", "SEA", "ALIGN"}
# HalfSolver takes a solver's steps as they are, which are exact by the test of constant ones.
HALVED = {"EulerHeun", "StratonovichMilstein", "SEA"}
ESTIMATING = {name for name in SOLVERS if issubclass(getattr(diffrax, name), diffrax.AbstractAdaptiveSolver)}


def solve(x: Inputs, adjoint: Any, name: str, adaptive: bool) -> diffrax.Solution:
    noise, levy_area = SOLVERS[name]
    terms, y0 = noise(x, levy_area)
    solver, controller = getattr(diffrax, name)(), diffrax.ConstantStepSize()
    if adaptive:
        controller = diffrax.PIDController(rtol=1e-2, atol=1e-2)
        if name in HALVED:
            solver = diffrax.HalfSolver(solver)
    return diffrax.diffeqsolve(
        terms,
        solver,
        0.0,
        1.0,
        0.25,
        y0,
        x,
        adjoint=adjoint,
        stepsize_controller=controller,
        saveat=diffrax.SaveAt(ts=jnp.array([0.13, 1.0])) if adaptive else diffrax.SaveAt(t1=True),
        max_steps=64,
    )


def assert_as_host(run: Callable[..., Any], x: Any) -> dict[str, Any]:
    """The host's solution bit for bit and its gradient, none of it zero; returns what the solver counted."""

    def of(adjoint):
        def fun(x):
            solution = run(x, adjoint)
            return loss(solution), (solution.ts, solution.ys, solution.stats)

        return fun

    def ours_and_host(x):
        return jax.value_and_grad(of(OURS), has_aux=True)(x), forward(of, x)

    def in_haste(f):
        """Compiling is what takes the time."""
        return jax.jit(f).lower(x).compile({"xla_backend_optimization_level": 0})(x)

    ((_, given), grad), ((_, expected), host_grad) = in_haste(ours_and_host)
    if not identical(given, expected):
        # Forward mode may round a solution otherwise than reverse mode, which ours is.
        ((_, expected), host_grad) = in_haste(jax.value_and_grad(of(HOST), has_aux=True))
    assert identical(given, expected)
    assert all(jnp.any(part) for part in jax.tree.leaves(host_grad))
    assert worst(grad, host_grad) < 1e-12
    return given[2]


def test_every_solver_has_a_case():
    public = {name: x for name, x in vars(diffrax).items() if inspect.isclass(x) and issubclass(x, BASES)}
    assert {name for name in public if not name.startswith("Abstract")} == set(SOLVERS)


@pytest.mark.by_default(where=lambda name: name in CONSTANT)
@pytest.mark.parametrize("name", [name for name in SOLVERS if name in CONSTANT or name not in ADAPTIVE | ESTIMATING])
def test_constant_steps(name):
    stats = assert_as_host(lambda x, adjoint: solve(x, adjoint, name, adaptive=False), inputs())
    assert stats["num_accepted_steps"] == 4


@pytest.mark.by_default(where=lambda name: name in ADAPTIVE)
@pytest.mark.parametrize("name", sorted(ESTIMATING | HALVED))
def test_steps_chosen_by_the_error(name):
    stats = assert_as_host(lambda x, adjoint: solve(x, adjoint, name, adaptive=True), inputs())
    # Where nothing is chosen it is four and none.
    assert stats["num_accepted_steps"] != 4 or stats["num_rejected_steps"] > 0


def test_a_control_that_is_data():
    ts = jnp.linspace(0.0, 1.0, 6)
    xs = jnp.stack([jnp.sin(3 * ts), ts**2], axis=1)

    def run(x, adjoint):
        inputs, xs = x
        control = diffrax.CubicInterpolation(ts, diffrax.backward_hermite_coefficients(ts, xs))
        term = diffrax.ControlTerm(lambda t, y, args: args.diffusion * jnp.sin(args.drift @ y)[:, None], control)
        settings = {"stepsize_controller": diffrax.PIDController(rtol=1e-3, atol=1e-3), "adjoint": adjoint}
        return diffrax.diffeqsolve(term, diffrax.Heun(), 0.0, 1.0, 0.5, inputs.y0, inputs, max_steps=256, **settings)

    stats = assert_as_host(run, (inputs()._replace(field=None), xs))
    assert stats["num_rejected_steps"] > 0


@pytest.mark.parametrize("name", ["Euler", "ShARK"])
def test_a_path_that_forgets_is_refused(name):
    def run(x):
        noise, levy_area = SOLVERS[name]
        terms, y0 = noise(x, levy_area)
        path = diffrax.UnsafeBrownianPath((CHANNELS,), jax.random.key(0), levy_area=levy_area)
        terms = diffrax.MultiTerm(terms.terms[0], diffrax.ControlTerm(terms.terms[1].vector_field, path))
        solution = diffrax.diffeqsolve(terms, getattr(diffrax, name)(), 0.0, 1.0, 0.25, y0, x, adjoint=OURS)
        return jnp.sum(solution.ys)

    with pytest.raises(UnsupportedError, match=r"UnsafeBrownianPath.*Use `diffrax\.VirtualBrownianTree`"):
        jax.grad(run)(inputs())
