"""Plans the runs of a parity report and makes them, each framework in its own process.

The *adaptive* runs come first: every solver takes its own steps. For the *same grid* runs the steps one framework
took are given to all: the frameworks take turns, problem by problem, in giving the steps. A grid is the accepted
steps with the output times put in, so that no output is interpolated. For the quick problems the steps are stored in
`grids.json` (those of torchdiffeq 0.2.5 to ten digits), so that reports of any versions and machines are on the same
ones. Then come the *SDE* runs, on given steps and paths, and last, unless problems were named, the *host* runs, of
problems on which a host's own gradient is known to be wrong.
"""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from steptape.shared_tests.backends.backends import CAPABILITIES, SHARED_SOLVERS, Capability, Case, Run
from steptape.shared_tests.parity.sde_cases import default_sdes, sde_cases
from steptape.shared_tests.parity.worker import read_runs, write_cases
from steptape.shared_tests.problems.host_faults import FAULTS
from steptape.shared_tests.problems.problems import PROBLEMS
from steptape.shared_tests.problems.sde_problems import SDE_PROBLEMS

HEADLINE = ("dopri5", 1e-6)
"""The solver and the tolerance of the figures in the table."""

_SWEEP = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
_QUICK_SWEEP = (1e-4, 1e-6, 1e-8)
_TOLERANCES = {
    "dopri5": _SWEEP,
    "bosh3": (1e-5,),
    "dopri8": (1e-8,),
    "tsit5": (1e-6,),
    "heun": (1e-4,),
    "fehlberg2": (1e-4,),
    "adaptive_heun": (1e-4,),
}
_GRID_SOURCES = {"dopri5": HEADLINE, "bosh3": ("bosh3", 1e-5), "dopri8": ("dopri8", 1e-8)}
_FINE_GRID = ("dopri5", 1e-8)
_QUICK_PROBLEMS = ("exponential", "lotka_volterra", "van_der_pol_stiff", "mlp")
_QUICK_GRID_SOLVERS = ("dopri5", "heun")

OnProgress = Callable[[str, str, int, int], None]
"""Called with backend, grade, finished runs and planned runs."""


@dataclass(frozen=True)
class Scope:
    """What a parity report covers: `problems` are ODEs, `sdes` are SDEs; `faults`: where hosts are known to fail."""

    backends: tuple[str, ...]
    problems: tuple[str, ...]
    sdes: tuple[str, ...]
    quick: bool
    faults: bool = False

    @classmethod
    def of(cls, backends: list[str], problems: list[str], quick: bool) -> "Scope":
        """Return the scope for the backends, with the default problems where none are named."""
        if not problems:
            odes = _QUICK_PROBLEMS if quick else tuple(PROBLEMS)
            return cls(tuple(backends), odes, default_sdes(quick), quick, faults=True)
        odes, sdes = (tuple(name for name in problems if name in known) for known in (PROBLEMS, SDE_PROBLEMS))
        return cls(tuple(backends), odes, sdes, quick)


@dataclass
class Outcome:
    """Everything that was run: `versions` by backend, and the runs of all backends, SDEs and faults by themselves."""

    scope: Scope
    versions: dict[str, dict[str, str]]
    runs: list[Run]
    sde_runs: list[Run]
    host_runs: list[Run] = field(default_factory=list)


def adaptive_cases(scope: Scope, backend: str) -> list[Case]:
    """Return the cases of one backend in which the solver takes its own steps.

    The hosts' continuous adjoints run with the solver of the table alone.
    """
    cases = []
    for problem in scope.problems:
        for capability in _capabilities(backend, "adaptive"):
            solver = capability.solver.name
            if solver != HEADLINE[0] and (scope.quick or not capability.method.on_given_grid):
                continue
            tolerances = _QUICK_SWEEP if scope.quick else _TOLERANCES[solver]
            cases += [Case(problem, capability.method.name, solver, rtol) for rtol in tolerances]
    return cases


def grid_cases(scope: Scope, backend: str, runs: list[Run]) -> list[Case]:
    """Return the cases of one backend on grids from the adaptive `runs` of all backends."""
    cases = []
    for index, problem in enumerate(scope.problems):
        turn = index % len(scope.backends)
        givers = scope.backends[turn:] + scope.backends[:turn]
        for capability in _capabilities(backend, "grid"):
            solver = capability.solver
            shared = solver.name in (_QUICK_GRID_SOLVERS if scope.quick else SHARED_SOLVERS)
            if shared or not (solver.adaptive or scope.quick):
                grid = _given_grid(runs, givers, problem, solver.name)
                cases += [Case(problem, capability.method.name, solver.name, grid=grid)] if grid else []
    return cases


