"""Compares the gradients of runs with each other and with the stored references, in three grades.

*Same grid*: both frameworks differentiate on identical steps and agree to rounding. *Adaptive*: each takes its own
steps, and they agree to tolerance. *Reference*: the distance to the stored reference, the solver's own error.

A gradient's error is the largest over its parts (y0, params, times) of |g - g'| / |g'| in the 2-norm. Against the
reference, and between frameworks on their own steps, only y0 and params count: at an output inside a step the
gradient in its time is the slope of the host's interpolant, which is less accurate than the solver and not the
same in both hosts.
"""

import math
from collections.abc import Sequence

from steptape.shared_tests.backends.backends import METHODS, PARTS, SHARED_SOLVERS, Method, Run
from steptape.shared_tests.oracles.distance import distance, euclidean
from steptape.shared_tests.parity.parity import Outcome
from steptape.shared_tests.problems.make_references import load_references

STATE_PARTS = ("y0", "params")
WRONG_FACTOR = 1000.0

_COUNTERPARTS = {
    "aca": "aca",
    "backprop": "recursive",
    "recursive": "backprop",
    "adjoint": "backsolve",
    "backsolve": "adjoint",
    "seminorm": "seminorm",
    "quadrature": "quadrature",
}


def relative_error(
    gradient: dict[str, list[float]], other: dict[str, list[float]], parts: Sequence[str] = PARTS
) -> float:
    """Return the largest over the parts both have of |g - g'| / |g'|, infinite where they share none."""
    shared = [part for part in parts if part in gradient and part in other]
    if not shared:
        return math.inf
    return distance([gradient[part] for part in shared], [other[part] for part in shared], euclidean)


def method_of(run: Run) -> Method:
    """Return the row of the method table that a run belongs to."""
    return next(method for method in METHODS[run.backend] if method.name == run.case.method)


class Comparison:
    """The runs of an outcome, each with those it is to be compared with."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self._references = load_references()
        self._runs = {(run.backend, run.case.key): run for run in outcome.runs}

    def reference_error(self, run: Run) -> float:
        """Return the error of a run's gradient in y0 and params against the stored reference."""
        return relative_error(run.gradient, self._references[run.case.problem]["gradient"], STATE_PARTS)

    def oracle(self, run: Run) -> Run | None:
        """Return the host's own back-propagation in the same setting as `run`, where it gave a gradient."""
        grade, problem, solver, _, rtol = run.case.key
        name = next(method.oracle for method in METHODS[run.backend] if method.oracle)
        return self._good(run.backend, (grade, problem, solver, name, rtol))

    def host_difference(self, run: Run) -> float:
        """Return the difference to the host's own back-propagation; not a number for that method itself."""
        oracle = self.oracle(run)
        return relative_error(run.gradient, oracle.gradient) if oracle and oracle is not run else math.nan

    def counterpart(self, run: Run) -> Run | None:
        """Return the other framework's run in the same setting, of the method that answers to this one."""
        grade, problem, solver, method, rtol = run.case.key
        if method not in _COUNTERPARTS or solver not in SHARED_SOLVERS:
            return None
        other = "jax" if run.backend == "torch" else "torch"
        return self._good(other, (grade, problem, solver, _COUNTERPARTS[method], rtol))

    def _good(self, backend: str, key: tuple[str, str, str, str, float]) -> Run | None:
        run = self._runs.get((backend, key))
        return run if run and not run.failure else None

    def failure(self, run: Run) -> str:
        """Return why a run failed, or nothing where it did not.

        A gradient is wrong, too, where its distance to the reference is over a thousand times both the tolerance
        and the distance of the host's own back-propagation.
        """
        if run.failure or run.case.grade == "grid":
            return run.failure
        oracle = self.oracle(run)
        plausible = WRONG_FACTOR * max(run.case.rtol, self.reference_error(oracle) if oracle else 0.0)
        error = self.reference_error(run)
        return f"wrong: off by {error:.1g}" if error > plausible else ""
