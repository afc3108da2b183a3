"""The hosts' ways to a gradient and ours, run and metered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from steptape._compare.clock import Clock
from steptape._compare.race import Way
from steptape.torch._autograd.graph import tensors_of
from steptape.torch._compare.meters import SavedTensors, available, peak_of
from steptape.torch._compare.problem import Problem
from steptape.torch._stats import ON_EVALUATION, Solves, record_solves

# A profile of more evaluations takes long to read.
_PROFILED = 20000


class TorchWay(Way):
    """``solve`` maps func and y0 to the solution."""

    # A profile.
    weight = 4.0

    def __init__(
        self, name: str, call: str, is_discrete: bool, problem: Problem, clock: Clock, solve: Callable[..., Any]
    ):
        super().__init__(name, call, is_discrete)
        self._problem, self._clock, self._solve = problem, clock, solve

    def run(self) -> float:
        """Both passes, with nothing around them."""
        self._problem.gradient(self._solve)
        return self._problem.seconds

    def weigh(self) -> None:
        """The peak, by a run more."""
        count = (self.row.evaluations_forward or 0) + (self.row.evaluations_backward or 0)
        if self._problem.device.type == "cuda" or count <= _PROFILED:
            self.row.peak = peak_of(lambda: self._problem.gradient(self._solve), self._problem.device)


def spelled(options: dict[str, Any]) -> tuple[str, str]:
    """What is kept, for a name and for a call."""
    quoted = {name: f'"{x}"' if isinstance(x, str) else str(x) for name, x in options.items()}
    told = ", ".join(f'"{name}": {x}' for name, x in quoted.items())
    name = "".join(f", {name}={x}" for name, x in quoted.items())
    return name, f", adjoint_options={{{told}}}" if options else ""


def skip_if_too_large(way: Way, like: Way) -> Way:
    """Skip a way that keeps the graphs that did not fit."""
    if (like.row.why_not or "").startswith("failed: MemoryError"):
        way.row.why_not = f"skipped: the graph of {like.row.way} does not fit"
    return way


class HostWay(TorchWay):
    """One of the host's: its func is counted, and autograd's graph weighed. ``watched``: func with a call before it."""

    def __init__(self, *given: Any, watched: Callable[[Any, Callable[[], None]], Any]):
        super().__init__(*given)
        self._watched = watched

    def measure(self) -> Tensor:
        """Both passes, with func counted and the graph weighed between them."""
        row, problem, count = self.row, self._problem, 0

        def tick() -> None:
            nonlocal count
            count += 1
            self._clock.check()

        saved = SavedTensors(available(problem.device), self._clock.check)

        def between(y0: Any, ys: Any) -> None:
            row.held = saved.besides([*tensors_of((y0, ys)), *problem.params])
            row.evaluations_forward = count

        with saved:
            gradient = problem.gradient(self._solve, self._watched(problem.func, tick), between)
        row.seconds = problem.seconds
        row.evaluations_backward = count - (row.evaluations_forward or 0)
        return gradient


class OurWay(TorchWay):
    """One of ours, which is recorded. ``solves``: what was recorded."""

    solves: Solves = Solves()

    @property
    def steps(self) -> int:
        """The accepted ones."""
        return sum(solve.accepted_steps for solve in self.solves)

    def measure(self) -> Tensor:
        """Both passes, recorded."""
        row = self.row
        gradient, self.solves = recorded(lambda: self._problem.gradient(self._solve), self._clock)
        row.seconds = self._problem.seconds
        # What was the host's after all is not.
        if self.solves:
            row.evaluations_forward = sum(x.evaluations_forward for x in self.solves)
            row.evaluations_backward = sum(x.evaluations_backward for x in self.solves)
            row.held = sum(x.bytes_held for x in self.solves)
        return gradient


class CompiledWay(OurWay):
    """One of ours whose steps are compiled, in a run before those that count."""

    # Of a step by torch's default backend, on one core.
    cost = 60.0

    def measure(self) -> Tensor:
        """Both passes, recorded."""
        recorded(lambda: self._problem.gradient(self._solve), self._clock)
        return super().measure()


def recorded(run: Callable[[], Tensor], clock: Clock) -> tuple[Tensor, Solves]:
    """Run solves of ours, and end them when time is up."""
    token = ON_EVALUATION.set(clock.check)
    try:
        with record_solves() as solves:
            return run(), solves
    finally:
        ON_EVALUATION.reset(token)


class Watched(torch.nn.Module):
    """func, and a call of ``tick`` before each evaluation."""

    def __init__(self, func: Any, tick: Callable[[], None]):
        super().__init__()
        self.func, self._tick = func, tick

    def forward(self, t: Tensor, y: Any) -> Any:
        """func's slope."""
        self._tick()
        return self.func(t, y)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.func, name) if name.startswith("callback_") else super().__getattr__(name)


class Stepping(Watched):
    """It counts the ``accepted`` steps as well, where the host tells of them; ``first``: the size of the first one."""

    accepted = 0
    first: float | None = None

    def callback_accept_step(self, t: Tensor, y: Any, h: Tensor) -> None:
        """Called by torchdiffeq's adaptive solvers."""
        self.first = float(h.detach()) if self.first is None else self.first
        self.accepted += 1
        own = getattr(self.func, "callback_accept_step", None)
        if own is not None:
            own(t, y, h)
