"""Times by interleaved rounds, bytes by the allocator's own account, the error of a gradient, the machine."""

from __future__ import annotations

import dataclasses
import gc
import importlib.metadata
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torchdiffeq
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.fields import Problem, Setup, loss_of
from benchmarks.peers import HOST, METHODS, Method


@dataclasses.dataclass(frozen=True)
class Speed:
    """One method on one set-up. ``seconds``: of processor time, medians of forward, of backward and of their sum.

    ``ratio``: the median over the rounds of its time over that of the host's back-propagation in the same round.
    ``error``: of its gradient, against a tight reference, relative, in the Euclidean norm over all inputs.
    ``evaluations``: of the field, forward and backward.
    """

    setup: str
    method: str
    problem: str = ""
    seconds: tuple[float, float, float] = (0, 0, 0)
    ratio: float = 0
    spread: tuple[float, float] = (0, 0)
    rounds: int = 0
    error: float = 0
    evaluations: tuple[int, int] = (0, 0)
    accepted: int = 0
    without: str = ""


@dataclasses.dataclass
class _Racer:
    method: Method
    problem: Problem
    error: float
    evaluations: tuple[int, int]
    accepted: int
    rounds: int
    times: list[tuple[float, float]] = dataclasses.field(default_factory=list)


def speeds(setup: Setup, rounds: int, budget: float, note: Callable[[str], None]) -> list[Speed]:
    """Time every method in rounds of all of them; a slow one runs in 3, or as many as ``budget`` seconds allow."""
    torch.set_num_threads(1)
    note(f"{setup.name}: reference gradient")
    reference = reference_gradient(setup)
    racers, rows = [], []
    for method in METHODS:
        note(f"{setup.name}: warm-up of {method.name}")
        racer = _warmed_up(method, setup, reference, rounds, budget)
        if isinstance(racer, Speed):
            note(f"  {racer.without}")
            rows.append(racer)
        else:
            racers.append(racer)
    for n in range(rounds):
        note(f"{setup.name}: round {n + 1} of {rounds}")
        for racer in racers:
            if n < racer.rounds:
                racer.times.append(_time(racer.method, racer.problem))
    host = [sum(pair) for pair in next(racer.times for racer in racers if racer.method.name == HOST)]
    order = {method.name: i for i, method in enumerate(METHODS)}
    return sorted([*rows, *(_row(setup, racer, host) for racer in racers)], key=lambda row: order[row.method])


def reference_gradient(setup: Setup) -> Tensor:
    """The gradient by back-propagation through a float64 solve at 1e-12 by a method of order 8, flat."""
    problem = setup.problem(dtype=torch.float64)
    solution = torchdiffeq.odeint(
        lambda t, y: checkpoint(problem.field, t, y, use_reentrant=False),
        problem.y0,
        problem.t,
        rtol=1e-12,
        atol=1e-12,
        method="dopri8",
    )
    return _flat(torch.autograd.grad(loss_of(solution), problem.inputs()))


def _warmed_up(method: Method, setup: Setup, reference: Tensor, rounds: int, budget: float) -> _Racer | Speed:
    why_not = method.why_not(setup)
    if why_not is not None:
        return Speed(setup.name, method.name, setup.text, without=why_not)
    problem = setup.problem()
    try:
        method.solve(setup.problem(batch=1 if setup.batch == 1 else 2))
        problem.field.counts.update(dict.fromkeys(problem.field.counts, 0))
        start = time.perf_counter()
        solution = method.solve(problem)
        forward = problem.field.counts["evaluations"]
        accepted = problem.field.counts["accepted"]
        gradient = _flat(torch.autograd.grad(loss_of(solution), problem.inputs()))
        seconds = time.perf_counter() - start
    except Exception as error:
        return Speed(setup.name, method.name, setup.text, without=f"failed: {type(error).__name__}: {error}")
    wrong = float((gradient - reference).norm() / reference.norm())
    evaluations = (forward, problem.field.counts["evaluations"] - forward)
    affordable = max(3, min(rounds, int(budget / seconds)))
    return _Racer(method, problem, wrong, evaluations, accepted, affordable)


def _time(method: Method, problem: Problem) -> tuple[float, float]:
    # The process's own time: with one thread it is the wall's, less what other processes take from it.
    gc.collect()
    start = time.process_time()
    loss = loss_of(method.solve(problem))
    middle = time.process_time()
    torch.autograd.grad(loss, problem.inputs())
    return middle - start, time.process_time() - middle


def _row(setup: Setup, racer: _Racer, host: Sequence[float]) -> Speed:
    totals = [sum(pair) for pair in racer.times]
    # A slow method runs in the first rounds only.
    ratios = sorted(mine / theirs for mine, theirs in zip(totals, host, strict=False))
    forward, backward = zip(*racer.times, strict=True)
    return Speed(
        setup=setup.name,
        method=racer.method.name,
        problem=setup.text,
        seconds=(statistics.median(forward), statistics.median(backward), statistics.median(totals)),
        ratio=statistics.median(ratios),
        spread=(ratios[0], ratios[-1]),
        rounds=len(totals),
        error=racer.error,
        evaluations=racer.evaluations,
        accepted=racer.accepted,
    )


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.detach().double().flatten() for x in tensors])


class Account:
    """The bytes that torch's CPU allocator handed out and took back inside a ``with`` block: ``net`` and ``peak``.

    Exact, and blind to what torch does not allocate itself (Python objects, code).
    """

    def __enter__(self) -> Account:
        gc.collect()
        self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
        self._profile.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._profile.__exit__(*error)
        profiler: Any = self._profile.profiler
        events = profiler.kineto_results.events()
        moves = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
        self.net = self.peak = 0
        for _, size in moves:
            self.net += size
            self.peak = max(self.peak, self.net)


def machine() -> dict[str, str]:
    """Processor, system and versions of everything that is measured."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    packages = dict.fromkeys(("torch", "torchdiffeq", *(method.package for method in METHODS)))
    return {
        "processor": model or platform.processor() or platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def version(package: str) -> str:
    """Of what is installed, or that it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
