"""The table of a parity report that shows where a host's own gradient is wrong, and what is promised of ours there."""

import math
from dataclasses import dataclass

from steptape.shared_tests.backends.backends import Run
from steptape.shared_tests.parity.promises import Check
from steptape.shared_tests.problems.host_faults import FAULTS, OUTPUTS, STEPS, TOLERANCE, Fault

PROMISE = "right where the host is wrong"

FAULT_COLUMNS = ("method", "error", "allowed", "status")
FAULT_LEGEND = (
    f"error: of the gradient, against a closed form. constant_steps: {OUTPUTS} outputs of {STEPS} steps of Euler's "
    f"method, by diffrax's default adjoint. time_as_number: dopri5 at {TOLERANCE:g}, the field reads t as a number."
)


def _error(run: Run) -> float:
    (got,) = run.gradient.get("params") or [math.nan]
    return abs(got / FAULTS[run.case.problem].right - 1)


def check_faults(runs: list[Run]) -> list[Check]:
    """Return the promise that ours is right, judged on every fault."""
    return [
        Check(PROMISE, run.backend, run.case.problem, run.case.solver, _error(run), FAULTS[run.case.problem].limit)
        for run in runs
        if run.case.method == "aca"
    ]


@dataclass(frozen=True)
class FaultRow:
    """One line of the table: a method on a problem where the host's is wrong; `note` says why a line is failing."""

    backend: str
    problem: str
    method: str
    error: float
    limit: float
    failing: bool
    note: str

    def cells(self, indent: str = "") -> tuple[str, ...]:
        """Return what the line shows, in the order of the columns."""
        status = "wrong" if self.failing else "right"
        return (f"{indent}{self.backend} {self.method}", f"{self.error:.1e}", f"{self.limit:.1e}", status)


def make_fault_rows(runs: list[Run]) -> list[FaultRow]:
    """Return the lines of the table."""
    return [_make_row(run, FAULTS[run.case.problem]) for run in runs]


def _make_row(run: Run, fault: Fault) -> FaultRow:
    error = _error(run)
    failing = not error <= fault.limit
    note = run.failure or (fault.note if run.case.method == fault.peer else "")
    return FaultRow(
        run.backend, run.case.problem, run.case.method, error, fault.limit, failing, note if failing else ""
    )
