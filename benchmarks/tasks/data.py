"""The tasks: data by NumPy and SciPy from fixed seeds, the sizes of the nets, the tolerances."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator

import numpy as np
from scipy.integrate import solve_ivp

Arrays = tuple[np.ndarray, ...]
TOLERANCES = ((1e-3, 1e-6), (1e-4, 1e-7), (1e-5, 1e-8))
Weights = dict[str, list[np.ndarray]]  # of each perceptron: matrix, bias, matrix, bias, ...


@dataclasses.dataclass(frozen=True)
class Task:
    """One model and its data.

    ``nets``: the widths of each perceptron's layers. ``field``: which of them are in the vector field. ``dim``: of one
    example's state. ``train`` and ``test``: arrays with the examples first; the test set is a multiple of ``batch``.
    ``times``: of the solve, or of the knots of the path. ``rate``: of learning. ``score``: what is measured on the test
    set. ``noise``: of the trace estimate, shape (batch, 64). ``gain``: of the initial weights.
    """

    name: str
    kind: str
    nets: dict[str, tuple[int, ...]]
    field: tuple[str, ...]
    dim: int
    train: Arrays
    test: Arrays
    batch: int
    times: np.ndarray
    tolerances: tuple[tuple[float, float], ...]
    rate: float
    score: str
    noise: np.ndarray | None = None
    gain: float = 1

    def weights(self, seed: int = 1) -> Weights:
        random = np.random.default_rng(seed)
        return {name: _layers(widths, self.gain, random) for name, widths in self.nets.items()}

    def batches(self, steps: int, seed: int = 2) -> Iterator[Arrays]:
        random = np.random.default_rng(seed)
        for _ in range(steps):
            chosen = random.choice(len(self.train[0]), self.batch, replace=False)
            yield tuple(x[chosen] for x in self.train)

    def test_batches(self) -> Iterator[Arrays]:
        """The test set, in pieces of the size of a batch."""
        for start in range(0, len(self.test[0]), self.batch):
            yield tuple(x[start : start + self.batch] for x in self.test)

    def parameters(self) -> int:
        """How many numbers the field is trained in: the channels that the seminorm leaves out."""
        weights = self.weights()
        return sum(x.size for name in self.field for x in weights[name])

    def channels(self) -> int:
        """How many numbers the state of a batch is."""
        return self.batch * self.dim


def flat(weights: Weights) -> np.ndarray:
    return np.concatenate([x.ravel() for layers in weights.values() for x in layers])


def shaped(vector: np.ndarray, like: Weights) -> Weights:
    """The inverse of ``flat``."""
    parts = iter(np.split(vector, np.cumsum([x.size for layers in like.values() for x in layers])))
    return {name: [next(parts).reshape(x.shape) for x in layers] for name, layers in like.items()}


def _layers(widths: tuple[int, ...], gain: float, random: np.random.Generator) -> list[np.ndarray]:
    layers = []
    for i, o in itertools.pairwise(widths):
        layers += [gain * random.normal(size=(i, o)) / i**0.5, random.normal(size=o) / i**0.5]
    return layers


def cde(paper: bool) -> Task:
    """Is a spiral clockwise? A neural CDE along its path reads the answer."""
    hidden, width, depth, batch, length = (90, 40, 4, 1024, 32) if paper else (16, 32, 2, 64, 10)
    times = np.linspace(0, 1, length)
    path, label = _spirals(8 * batch, times, np.random.default_rng(0))
    nets: dict[str, tuple[int, ...]] = {
        "initial": (3, hidden),
        "field": (hidden, *[width] * depth, 3 * hidden),
        "readout": (hidden, 1),
    }
    cut = 4 * batch
    data = (path[:cut], label[:cut]), (path[cut:], label[cut:])
    return Task("cde", "cde", nets, ("field",), hidden, *data, batch, times, TOLERANCES, 1e-2, "accuracy")


def _spirals(count: int, times: np.ndarray, random: np.random.Generator) -> Arrays:
    """Paths (count, len(times), 3), the time among them, and labels (count,)."""
    label = random.integers(0, 2, count).astype(float)
    angle = random.uniform(0, 2 * np.pi, (count, 1)) + np.where(label[:, None] == 1, 1, -1) * 3 * np.pi * times
    xy = np.stack([np.cos(angle), np.sin(angle)], -1) / (1 + 2 * times[:, None])
    xy = xy + 0.05 * random.normal(size=xy.shape)
    return np.concatenate([np.broadcast_to(times[:, None], (count, len(times), 1)), xy], -1), label


def density(name: str, paper: bool) -> Task:
    """A continuous normalising flow from points in the plane to a Gaussian, with the exact trace."""
    batch, width = (512, 64) if paper else (128, 32)
    points = DENSITIES[name](8 * batch, np.random.default_rng(0))
    return _flow(f"cnf-{name}", points, batch, (3, width, width, 2), noise=None)


def digits(paper: bool) -> Task:
    """A continuous normalising flow of the 8x8 digits, with Hutchinson's trace for one fixed noise."""
    from sklearn.datasets import load_digits

    random = np.random.default_rng(0)
    images = random.permutation(load_digits().data)
    images = (images + random.uniform(size=images.shape)) / 17 * 2 - 1
    batch, width = (256, 256) if paper else (64, 64)
    noise = random.choice([-1.0, 1.0], (batch, 64))
    return _flow("cnf-digits", images[: 6 * batch], batch, (65, width, width, 64), noise)


