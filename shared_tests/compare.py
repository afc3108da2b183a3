"""Compares runs in three grades and says which promises hold.

*Same grid*: frameworks differentiate on identical steps and agree to rounding. *Adaptive*: each takes its own
steps; ACA equals its host's own back-propagation, which takes the same steps. *Reference*: the distance to the
stored reference, which is the solver's error and therefore no smaller for an exact method than for its host.

A gradient's error is the largest over its parts (y0, params, times) of |g - g'| / |g'| in the 2-norm. Against the
reference only y0 and params count: at an output inside a step the gradient in its time is the slope of the host's
interpolant, which is less accurate than the solver.
"""

import math
from dataclasses import dataclass
from typing import Any

from steptape.shared_tests.backends import METHODS, PARTS, SHARED_SOLVERS, Method, Run
from steptape.shared_tests.make_references import load_references
from steptape.shared_tests.parity import HEADLINE, Outcome
from steptape.shared_tests.problems import PROBLEMS

REFERENCE_PARTS = ("y0", "params")
REFERENCE_PROBLEM, REFERENCE_FACTOR = "van_der_pol_stiff", 10.0
WRONG_FACTOR = 1000.0


@dataclass(frozen=True)
class Check:
    """One promise judged on one run: it holds where `error` is at most `limit`."""

    promise: str
    backend: str
    case: str
    error: float
    limit: float
    reason: str = ""

    @property
    def holds(self) -> bool:
        """Whether the promise holds; an error that is not a number never does."""
        return self.error <= self.limit


@dataclass(frozen=True)
class Row:
    """One line of the table: a method of a backend on a problem.

    The figures are those of the solver and the tolerance named `HEADLINE`, but for `cross_error`, and for
    `host_error` of our methods: these are the largest over all runs. None means not applicable, or nothing to
    show. `status` is short; `note` says why a line is failing.
    """

    backend: str
    problem: str
    method: str
    host_error: float | None
    reference_error: float | None
    cross_error: float | None
    forward_evaluations: int | None
    backward_evaluations: int | None
    status: str
    failing: bool
    note: str


def relative_error(gradient: dict[str, list[float]], other: dict[str, list[float]], parts: Any = PARTS) -> float:
    """Return the largest over the parts both have of |g - g'| / |g'|, infinite where they share none."""
    errors = [_distance(gradient[p], other[p]) for p in parts if p in gradient and p in other]
    return max(errors, default=math.inf)


def _distance(values: list[float], others: list[float]) -> float:
    gap = math.dist(values, others)
    size = math.hypot(*others)
    return gap / size if size else gap


