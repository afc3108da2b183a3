"""torchsde's solvers: tape the accepted steps, and take them again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steptape._errors import UnsupportedError
from steptape._plan import Keeper
from steptape.compat import _torchsde as host
from steptape.compat._unsupported import unsupported
from steptape.torch._autograd.ambient import Ambient
from steptape.torch._autograd.caches import CacheWatch
from steptape.torch._autograd.side_state import SideState, same
from steptape.torch._hosts.brownian import NotingBrownian, Query, ReplayingBrownian
from steptape.torch._hosts.memo import REPEATING, Once
from steptape.torch._tape.checkpoints import Keep
from steptape.torch._tape.sde import State, Step, Tape, serving


class _Call(NamedTuple):
    """One call of a solver's step: from the state at t0 to t1, by what it asked of the Brownian object."""

    t0: Tensor
    t1: Tensor
    state: State
    queries: list[Query]


class Recorder:
    """Stands in for a solver's ``step`` and notes the steps that the host accepts."""

    def __init__(self, solver: Any, noise: NotingBrownian, keep: Keep, side: SideState, watch: CacheWatch | None):
        self._step: Any = solver.step
        if watch is not None:
            # Its queries of a step taken once more are no step's.
            self._step = functools.partial(watch.evaluated, lambda: noise.unnoticed(side), solver.step)
        self._adaptive = solver.adaptive
        self._noise = noise
        self._device = keep.device
        self._keeper = Keeper(keep.checkpoints)
        self._try: list[_Call] = []
        self.steps: list[Step] = []
        self.queries: list[Query] = []
        self.states: dict[int, State] = {}
        self.end: State = ()
        self.rejected = 0

    def step(self, t0: Tensor, t1: Tensor, y: Tensor, extra: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        """The solver's own step, noted."""
        state = (y, *extra)
        versions = [x._version for x in state]
        after = self._step(t0, t1, y, extra)
        if any(x._version != version for x, version in zip(state, versions, strict=True)):
            raise UnsupportedError(
                "sdeint_adjoint(sde, ..., adjoint_method='aca'): sde changed the state y in place, so the replay could "
                "not start from it again. Make a new tensor of it instead."
            )
        self.end = (after[0],)
        call = _Call(t0, t1, state, self._noise.taken())
        if not self._adaptive:
            self._accept(call)
            return after
        if len(self._try) == 3:
            self._decide(accepted=y is not self._try[0].state[0])
        self._try.append(call)
        return after

    def finish(self) -> None:
        """After the solve: its last try was accepted."""
        if self._try:
            self._decide(accepted=True)
        # The solver holds this object, which must not hold the solver: the states would wait for the garbage collector.
        del self._step

    def _decide(self, accepted: bool) -> None:
        """A try is one whole step, for the error estimate, and two halves; the host goes on from these."""
        if len(self._try) != 3:
            raise _unknown_tries()
        whole, *halves = self._try
        self._try = []
        if halves[0].state[0] is not whole.state[0] or halves[1].t1 is not whole.t1:
            raise _unknown_tries()
        if accepted:
            self._accept(*halves)
        else:
            self.rejected += 1

    def _accept(self, *calls: _Call) -> None:
        step = len(self.steps)
        times = (calls[0].t0, *(call.t1 for call in calls))
        self.steps.append(Step(times, len(self.queries)))
        self.queries += [self._stored(query) for call in calls for query in call.queries]
        state = calls[0].state
        self.states[step] = state if step == 0 or self._device is None else tuple(x.to(self._device) for x in state)
        dropped = self._keeper.offer(step)
        if dropped is not None:
            del self.states[dropped]

    def _stored(self, query: Query) -> Query:
        if self._device is None or self._keeper.slots is not None:
            return query
        return query._replace(answer=tuple(x.to(self._device) for x in query.answer))


def _unknown_tries() -> Exception:
    return unsupported("torchsde", "adaptive tries that are one whole step and then two halves of it", "sde")


@dataclasses.dataclass(frozen=True)
class Solve:
    """One call of sdeint in the host's normal form, without the tensors that may need gradients.

    ``user_sde``: the SDE as the user passed it. ``settings``: dt, adaptive, rtol, atol, dt_min and options. ``watch``:
    looks at the first steps, where a gradient is asked for.
    """

    sde: Any
    user_sde: Any
    bm: Any
    ts: Tensor
    method: str
    settings: dict[str, Any]
    keep: Keep
    watch: CacheWatch | None = None

    @property
    def taped(self) -> bool:
        """Whether the increments are on the tape; else the Brownian object is asked again."""
        return self.keep.checkpoints is None

    def counted(self, count: Callable[[], None]) -> Solve:
        """The same, with a call of ``count`` before each call of a method of the SDE."""
        return dataclasses.replace(self, sde=host.ForwardSDE(_Counted(host.sde_under(self.sde), count)))

    def solver(self, sde: Any, bm: Any) -> Any:
        """A new solver of the host for this call, with the SDE and the Brownian object as given."""
        settings = {**self.settings, "options": dict(self.settings["options"])}
        return host.select(method=self.method, sde_type=sde.sde_type)(sde=sde, bm=bm, **settings)

    def integrate(self, y0: Tensor, extra: Sequence[Tensor] | None) -> tuple[Tensor, Sequence[Tensor]]:
        """Run the host's solver as it is: its solution, (len(ts), *y0.shape), and its extra state at the end."""
        return _integrated(self.solver(self.sde, self.bm), y0, self.ts, extra)

    def record(
        self, y0: Tensor, extra: Sequence[Tensor] | None, side: SideState
    ) -> tuple[Tensor, Sequence[Tensor], Tape]:
        """The same, and the tape of the accepted steps."""
        note = side.note()
        noise = NotingBrownian(self.bm, side, self.taped)
        solver = self.solver(self.sde, noise)
        recorder = Recorder(solver, noise, self.keep, side, self.watch)
        solver.step = recorder.step
        solution, after = _integrated(solver, y0, self.ts, extra)
        recorder.finish()
        changed = not same(note, side.note())
        if self.watch is not None:
            self.watch.finish()
        tape = Tape(
            steps=recorder.steps,
            serving=serving(recorder.steps, self.ts[1:]),
            kept=list(recorder.states),
            slots=self.keep.checkpoints,
            states=list(recorder.states.values()),
            end=recorder.end,
            answers=[query.answer for query in recorder.queries],
            note=note if changed else None,
            notes=[query.note for query in recorder.queries] if changed else (),
            rejected=recorder.rejected,
        )
        return solution, after, tape


def _integrated(solver: Any, y0: Tensor, ts: Tensor, extra: Sequence[Tensor] | None) -> tuple[Tensor, Sequence[Tensor]]:
    return solver.integrate(y0, ts, solver.init_extra_solver_state(ts[0], y0) if extra is None else extra)


class _Counted:
    """An SDE before each call of whose methods another is made."""

    def __init__(self, sde: Any, count: Callable[[], None]):
        self._sde, self._count = sde, count

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._sde, name)
        if not callable(found):
            return found

        def method(*args: Any) -> Any:
            self._count()
            return found(*args)

        return method