def _flow(name: str, points: np.ndarray, batch: int, net: tuple[int, ...], noise: np.ndarray | None) -> Task:
    cut = len(points) - 2 * batch
    data = (points[:cut],), (points[cut:],)
    times = np.array([0.0, 1.0])
    # The gain makes the flow fast enough for some dozen steps, as a trained one's.
    nets, dim = {"field": net}, net[-1] + 1
    return Task(name, "cnf", nets, ("field",), dim, *data, batch, times, TOLERANCES, 5e-3, "nats", noise, gain=2)


def _moons(count: int, random: np.random.Generator) -> np.ndarray:
    angle, lower = random.uniform(0, np.pi, count), random.integers(0, 2, count)
    points = np.stack([np.cos(angle) - 0.5 + lower, np.sin(angle) * (1 - 2 * lower) - 0.25 + 0.5 * lower], -1)
    return 1.5 * (points + 0.08 * random.normal(size=points.shape))


def _pinwheel(count: int, random: np.random.Generator) -> np.ndarray:
    radius, across = 1 + 0.3 * random.normal(size=count), 0.1 * random.normal(size=count)
    angle = 2 * np.pi / 5 * random.integers(0, 5, count) + 0.25 * np.exp(radius)
    c, s = np.cos(angle), np.sin(angle)
    return 2 * np.stack([c * radius - s * across, s * radius + c * across], -1)


def _circles(count: int, random: np.random.Generator) -> np.ndarray:
    angle, radius = random.uniform(0, 2 * np.pi, count), random.choice([1.0, 2.0], count)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1) + 0.08 * random.normal(size=(count, 2))


DENSITIES = {"moons": _moons, "pinwheel": _pinwheel, "circles": _circles}


def symplectic(paper: bool) -> Task:
    """A symplectic ODE-Net learns the Hamiltonian of an acrobot under constant torques from short trajectories."""
    batch, mass, other = (256, 400, 300) if paper else (64, 64, 64)
    nets = {"mass": (4, mass, mass, mass, 3), "potential": (4, other, other, 1), "torque": (4, other, other, 4)}
    times = 0.05 * np.arange(8)
    series = _acrobot(6 * batch, times, np.random.default_rng(0))
    data = (series[: 4 * batch],), (series[4 * batch :],)
    tolerances = ((1e-3, 1e-3), (1e-4, 1e-4), (1e-5, 1e-5))
    return Task(
        "symplectic",
        "symplectic",
        nets,
        tuple(nets),
        6,
        *data,
        batch,
        times,
        tolerances,
        1e-3,
        "squared error",
        gain=1.5,
    )


def _acrobot(count: int, times: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """States (angles, momenta, torques) of two unit point masses on unit rods, shape (count, len(times), 6)."""
    start = np.concatenate(
        [random.uniform(-np.pi, np.pi, (count, 2)), random.normal(size=(count, 2)), random.uniform(-1, 1, (count, 2))],
        axis=1,
    )

    def slope(_, x):
        q1, q2, p1, p2, u1, u2 = x.reshape(6, count)
        c = np.cos(q2)
        inertia = np.stack([3 + 2 * c, 1 + c, 1 + c, np.ones(count)], -1).reshape(count, 2, 2)
        v1, v2 = np.linalg.solve(inertia, np.stack([p1, p2], -1)[..., None])[..., 0].T
        weight = 9.81 * np.sin(q1 + q2)
        kinetic = np.sin(q2) * v1 * (v1 + v2)
        return np.concatenate([v1, v2, u1 - 19.62 * np.sin(q1) - weight, u2 - weight - kinetic, 0 * u1, 0 * u2])

    solution = solve_ivp(slope, times[[0, -1]], start.T.ravel(), t_eval=times, rtol=1e-8, atol=1e-8)
    return solution.y.reshape(6, count, len(times)).transpose(1, 2, 0)


TASKS: dict[str, Callable[[bool], Task]] = {
    "cde": cde,
    **{f"cnf-{name}": functools.partial(density, name) for name in DENSITIES},
    "cnf-digits": digits,
    "symplectic": symplectic,
}
