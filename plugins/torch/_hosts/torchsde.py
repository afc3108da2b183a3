"""torchsde's solves: recorded by their accepted steps, which the host takes again."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from steptape._errors import GradientError
from steptape.compat import _torchsde as host
from steptape.torch._autograd.graph import Call, Parameters
from steptape.torch._autograd.surroundings import Surroundings
from steptape.torch._hosts.base import Before, HostSteps, Solve, Timeline
from steptape.torch._hosts.brownian import NotingBrownian, ReplayingBrownian, StillBrownian
from steptape.torch._hosts.grid import integrated
from steptape.torch._hosts.memo import REPEATING, Once
from steptape.torch._hosts.sde_recorder import CALL, SdeRecorder
from steptape.torch._tape.checkpoints import Keep
from steptape.torch._tape.graphs import Graphs
from steptape.torch._tape.tape import Later, SdeTape, State, sample

# The queries after which a solve whose graph is kept looks no more for what changes besides: its notes are for replays.
_LOOKS = 8


@dataclasses.dataclass(frozen=True)
class SdeSolve(Solve):
    """One call of sdeint, given y0 and the ``extras`` tensors of its solver's state; None: the host makes these.

    Returns the solution and the solver's extra state at the end. ``settings``: dt, adaptive, rtol, atol, dt_min and
    options.
    """

    sde: Any
    user_func: Any
    bm: Any
    ts: Tensor
    method: str
    settings: dict[str, Any]
    keep: Keep
    extras: int | None
    before: Before | None = None
    call: Call = CALL

    constants = 0
    tableau = None

    @property
    def given(self) -> int:  # type: ignore[override]
        return 1 + (self.extras or 0)

    @property
    def others(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        return (self.ts,)

    @property
    def vector_field(self) -> Any:
        return self.sde

    @property
    def taped(self) -> bool:
        """Whether the increments are on the tape; else the Brownian object is asked again."""
        return self.keep.checkpoints is None

    def around(self, enclose: Callable[[Callable[[], Any]], Any], first: bool = False) -> SdeSolve:
        return dataclasses.replace(self, sde=host.ForwardSDE(_Enclosed(host.sde_under(self.sde), enclose)))

    def solver(self, sde: Any, bm: Any) -> Any:
        """A new solver of the host for this call, with the SDE and the Brownian object as given."""
        settings = {**self.settings, "options": dict(self.settings["options"])}
        return host.select(method=self.method, sde_type=sde.sde_type)(sde=sde, bm=bm, **settings)

    def evaluated(self, n: int, *given: Tensor) -> Any:
        y0, *extra = given
        solver = self.solver(self.sde, StillBrownian(self.bm))
        t0 = self.ts[min(n, 0)]
        if n == 1:
            t0 = t0 + self.settings["dt"]
        if self.extras is None:
            extra = solver.init_extra_solver_state(t0, y0)
        return solver.step(t0, t0 + self.settings["dt"], y0, tuple(extra))

    def integrate(self, *given: Tensor) -> tuple[Tensor, ...]:
        return self._integrated(self.solver(self.sde, self.bm), given)

    def _integrated(self, solver: Any, given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        y0, *extra = given
        if self.extras is None:
            extra = solver.init_extra_solver_state(self.ts[0], y0)
        solution, after = integrated(solver, y0, self.ts, tuple(extra))
        return (solution, *after)

    def record(
        self, given: Sequence[Tensor], surroundings: Surroundings, graphs: Graphs | None = None
    ) -> tuple[tuple[Tensor, ...], Any]:
        side = surroundings.side
        note, writes = side.note(), side.writes
        noise = NotingBrownian(self.bm, side, self.taped, math.inf if graphs is None else _LOOKS, self.keep.device)
        solver = self.solver(self.sde, noise)
        recorder = SdeRecorder(solver, noise, self.keep, in_graph=graphs is not None)
        solver.step = recorder.step

        def integrate(*given: Tensor) -> tuple[Tensor, ...]:
            return self._integrated(solver, given)

        results = integrate(*given) if graphs is None else graphs.keep_whole(integrate, given, recorder.looked_at)
        solution, *after = results
        recorder.finish()
        changed = not side.is_untouched_since(note, writes)
        make = functools.partial(recorder.tape, self.ts, sample(solution[-1]), note if changed else None)
        later = graphs is not None and graphs.whole is not None and not changed
        tape = Later(len(recorder.times), make) if later else make()
        # Without steps, what comes out is what went in.
        return (solution, *(after if recorder.times else map(torch.clone, after))), tape

    def start(self, tape: Any, given: Sequence[Tensor], surroundings: Surroundings) -> tuple[State, Timeline]:
        y0, *extra = given
        if self.extras is None:
            if tape.note is not None:
                surroundings.side.set(tape.note)
            with surroundings.around_func():
                extra = self.solver(self.sde, self.bm).init_extra_solver_state(self.ts[0], y0)
        return (y0, *extra), Timeline.empty(self.ts)

    def host_steps(
        self, tape: Any, timeline: Timeline, given: Sequence[Tensor], parameters: Parameters, surroundings: Surroundings
    ) -> HostSteps:
        return _SdeSteps(self, tape, parameters, surroundings, given[0].device)


class _Enclosed:
    """An SDE, each call of whose methods is enclosed."""

    def __init__(self, sde: Any, enclose: Callable[[Callable[[], Any]], Any]):
        self._sde, self._enclose = sde, enclose

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._sde, name)
        if not callable(found):
            return found

        def method(*args: Any) -> Any:
            return self._enclose(functools.partial(found, *args))

        return method


class _SdeSteps(HostSteps):
    """Of a solver of torchsde, with the increments of the solve; they move with no input."""

    def __init__(
        self, solve: SdeSolve, tape: SdeTape, parameters: Parameters, surroundings: Surroundings, device: torch.device
    ):
        self._tape, self._parameters, self._surroundings = tape, parameters, surroundings
        self._noise = ReplayingBrownian(solve.bm, surroundings.side, tape.answers, tape.notes, solve.taped, device)
        # What changes something besides, such as the random numbers drawn, must be evaluated as often as in the solve;
        # and what need not be linear, such as the clipping of a cotangent, must be pulled as often.
        assert solve.before is not None
        once = solve.method in REPEATING and tape.note is None and not solve.before.traits.custom
        self._once = Once(host.sde_under(solve.sde)) if once else None
        self._solver = solve.solver(solve.sde if self._once is None else host.ForwardSDE(self._once), self._noise)

    def times(self, n: int, outputs: slice) -> list[Tensor]:
        return []

    def take(self, n: int, state: Sequence[Tensor], times: Sequence[Tensor], outputs: slice) -> tuple[State, State]:
        if self._tape.unnoted:
            raise GradientError(
                "sdeint_adjoint(sde, ..., adjoint_method='aca', adjoint_options={'memory': 'graphs'}): sde drew random "
                "numbers or wrote to a buffer, but not in its first steps, so that was not noted and its steps cannot "
                "be taken again, for a second derivative or a second pass. Use 'memory': 'states'."
            )
        step = self._tape.steps[n]
        self._noise.rewind(step.query)
        y, *extra = state
        with self._surroundings.around_func(), self._parameters.in_place():
            for t0, t1 in pairwise(step.times):
                y, extra = self._solver.step(t0, t1, y, tuple(extra))
                if self._once is not None:
                    self._once.forget()
        return (y, *extra), self.inside(n, state[0], y, outputs)

    def inside(self, n: int, y0: Tensor, y1: Tensor, outputs: slice) -> State:
        times = self._tape.steps[n].times
        ends = {"t0": times[0], "y0": y0, "t1": times[-1], "y1": y1}
        return tuple(host.linear_interp(**ends, t=t) for t in self._tape.ts[1:][outputs])

    def place(self, cotangents: Timeline, n: int, outputs: slice, in_times: Sequence[Tensor]) -> None:
        """None do."""
