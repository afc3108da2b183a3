"""torchsde's solves: recorded by their accepted steps, which the host takes again."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steptape._errors import GradientError
from steptape.compat import _torchsde as host
from steptape.compat._unsupported import unsupported
from steptape.torch._autograd.graph import Call, Parameters, refuse_written
from steptape.torch._autograd.surroundings import Surroundings
from steptape.torch._hosts.base import Before, HostSteps, Solve, Timeline
from steptape.torch._hosts.brownian import Asked, NotingBrownian, Query, ReplayingBrownian, StillBrownian
from steptape.torch._hosts.grid import integrated
from steptape.torch._hosts.memo import REPEATING, Once
from steptape.torch._tape.checkpoints import Keep, KeptStates
from steptape.torch._tape.graphs import Graphs
from steptape.torch._tape.tape import SdeStep, SdeTape, State, fingerprints
from steptape.torch._tape.transfer import moved

_CALL = Call("sdeint_adjoint", "sde")
# The queries after which a solve whose graph is kept looks no more for what changes besides: its notes are for replays.
_LOOKS = 8


class _Call(NamedTuple):
    """One call of a solver's step: from the state, of which these are the versions, at t0 to t1, by what it asked."""

    t0: Tensor
    t1: Tensor
    state: State
    versions: list[int]
    asked: list[Asked]


class SdeRecorder:
    """Stands in for a solver's ``step`` and notes the steps that the host accepts.

    ``states``: those that they start from, and the last one, as the solver has them: in a graph, if it builds one.
    """

    def __init__(self, solver: Any, noise: NotingBrownian, keep: Keep, graphs: Graphs | None):
        self._step: Any = solver.step
        self._adaptive = solver.adaptive
        self._noise = noise
        # Under a limit on the states, a query keeps a few entries alone.
        self._answers_to = None if keep.checkpoints is not None else keep.device
        self._in_graph = graphs is not None
        # Where all is held anyway, what is noted of steps can wait until they have all been taken.
        self._waits = not self._adaptive and keep.checkpoints is None and keep.device is None
        self.kept = KeptStates(keep, graphs)
        self._calls: list[_Call] = []
        self._end: Any = None
        self.states: list[State] = []
        self.steps: list[SdeStep] = []
        self.queries: list[Query] = []
        self.rejected = 0

    def step(self, t0: Tensor, t1: Tensor, y: Tensor, extra: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        """The solver's own step, noted."""
        if self._adaptive and len(self._calls) == 3:
            self._decide(accepted=y is not self._calls[0].state[0])
        state = (y, *extra)
        versions = [x._version for x in state]
        try:
            self._end = end = self._step(t0, t1, y, extra)
        except RuntimeError as error:
            if "a leaf Variable that requires grad" in str(error):
                refuse_written(_CALL)
            raise
        self._calls.append(_Call(t0, t1, state, versions, self._noise.asked()))
        if not (self._waits or self._adaptive):
            self._accept()
        return end

    def finish(self) -> None:
        """After the solve: its last try was accepted."""
        if self._adaptive and self._calls:
            self._decide(accepted=True)
        self._accept()
        if self._in_graph and self._end is not None:
            y, extra = self._end
            self.states.append((y, *extra))
        # The solver holds this object, which must not hold the solver: the states would wait for the garbage collector.
        del self._step, self._end

    def _decide(self, accepted: bool) -> None:
        """A try is one whole step, for the error estimate, and two halves; the host goes on from these."""
        if len(self._calls) != 3:
            raise _unknown_tries()
        whole, *halves = self._calls
        if halves[0].state[0] is not whole.state[0] or halves[1].t1 is not whole.t1:
            raise _unknown_tries()
        queries = [query for call in self._calls for query in self._noted(call)]
        self._calls = []
        if accepted:
            self._keep(halves[0].state, (halves[0].t0, *(call.t1 for call in halves)), queries[len(whole.asked) :])
        else:
            self.rejected += 1

    def _accept(self) -> None:
        """All steps that have been taken, of a solver that takes no others."""
        for call in self._calls:
            self._keep(call.state, (call.t0, call.t1), self._noted(call))
        self._calls = []

    def _noted(self, call: _Call) -> list[Query]:
        if [x._version for x in call.state] != call.versions:
            refuse_written(_CALL)
        return self._noise.noted(call.asked)

    def _keep(self, state: State, times: tuple[Tensor, ...], queries: list[Query]) -> None:
        if self._in_graph:
            self.states.append(state)
            state = tuple([x.detach() for x in state])
        self.kept.offer(len(self.steps), state)
        self.steps.append(SdeStep(times, len(self.queries)))
        if self._answers_to is not None:
            queries = [query._replace(answer=moved(query.answer, self._answers_to)) for query in queries]
        self.queries += queries


def _numbers(times: Sequence[Tensor]) -> Tensor:
    """Times, of which those of adaptive steps may be on several devices."""
    if len({x.device for x in times}) == 1:
        return torch.stack([*times]).double().cpu()
    return torch.tensor([float(x) for x in times], dtype=torch.float64)


def _unknown_tries() -> Exception:
    return unsupported("torchsde", "adaptive tries that are one whole step and then two halves of it", "sde")


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
    call: Call = _CALL

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

    def around(self, enclose: Callable[[Callable[[], Any]], Any]) -> SdeSolve:
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
    ) -> tuple[tuple[Tensor, ...], SdeTape]:
        side = surroundings.side
        note, writes = side.note(), side.writes
        noise = NotingBrownian(self.bm, side, self.taped, math.inf if graphs is None else _LOOKS)
        solver = self.solver(self.sde, noise)
        recorder = SdeRecorder(solver, noise, self.keep, graphs)
        solver.step = recorder.step

        def integrate(*given: Tensor) -> tuple[Tensor, ...]:
            return self._integrated(solver, given)

        results = integrate(*given) if graphs is None else graphs.keep_whole(integrate, given, recorder.states)
        solution, *after = results
        recorder.finish()
        changed = not side.is_untouched_since(note, writes)
        ends = _numbers([step.times[-1] for step in recorder.steps])
        outputs = self.ts[1:].detach().double().cpu().contiguous()
        tape = SdeTape(
            length=len(recorder.steps),
            states=recorder.kept.states,
            slots=recorder.kept.slots,
            step_of_output=torch.searchsorted(ends, outputs).tolist(),
            fingerprints=fingerprints(recorder.kept.last, solution[-1]),
            rejected=recorder.rejected,
            notes=[query.note for query in recorder.queries] if changed else (),
            ts=self.ts,
            steps=recorder.steps,
            answers=[query.answer for query in recorder.queries],
            note=note if changed else None,
            unnoted=changed and not noise.looks,
        )
        # Without steps, what comes out is what went in.
        return (solution, *(after if len(ends) else map(torch.clone, after))), tape

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