class Comparison:
    """The runs of an outcome, indexed for comparing, with the stored references."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.references = load_references()
        self.runs = {(run.backend, run.case.key): run for run in outcome.runs}

    def reference_error(self, run: Run) -> float:
        """Return the error of a run's gradient in y0 and params against the stored reference."""
        reference = self.references[run.case.problem]["gradient"]
        return relative_error(run.gradient, reference, REFERENCE_PARTS)

    def oracle(self, run: Run) -> Run | None:
        """Return the host's own back-propagation in the same setting as `run`, where it gave a gradient."""
        grade, problem, solver, _, rtol = run.case.key
        name = next(method.oracle for method in METHODS[run.backend] if method.oracle)
        oracle = self.runs.get((run.backend, (grade, problem, solver, name, rtol)))
        return oracle if oracle and not oracle.failure else None

    def host_difference(self, run: Run) -> float:
        """Return the difference to the host's own back-propagation; not a number for that method itself."""
        oracle = self.oracle(run)
        return relative_error(run.gradient, oracle.gradient) if oracle and oracle is not run else math.nan

    def counterpart(self, run: Run) -> Run | None:
        """Return the other framework's run on the same grid, of the method that answers to this one."""
        grade, problem, solver, method, rtol = run.case.key
        if grade != "grid" or solver not in SHARED_SOLVERS:
            return None
        answer = {"aca": "aca", "backprop": "recursive", "recursive": "backprop"}[method]
        other = "jax" if run.backend == "torch" else "torch"
        return self.runs.get((other, (grade, problem, solver, answer, rtol)))

    def failure(self, run: Run) -> str:
        """Return why a run failed, or nothing where it did not.

        A gradient is wrong, too, where its distance to the reference is over a thousand times both the tolerance
        and that of the host's own back-propagation.
        """
        if run.failure or run.case.grade == "grid":
            return run.failure
        error, limit = self.reference_error(run), self._plausible_error(run)
        return f"wrong: off by {error:.1g}" if error > limit else ""

    def _plausible_error(self, run: Run) -> float:
        oracle = self.oracle(run)
        return WRONG_FACTOR * max(run.case.rtol, self.reference_error(oracle) if oracle else 0.0)

    def checks(self) -> list[Check]:
        """Return every promise of ours, judged on every run it speaks of."""
        return [check for run in self.outcome.runs for check in self._checks_of(run)]

    def _checks_of(self, run: Run) -> list[Check]:
        if not _method(run.backend, run.case.method).oracle or run.absent:
            return []
        exact, relaxed = PROBLEMS[run.case.problem].exact, PROBLEMS[run.case.problem].relaxed
        label, oracle = _label(run), self.oracle(run)
        if run.failure:
            return [Check("ACA gives a gradient", run.backend, label, math.inf, 0.0, run.failure)]
        checks = []
        if oracle:
            error = relative_error(run.gradient, oracle.gradient)
            checks.append(Check("equals the host's back-propagation", run.backend, label, error, exact, relaxed))
            moved = float(run.ys != oracle.ys or run.loss != oracle.loss)
            checks.append(Check("forward bit-identical to the host's", run.backend, label, moved, 0.0))
        counterpart = self.counterpart(run)
        if counterpart and not counterpart.failure and run.backend == "torch":
            error = relative_error(run.gradient, counterpart.gradient)
            checks.append(Check("torch equals JAX on the same grid", "both", label, error, exact, relaxed))
        if run.case.problem == REFERENCE_PROBLEM and (run.case.solver, run.case.rtol) == HEADLINE:
            error, limit = self.reference_error(run), REFERENCE_FACTOR * run.case.rtol
            checks.append(Check("within 10 tolerances of the reference", run.backend, label, error, limit))
        return checks

    def rows(self) -> list[Row]:
        """Return the lines of the table, by problem, backend and method."""
        scope, checks = self.outcome.scope, self.checks()
        return [
            self._row(problem, backend, method, checks)
            for problem in scope.problems
            for backend in scope.backends
            for method in METHODS[backend]
        ]

    def _row(self, problem: str, backend: str, method: Method, checks: list[Check]) -> Row:
        runs = [
            run
            for run in self.outcome.runs
            if (run.backend, run.case.problem, run.case.method) == (backend, problem, method.name) and not run.absent
        ]
        good = [run for run in runs if not run.failure]
        pairs = [(run, self.counterpart(run)) for run in good]
        crossed = [relative_error(run.gradient, o.gradient) for run, o in pairs if o and not o.failure]
        headline = [run for run in good if (run.case.solver, run.case.rtol) == HEADLINE]
        compared = good if method.oracle else headline
        hosted = [difference for run in compared if (difference := self.host_difference(run)) >= 0]
        concerned = [check for check in checks if _concerns(check, backend, problem)]
        return Row(
            backend,
            problem,
            method.name,
            max(hosted, default=None),
            self.reference_error(headline[0]) if headline else None,
            max(crossed, default=None),
            headline[0].forward_evaluations if headline else None,
            headline[0].backward_evaluations if headline else None,
            *self._status(method, runs, concerned),
        )

    def _status(self, method: Method, runs: list[Run], checks: list[Check]) -> tuple[str, bool, str]:
        failures = [failure for run in runs if (failure := self.failure(run))]
        broken = [check for check in checks if not check.holds]
        if method.oracle and broken:
            return "BROKEN", True, f"{broken[0].promise}: {broken[0].error:.1e}"
        if failures:
            return f"fails {len(failures)}/{len(runs)}", True, failures[0]
        return ("exact" if method.oracle else "works"), False, ""


def _method(backend: str, name: str) -> Method:
    return next(method for method in METHODS[backend] if method.name == name)


def _concerns(check: Check, backend: str, problem: str) -> bool:
    return check.backend in (backend, "both") and check.case.split(", ")[0] == problem


def _label(run: Run) -> str:
    case = run.case
    return f"{case.problem}, {case.solver}, {'same grid' if case.grid else f'rtol {case.rtol:g}'}"
