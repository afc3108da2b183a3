"""What steptape promises of its gradients, judged on every run. The exit code of a parity report hangs on these.

*Adaptive* and *same grid*: ACA gives the gradient of its host's own back-propagation on the same steps, and the
host's forward result bit for bit. *Same grid*: torch and JAX give one gradient. *Reference*: van der Pol at μ = 5
comes within 10 tolerances, by ACA and by the quadrature adjoint. This one is judged at one setting, dopri5 at 1e-6,
because the distance to the reference is the solver's own error: its controller sees the state and not the
sensitivities, which err more, so that an exact gradient is 4 tolerances off here, 80 at 1e-4, and as far off on other
problems as their host's is. The quadrature adjoint, which is approximate, is no further from the reference than ten
tolerances or twice the distance of the host's own back-propagation, but where that one is near by luck.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from steptape.shared_tests.backends.backends import Run
from steptape.shared_tests.parity.compare import STATE_PARTS, Comparison, method_of, relative_error
from steptape.shared_tests.parity.parity import HEADLINE
from steptape.shared_tests.problems.problems import PROBLEMS

REFERENCE_PROBLEM, REFERENCE_FACTOR = "van_der_pol_stiff", 10.0
BESIDE_BACK_PROPAGATION = 2.0

BESIDE = "as near to the reference as back-propagation"
EQUALS_HOST = "equals the host's back-propagation"
INTERPOLATED_TIMES = 1e-11
LUCKY = {("van_der_pol_mild", 1e-6): (50.0, "back-propagation is near by luck here: at 3e-6 it is 50 tolerances off")}
"""Where the bound in tolerances is another one: by problem and tolerance, and why."""
_INTERPOLATED = "in the slope of torchdiffeq's interpolant digits cancel: an ulp in an input moves it by 2e-12"


@dataclass(frozen=True)
class Check:
    """One promise judged on one run: it holds where `error` is at most `limit`. `reason` says why the limit is wide.

    `backend` is `both` where the frameworks are compared.
    """

    promise: str
    backend: str
    problem: str
    setting: str
    error: float
    limit: float
    reason: str = ""
    method: str = "aca"

    @property
    def holds(self) -> bool:
        """Whether the promise holds; an error that is not a number never does."""
        return self.error <= self.limit


Judge = Callable[[Comparison, Run], Iterator[Check]]


def check_all(comparison: Comparison) -> list[Check]:
    """Return every promise, judged on every run it speaks of."""
    exact: list[Judge] = [_gives_a_gradient, _equals_the_host, _keeps_the_forward, _agrees_across, _meets_the_reference]
    continuous: list[Judge] = [
        _gives_a_gradient,
        _keeps_the_forward,
        _is_beside_back_propagation,
        _meets_the_reference,
    ]
    runs = [run for run in comparison.outcome.runs if not run.absent]
    ours = [(run, exact) for run in runs if method_of(run).oracle]
    ours += [(run, continuous) for run in runs if run.case.method == "quadrature"]
    return [check for run, judges in ours for judge in judges for check in judge(comparison, run)]


def _check(run: Run, promise: str, error: float, limit: float, reason: str = "", backend: str = "") -> Check:
    setting = f"{run.case.solver}, {'same grid' if run.case.grid else f'rtol {run.case.rtol:g}'}"
    method = run.case.method
    promise = promise if method_of(run).oracle else f"{method}: {promise}"
    return Check(promise, backend or run.backend, run.case.problem, setting, error, limit, reason, method)


def _gives_a_gradient(comparison: Comparison, run: Run) -> Iterator[Check]:
    yield _check(run, "gives a gradient", math.inf if run.failure else 0.0, 0.0, run.failure)


def _equals_the_host(comparison: Comparison, run: Run) -> Iterator[Check]:
    oracle, problem = comparison.oracle(run), PROBLEMS[run.case.problem]
    if run.failure or not oracle:
        return
    error = relative_error(run.gradient, oracle.gradient, STATE_PARTS)
    yield _check(run, EQUALS_HOST, error, problem.exact, problem.relaxed)

    limit, reason = problem.exact, problem.relaxed
    if run.backend == "torch" and run.case.grade == "adaptive" and limit < INTERPOLATED_TIMES:
        limit, reason = INTERPOLATED_TIMES, _INTERPOLATED
    error = relative_error(run.gradient, oracle.gradient, ("times",))
    yield _check(run, f"{EQUALS_HOST} in the times", error, limit, reason)


def _keeps_the_forward(comparison: Comparison, run: Run) -> Iterator[Check]:
    oracle = comparison.oracle(run)
    if run.failure or not oracle:
        return
    changed = run.ys != oracle.ys or run.loss != oracle.loss
    yield _check(run, "forward bit-identical to the host's", float(changed), 0.0)


def _agrees_across(comparison: Comparison, run: Run) -> Iterator[Check]:
    other, problem = comparison.counterpart(run), PROBLEMS[run.case.problem]
    if run.failure or not other or run.case.grade != "grid" or run.backend != "torch":
        return
    error = relative_error(run.gradient, other.gradient)
    yield _check(run, "torch equals JAX on the same grid", error, problem.exact, problem.relaxed, "both")


def _is_beside_back_propagation(comparison: Comparison, run: Run) -> Iterator[Check]:
    oracle = comparison.oracle(run)
    if run.failure or not oracle:
        return
    factor, reason = LUCKY.get((run.case.problem, run.case.rtol), (REFERENCE_FACTOR, ""))
    limit = max(factor * run.case.rtol, BESIDE_BACK_PROPAGATION * comparison.reference_error(oracle))
    yield _check(run, BESIDE, comparison.reference_error(run), limit, reason)


def _meets_the_reference(comparison: Comparison, run: Run) -> Iterator[Check]:
    if run.case.problem != REFERENCE_PROBLEM or (run.case.solver, run.case.rtol) != HEADLINE or run.failure:
        return
    limit = REFERENCE_FACTOR * run.case.rtol
    yield _check(run, "within 10 tolerances of the reference", comparison.reference_error(run), limit)
