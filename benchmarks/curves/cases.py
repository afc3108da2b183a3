"""What is solved, the same in both frameworks: fields in the array API standard, inputs as NumPy arrays."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from steptape.shared_tests.problems.make_references import load_references
from steptape.shared_tests.problems.problems import PROBLEMS as SHARED

PROBLEMS = {
    "lotka_volterra": "lotka_volterra",
    "pendulum": "pendulum",
    "van_der_pol_mild": "van_der_pol_mild",
    "van_der_pol": "van_der_pol_stiff",
    "three_body": "three_body",
    "mlp": "",
}
STEP = 2.0**-6  # a power of two: the times of the steps, and their number, are exact
STEPS = 50


@dataclasses.dataclass(frozen=True)
class Case:
    """dy/dt = field(t, y, params) from ``y0``, (batch, dim), at ``times[0]``, in float64.

    ``loss`` maps the states at ``times[1:]``, (outputs, batch, dim), to a scalar. ``reference``: its gradient in y0 and
    the parameters, one after the other, flat.
    """

    name: str
    field: Callable[[Any, Any, Sequence[Any]], Any]
    y0: np.ndarray
    params: tuple[np.ndarray, ...]
    times: tuple[float, ...]
    loss: Callable[[Any], Any]
    reference: np.ndarray | None = None

    def error(self, gradient: np.ndarray) -> float | None:
        """Of a flat gradient, relative, in the Euclidean norm over all inputs."""
        if self.reference is None:
            return None
        return float(np.linalg.norm(gradient - self.reference) / np.linalg.norm(self.reference))


def mean_square(ys: Any) -> Any:
    """Over all outputs and entries."""
    return (ys * ys).mean()


def precision(name: str, mlp: Path) -> Case:
    """A problem of the work-precision curves; ``mlp``: a file, written if it is missing."""
    if name != "mlp":
        return _shared(name)
    if not mlp.exists():
        # By PyTorch, which shares no process with JAX.
        subprocess.run([sys.executable, "-m", "benchmarks.curves.mlp", str(mlp)], check=True)
    stored = np.load(mlp)
    params = tuple(stored[f"p{i}"] for i in range(6))
    return Case("mlp", perceptron, stored["y0"], params, tuple(stored["t"]), mean_square, stored["reference"])


def _shared(name: str) -> Case:
    problem = SHARED[PROBLEMS[name]]
    gradient = load_references()[problem.name]["gradient"]
    return Case(
        name,
        lambda t, y, params: problem.field(t, y[0, :], params[0])[None, :],
        np.array([problem.y0]),
        (np.array(problem.params),),
        problem.times,
        lambda ys: problem.loss(ys[:, 0, :]),
        np.concatenate([gradient["y0"], gradient["params"]]),
    )


def perceptron(t: Any, y: Any, params: Sequence[Any]) -> Any:
    """Two hidden tanh layers; weights (outputs, inputs) and biases in turn."""
    xp = array_namespace(y)
    w1, b1, w2, b2, w3, b3 = params
    return xp.tanh(xp.tanh(y @ w1.T + b1) @ w2.T + b2) @ w3.T + b3


def spinning(t: Any, y: Any, params: Sequence[Any]) -> Any:
    """Harmonic oscillators with one matrix: two numbers of the state each, one product an evaluation."""
    return y @ params[0]


def network(t: Any, y: Any, params: Sequence[Any]) -> Any:
    """A perceptron with two hidden tanh layers and no biases."""
    xp = array_namespace(y)
    first, hidden, last = params
    return xp.tanh(xp.tanh(y @ first) @ hidden) @ last


def _oscillators(states: int, steps: int) -> tuple[Case, int]:
    y0 = np.random.default_rng(0).normal(size=(max(1, states // 2), 2))
    matrix = np.array([[0.0, 1.0], [-1.0, 0.0]])
    return Case("", spinning, y0, (matrix,), (0.0, steps * STEP), mean_square), steps


def _networks(parameters: int) -> tuple[Case, int]:
    # 4 w + w² parameters for two states and a width of w.
    width, random = round((parameters + 4) ** 0.5 - 2), np.random.default_rng(0)
    shapes = ((2, width), (width, width), (width, 2))
    params = tuple(random.normal(size=shape) / shape[0] ** 0.5 for shape in shapes)
    return Case("", network, np.array([[1.0, -0.5]]), params, (0.0, STEPS * STEP), mean_square), STEPS


@dataclasses.dataclass(frozen=True)
class Axis:
    """What grows, the powers of ten that it takes, and the case with its number of steps at one of them."""

    name: str
    text: str
    powers: tuple[int, ...]
    case: Callable[[int], tuple[Case, int]]

    @property
    def sizes(self) -> list[int]:
        return [10**power for power in self.powers]


_FOR = f"for {STEPS} steps and"
AXES = (
    Axis(
        "steps",
        "accepted steps, for a state of 2 numbers and 4 parameters",
        (1, 2, 3, 4, 5),
        lambda size: _oscillators(2, size),
    ),
    Axis(
        "state", f"numbers in the state, {_FOR} 4 parameters", (1, 3, 4, 5, 6), lambda size: _oscillators(size, STEPS)
    ),
    Axis("parameters", f"parameters, {_FOR} a state of 2 numbers", (2, 4, 5, 6, 7), _networks),
)
