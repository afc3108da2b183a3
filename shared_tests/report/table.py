"""The rows of the table of a parity report."""

from dataclasses import dataclass

from steptape.shared_tests.backends.backends import METHODS, Method, Run
from steptape.shared_tests.parity.compare import STATE_PARTS, Comparison, relative_error
from steptape.shared_tests.parity.parity import HEADLINE
from steptape.shared_tests.parity.promises import BESIDE, EQUALS_HOST, Check


@dataclass(frozen=True)
class Row:
    """One line of the table: a method of a backend on a problem.

    `grid_error` and `adaptive_error` are differences to the other framework. The figures are those of the solver
    and the tolerance named `HEADLINE`, but for `grid_error`, and for `host_error` of our methods: these are the
    largest over all runs. None means not applicable, or nothing to show. `status` is short; `note` says why a
    line is failing.
    """

    backend: str
    problem: str
    method: str
    host_error: float | None
    reference_error: float | None
    grid_error: float | None
    adaptive_error: float | None
    forward_evaluations: int | None
    backward_evaluations: int | None
    parameter_pulls: int | None
    status: str
    failing: bool
    note: str


def make_rows(comparison: Comparison, checks: list[Check]) -> list[Row]:
    """Return the lines of the table, by problem, backend and method."""
    scope = comparison.outcome.scope
    return [
        _make_row(comparison, checks, problem, backend, method)
        for problem in scope.problems
        for backend in scope.backends
        for method in METHODS[backend]
    ]


def _make_row(comparison: Comparison, checks: list[Check], problem: str, backend: str, method: Method) -> Row:
    place = (backend, problem, method.name)
    runs = [
        run
        for run in comparison.outcome.runs
        if (run.backend, run.case.problem, run.case.method) == place and not run.absent
    ]
    good = [run for run in runs if not run.failure]
    headline = [run for run in good if (run.case.solver, run.case.rtol) == HEADLINE]
    pairs = [(run, other) for run in good if (other := comparison.counterpart(run))]
    on_grid = [relative_error(run.gradient, other.gradient) for run, other in pairs if run.case.grid]
    own_steps = [relative_error(run.gradient, other.gradient, STATE_PARTS) for run, other in pairs if run in headline]
    compared = good if method.oracle else headline
    hosted = [difference for run in compared if (difference := comparison.host_difference(run)) >= 0]
    places = [(name, problem, method.name) for name in (backend, "both")]
    judged = [check for check in checks if (check.backend, check.problem, check.method) in places]
    return Row(
        backend,
        problem,
        method.name,
        max(hosted, default=None),
        comparison.reference_error(headline[0]) if headline else None,
        max(on_grid, default=None),
        max(own_steps, default=None),
        headline[0].forward_evaluations if headline else None,
        headline[0].backward_evaluations if headline else None,
        headline[0].parameter_pulls if headline else None,
        *(_our_status(judged) if judged else _peer_status(comparison, runs)),
    )


def _our_status(judged: list[Check]) -> tuple[str, bool, str]:
    """Return status, failing and note of one of our methods: its promises decide."""
    for check in judged:
        if not check.holds:
            reason = f", {check.reason}" if check.reason else ""
            return "BROKEN", True, f"{check.promise}: {check.error:.1e}, {check.setting}{reason}"
    if any(check.promise == EQUALS_HOST for check in judged):
        return "exact", False, ""
    if any(check.promise.endswith(BESIDE) for check in judged):
        return "holds", False, ""
    return "unjudged", False, "the host's own back-propagation failed"


def _peer_status(comparison: Comparison, runs: list[Run]) -> tuple[str, bool, str]:
    """Return status, failing and note of one of the host's methods."""
    failures = [failure for run in runs if (failure := comparison.failure(run))]
    if failures:
        return f"fails {len(failures)}/{len(runs)}", True, failures[0]
    return "works", False, ""
