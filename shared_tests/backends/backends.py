"""What each backend can do (the capability table), and the record of one run that every backend returns.

Imports no framework: `load_backend` brings in the adapter of the one backend that a process is for.
"""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from steptape._errors import UnsupportedHostVersion

PARTS = ("y0", "params", "times")
HOSTS = {"torch": "torchdiffeq", "jax": "diffrax"}


@dataclass(frozen=True)
class Method:
    """One way to a gradient. `oracle` names the host's own back-propagation, for our methods only.

    `on_given_grid` says whether forward and backward pass follow one given grid; `parts` are the inputs the
    method differentiates in.
    """

    name: str
    oracle: str = ""
    on_given_grid: bool = True
    parts: tuple[str, ...] = PARTS


@dataclass(frozen=True)
class Solver:
    """One solver of a backend: the host's name for it, and whether it chooses its own steps."""

    name: str
    host_name: str
    adaptive: bool


METHODS: dict[str, tuple[Method, ...]] = {
    "torch": (
        Method("aca", oracle="backprop"),
        Method("backprop"),
        Method("adjoint", on_given_grid=False),
        Method("seminorm", on_given_grid=False),
        Method("quadrature", on_given_grid=False),
    ),
    "jax": (
        Method("aca", oracle="recursive"),
        Method("recursive"),
        Method("backsolve", on_given_grid=False, parts=("y0", "params")),
        Method("seminorm", on_given_grid=False, parts=("y0", "params")),
        Method("quadrature", on_given_grid=False),
    ),
}

SOLVERS: dict[str, tuple[Solver, ...]] = {
    "torch": (
        Solver("dopri5", "dopri5", adaptive=True),
        Solver("bosh3", "bosh3", adaptive=True),
        Solver("dopri8", "dopri8", adaptive=True),
        Solver("fehlberg2", "fehlberg2", adaptive=True),
        Solver("adaptive_heun", "adaptive_heun", adaptive=True),
        Solver("heun", "heun2", adaptive=False),
        Solver("heun3", "heun3", adaptive=False),
        Solver("midpoint", "midpoint", adaptive=False),
        Solver("euler", "euler", adaptive=False),
        Solver("rk4", "rk4", adaptive=False),
    ),
    "jax": (
        Solver("dopri5", "Dopri5", adaptive=True),
        Solver("bosh3", "Bosh3", adaptive=True),
        Solver("dopri8", "Dopri8", adaptive=True),
        Solver("tsit5", "Tsit5", adaptive=True),
        Solver("heun", "Heun", adaptive=True),
        Solver("midpoint", "Midpoint", adaptive=False),
        Solver("euler", "Euler", adaptive=False),
    ),
}


SHARED_SOLVERS = ("dopri5", "bosh3", "dopri8", "heun", "midpoint", "euler")
"""The solvers whose coefficients are the same in both hosts, so that on one grid both give one gradient."""


@dataclass(frozen=True)
class Capability:
    """One row of the capability table: what a method can do with a solver."""

    method: Method
    solver: Solver

    @property
    def grades(self) -> tuple[str, ...]:
        """The grades of parity this row takes part in: `adaptive` (own steps), `grid` (given steps)."""
        own = ("adaptive",) if self.solver.adaptive else ()
        return (*own, "grid") if self.method.on_given_grid else own


CAPABILITIES: dict[tuple[str, str, str], Capability] = {
    (backend, method.name, solver.name): Capability(method, solver)
    for backend, methods in METHODS.items()
    for method in methods
    for solver in SOLVERS[backend]
}


@dataclass(frozen=True)
class Case:
    """One run to make: a problem, a method, a solver, and either a tolerance, a grid or, for an SDE, a step size.

    `rtol` is the relative and the absolute tolerance of the solver's own steps. `grid` holds the ends of all
    steps from t0 to t1, every output time among them; empty means own steps. `step` is the size of all steps of an
    SDE's solve.
    """

    problem: str
    method: str
    solver: str
    rtol: float = 0.0
    grid: tuple[float, ...] = ()
    step: float = 0.0

    @property
    def grade(self) -> str:
        """`sde` for an SDE, `grid` where the steps are given, `adaptive` where the solver chooses them."""
        if self.step:
            return "sde"
        return "grid" if self.grid else "adaptive"

    @property
    def key(self) -> tuple[str, str, str, str, float]:
        """What tells this case from the others of its backend."""
        return (self.grade, self.problem, self.solver, self.method, self.rtol)


@dataclass
class Run:
    """What came of a case; an adapter fills in the numbers, or `failure` with the reason.

    `gradient` maps each part in `PARTS` to a flat list, and holds only the parts the method differentiates in.
    `ys` has shape (outputs, dim). `grid` holds the ends of the accepted steps, t0 first. Evaluations count calls
    of the field, with those made again in the backward pass. `parameter_pulls` counts the vector-Jacobian products in
    the parameters, None where that was not counted.
    `seconds` is the wall time of forward and backward pass together, without compilation. `absent` says that
    the installed host has no such solver.
    """

    backend: str
    case: Case
    failure: str = ""
    absent: bool = False
    loss: float = float("nan")
    ys: list[list[float]] = field(default_factory=list)
    gradient: dict[str, list[float]] = field(default_factory=dict)
    grid: list[float] = field(default_factory=list)
    forward_evaluations: int = 0
    backward_evaluations: int = 0
    parameter_pulls: int | None = None
    seconds: float = float("nan")

    def to_json(self) -> dict[str, Any]:
        """Return the run as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Run":
        """Return the run that `to_json` made `data` from."""
        case = Case(**{**data["case"], "grid": tuple(data["case"]["grid"])})
        return cls(**{**data, "case": case})


def installed_backends() -> list[str]:
    """Return the backends whose host library can be found, without importing it."""
    return [name for name, host in HOSTS.items() if importlib.util.find_spec(host)]


def load_backend(name: str, grade: str) -> Any:
    """Return the adapter module of a backend for a grade of cases; it has `run(case)` and `versions()`.

    Raises:
        UnsupportedHostVersion: the backend's host library is not installed.
    """
    if name not in installed_backends():
        raise UnsupportedHostVersion(
            f"backend {name!r} needs {HOSTS[name]}, which is not installed: pip install 'steptape[{name}]'"
        )
    suffix = f"_{grade}" if grade in ("sde", "host") else ""
    return importlib.import_module(f"steptape.shared_tests.backends.backend_{name}{suffix}")


def run_case(run: Callable[[Case], Run], backend: str, case: Case) -> Run:
    """Run a case and turn whatever it raises, and a gradient that is not finite, into a recorded failure."""
    try:
        result = run(case)
    except Exception as error:
        return Run(backend, case, failure=_reason(error))
    broken = [part for part, values in result.gradient.items() if not all(map(_finite, values))]
    if broken:
        return Run(backend, case, failure=f"not finite: gradient in {', '.join(broken)}")
    return result


def _finite(value: float) -> bool:
    return abs(value) < float("inf")


def _reason(error: Exception) -> str:
    """Return one line, at most 160 characters long, that names the error.

    An error raised inside a compiled JAX program is quoted somewhere in the text of another one.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    quoted = [line.partition("Error: ")[2] for line in lines if "RuntimeError: " in line]
    return f"{type(error).__name__}: {quoted[-1] if quoted else lines[0]}"[:160]