def host_cases(backend: str) -> list[Case]:
    """Return the cases of one backend: of every fault our gradient and the host's."""
    return [
        Case(problem, method, fault.solver, fault.rtol)
        for problem, fault in FAULTS.items()
        if fault.backend == backend
        for method in ("aca", fault.peer)
    ]


def _capabilities(backend: str, grade: str) -> list[Capability]:
    rows = CAPABILITIES.items()
    return [row for (owner, _, _), row in rows if owner == backend and grade in row.grades]


def _given_grid(runs: list[Run], givers: tuple[str, ...], problem: str, solver: str) -> tuple[float, ...]:
    """Return the grid for a solver on a problem, stored or of the first giver with one; nothing where all failed."""
    source = _GRID_SOURCES.get(solver, _FINE_GRID)
    times = PROBLEMS[problem].times
    taken = (
        run.grid
        for giver in givers
        for run in runs
        if (run.backend, run.case.problem, (run.case.solver, run.case.rtol)) == (giver, problem, source) and run.grid
    )
    steps = _stored_grids().get(problem, {}).get(f"{source[0]} {source[1]:g}") or next(taken, ())
    return tuple(sorted({t for t in steps if t < times[-1]} | set(times))) if steps else ()


@functools.cache
def _stored_grids() -> dict[str, dict[str, list[float]]]:
    return json.loads(Path(__file__).with_name("grids.json").read_text(encoding="utf-8"))


def run_parity(scope: Scope, folder: Path, on_progress: OnProgress) -> Outcome:
    """Make all runs of a scope and leave the files the processes exchanged in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    plans = {backend: adaptive_cases(scope, backend) for backend in scope.backends}
    versions, adaptive = _run_all(plans, "adaptive", folder, on_progress)
    plans = {backend: grid_cases(scope, backend, adaptive) for backend in scope.backends}
    _, on_grids = _run_all(plans, "grid", folder, on_progress)
    plans = {backend: sde_cases(backend, scope.sdes, scope.quick) for backend in scope.backends}
    for_sdes, sde_runs = _run_all(plans, "sde", folder, on_progress)
    plans = {backend: host_cases(backend) for backend in scope.backends if scope.faults}
    _, host_runs = _run_all(plans, "host", folder, on_progress)
    versions = {name: {**versions.get(name, {}), **for_sdes.get(name, {})} for name in scope.backends}
    return Outcome(scope, versions, adaptive + on_grids, sde_runs, host_runs)


def _run_all(
    plans: dict[str, list[Case]], grade: str, folder: Path, on_progress: OnProgress
) -> tuple[dict[str, dict[str, str]], list[Run]]:
    """Run the cases of every backend side by side; return the versions by backend, and all runs.

    A backend with no cases gets no process.
    """
    plans = {backend: cases for backend, cases in plans.items() if cases}
    if not plans:
        return {}, []

    def make(backend: str) -> tuple[dict[str, str], list[Run]]:
        return run_backend(backend, grade, plans[backend], folder, on_progress)

    with ThreadPoolExecutor(len(plans)) as pool:
        made = dict(zip(plans, pool.map(make, plans), strict=True))
    versions = {backend: found for backend, (found, _) in made.items()}
    return versions, [run for _, runs in made.values() for run in runs]


def run_backend(
    backend: str, grade: str, cases: list[Case], folder: Path, on_progress: OnProgress
) -> tuple[dict[str, str], list[Run]]:
    """Run the cases in a process of their own; return its versions and one run for each case.

    Where the process ends early, the cases it did not come to are recorded as failures.
    """
    plan, results, log = (folder / f"{backend}-{grade}.{end}" for end in ("cases.json", "runs.jsonl", "log"))
    results.unlink(missing_ok=True)
    write_cases(plan, cases)
    command = [sys.executable, "-m", "steptape.shared_tests.parity.worker", backend, grade, str(plan), str(results)]
    environment = {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu", **os.environ, "PYTHONSAFEPATH": "1"}
    on_progress(backend, grade, 0, len(cases))
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process,
    ):
        assert process.stdout is not None
        finished = 0
        for line in process.stdout:
            finished += line.strip() == "finished"
            on_progress(backend, grade, finished, len(cases))
    versions, runs = read_runs(results)
    reason = f"the process ended with code {process.returncode}, see {log.name}"
    return versions, runs + [Run(backend, case, failure=reason) for case in cases[len(runs) :]]
