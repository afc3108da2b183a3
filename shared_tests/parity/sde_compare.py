"""Compares the gradients of SDE solves on one path: with the host's own, with the other framework's, with the truth.

The truth is the closed form on the given path, differentiated by complex steps. A gradient's error against it is that
of `compare.relative_error`: over all paths, the worse of y0 and params.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from steptape.shared_tests.backends.backends import METHODS, Run
from steptape.shared_tests.backends.sde_schemes import SCHEMES
from steptape.shared_tests.parity.compare import STATE_PARTS, relative_error
from steptape.shared_tests.parity.promises import EQUALS_HOST, Check
from steptape.shared_tests.problems.sde_paths import CELLS, path_values, per_path
from steptape.shared_tests.problems.sde_problems import OUTPUT_TIMES, SDE_PROBLEMS, Array

EXACT = 1e-12
"""The relative difference allowed between two gradients of the same steps on the same path."""

ORDER_TOLERANCE = 0.25
SAME_PATH = "torch equals JAX on the same path"
_COMPLEX_STEP = 1e-100


@functools.cache
def closed_form_gradient(problem: str, ito: bool) -> dict[str, list[float]]:
    """Return the gradient of the loss of the closed form in y0 and params, flat over paths and entries."""
    sde = SDE_PROBLEMS[problem]
    solution, values = sde.closed_form, path_values(sde.channels)
    if solution is None:
        raise ValueError(f"{problem} has no closed form")
    paths = [(t, values[:, : round(t * CELLS) + 1]) for t in OUTPUT_TIMES]
    start = np.concatenate([per_path(sde.y0), per_path(sde.params)], axis=1)

    def slope(direction: Array) -> Array:
        """The losses of the single paths, differentiated in one direction."""
        y0, params = np.split(start + 1j * _COMPLEX_STEP * direction, [len(sde.y0)], axis=1)
        ys = np.stack([solution(t, w, y0, params, ito) for t, w in paths], axis=0)
        return np.imag([sde.loss(ys[:, i : i + 1]) for i in range(ys.shape[1])]) / _COMPLEX_STEP

    columns = np.stack([slope(unit) for unit in np.eye(start.shape[1])], axis=1)
    return dict(
        zip(STATE_PARTS, (part.ravel().tolist() for part in np.split(columns, [len(sde.y0)], axis=1)), strict=True)
    )


def error_of(run: Run) -> float:
    """Return the error of a run's gradient against the closed form; not a number where there is none."""
    if run.failure or SDE_PROBLEMS[run.case.problem].closed_form is None:
        return math.nan
    return relative_error(run.gradient, closed_form_gradient(run.case.problem, SCHEMES[run.case.solver].ito))


@dataclass(frozen=True)
class SdeSeries:
    """The runs of ACA for one SDE with one scheme in one backend, from large steps to small ones."""

    backend: str
    problem: str
    scheme: str
    runs: tuple[Run, ...]
    host_runs: tuple[Run, ...]
    other_runs: tuple[Run, ...]

    @property
    def setting(self) -> str:
        """How checks name the scheme."""
        return f"{self.scheme}, same path"

    @property
    def failure(self) -> str:
        """Why a run of ACA failed, or nothing."""
        return next((run.failure for run in self.runs if run.failure), "")

    @property
    def host_difference(self) -> float | None:
        """The largest difference to the host's own back-propagation, where both gave a gradient."""
        return _largest_difference(_pairs(self.runs, self.host_runs))

    @property
    def cross_difference(self) -> float | None:
        """The largest difference to ACA in the other framework, where both gave a gradient."""
        return _largest_difference(_pairs(self.runs, self.other_runs))

    @property
    def bit_identical(self) -> bool:
        """Whether ACA's solutions are the host's."""
        return all((a.ys, a.loss) == (b.ys, b.loss) for a, b in _pairs(self.runs, self.host_runs))

    @property
    def points(self) -> list[tuple[float, float]]:
        """Step sizes with errors against the closed form, where there is one."""
        return [(run.case.step, error) for run in self.runs if (error := error_of(run)) > 0]

    @property
    def order(self) -> float | None:
        """The fitted order of convergence; the slope of the logarithms by least squares."""
        if len(self.points) < 2:
            return None
        steps, errors = np.log(np.array(self.points)).T
        return float(np.polyfit(steps, errors, 1)[0])

    @property
    def expected_order(self) -> float:
        """The strong order in theory."""
        return SCHEMES[self.scheme].order_for(SDE_PROBLEMS[self.problem])

    def as_data(self) -> dict[str, Any]:
        """Return what was found as plain data, without the gradients."""
        return {
            "backend": self.backend,
            "problem": self.problem,
            "scheme": self.scheme,
            "runs": len(self.runs) + len(self.host_runs),
            "failure": self.failure,
            "host_difference": self.host_difference,
            "cross_difference": self.cross_difference,
            "bit_identical": self.bit_identical,
            "errors": self.points,
            "order": self.order,
            "expected_order": self.expected_order,
        }


def _pairs(runs: tuple[Run, ...], others: tuple[Run, ...]) -> list[tuple[Run, Run]]:
    """Return the runs with the same steps that did not fail."""
    by_step = {run.case.step: run for run in others if not run.failure}
    return [(run, by_step[run.case.step]) for run in runs if not run.failure and run.case.step in by_step]


def _largest_difference(pairs: list[tuple[Run, Run]]) -> float | None:
    return max((relative_error(run.gradient, other.gradient) for run, other in pairs), default=None)


def all_series(runs: list[Run]) -> list[SdeSeries]:
    """Return the series of an outcome, by problem, scheme and backend as they ran."""
    found: dict[tuple[str, str, str, str], list[Run]] = {}
    for run in sorted(runs, key=lambda run: -run.case.step):
        found.setdefault((run.case.problem, run.case.solver, run.backend, run.case.method), []).append(run)
    series = []
    for problem, scheme, backend in dict.fromkeys((r.case.problem, r.case.solver, r.backend) for r in runs):
        ours = next(method for method in METHODS[backend] if method.oracle)
        other = "jax" if backend == "torch" else "torch"
        kinds = ((backend, ours.name), (backend, ours.oracle), (other, ours.name))
        mine, hosts, others = (tuple(found.get((problem, scheme, *kind), ())) for kind in kinds)
        series.append(SdeSeries(backend, problem, scheme, mine, hosts, others))
    places = {name: place for place, name in enumerate((*SDE_PROBLEMS, *SCHEMES))}
    return sorted(series, key=lambda one: (places[one.problem], places[one.scheme]))


def check_sdes(series: list[SdeSeries]) -> list[Check]:
    """Return every promise for SDEs, judged on every series it speaks of."""
    return [check for one in series for check in _check_one(one)]


def _check_one(series: SdeSeries) -> Iterator[Check]:
    def check(promise: str, error: float, limit: float, reason: str = "", backend: str = series.backend) -> Check:
        return Check(promise, backend, series.problem, series.setting, error, limit, reason)

    yield check("gives a gradient", math.inf if series.failure else 0.0, 0.0, series.failure)
    if series.host_difference is not None:
        yield check(EQUALS_HOST, series.host_difference, EXACT)
        yield check("forward bit-identical to the host's", float(not series.bit_identical), 0.0)
    if series.backend == "torch" and series.cross_difference is not None:
        yield check(SAME_PATH, series.cross_difference, EXACT, backend="both")
    if series.order is not None:
        off = abs(series.order - series.expected_order)
        reason = f"order {series.order:.2f}, in theory {series.expected_order:g}"
        yield check("converges to the closed form at the scheme's order", off, ORDER_TOLERANCE, reason)