class Stepper:
    """Takes the steps of a tape again, as part of the caller's graph if there is one."""

    def __init__(self, solve: Solve, tape: Tape, ambient: Ambient, side: SideState, device: torch.device):
        self._ts, self._tape, self._ambient, self._side = solve.ts, tape, ambient, side
        self._noise = ReplayingBrownian(solve.bm, side, tape.answers, tape.notes, solve.taped, device)
        # What changes something besides, such as the random numbers drawn, must be evaluated as often as in the solve.
        once = solve.method in REPEATING and tape.note is None
        self._once = Once(host.sde_under(solve.sde)) if once else None
        self._solver = solve.solver(solve.sde if self._once is None else host.ForwardSDE(self._once), self._noise)

    def first_extra(self, y0: Tensor) -> Sequence[Tensor]:
        """The extra state the solver starts with where the user gives none."""
        if self._tape.note is not None:
            self._side.set(self._tape.note)
        with self._ambient.around_func():
            return self._solver.init_extra_solver_state(self._ts[0], y0)

    def take(self, n: int, state: State) -> State:
        """The state at the end of step n, from that at its start."""
        self._noise.rewind(self._tape.steps[n].query)
        y, *extra = state
        with self._ambient.around_func():
            for t0, t1 in pairwise(self._tape.steps[n].times):
                y, extra = self._solver.step(t0, t1, y, tuple(extra))
                if self._once is not None:
                    self._once.forget()
        return (y, *extra)
