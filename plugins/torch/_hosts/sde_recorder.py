"""Note the accepted steps of a solver of torchsde while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steptape.compat._unsupported import unsupported
from steptape.torch._autograd.graph import Call, refuse_written
from steptape.torch._autograd.side import Note
from steptape.torch._hosts.brownian import NotingBrownian
from steptape.torch._tape.checkpoints import Keep, KeptStates
from steptape.torch._tape.tape import SdeStep, SdeTape, State, fingerprints

CALL = Call("sdeint_adjoint", "sde")
# Of a solve whose graph is kept, so many steps at most, and the last, are looked at.
_LOOKED_AT = 8


class _Try(NamedTuple):
    """One call of an adaptive solver's step: at these times, from the state; ``query``: the first it asked."""

    times: tuple[Tensor, Tensor]
    query: int
    state: State
    versions: list[int]


class SdeRecorder:
    """Stands in for a solver's ``step`` and notes the steps that the host accepts.

    ``in_graph``: whether it builds the graph of the solve, which has what is needed of most states. Then ``looked_at``
    are a few steps, by their number, and the states in the graph that each starts from and ends at.
    """

    def __init__(self, solver: Any, noise: NotingBrownian, keep: Keep, in_graph: bool):
        self._step: Any = solver.step
        self._adaptive = solver.adaptive
        self._noise = noise
        self._in_graph, self._stride = in_graph, 1
        # Where all is held anyway, what is noted of steps can wait until they have all been taken.
        self._waits = in_graph or (not self._adaptive and keep.checkpoints is None and keep.device is None)
        self._kept = KeptStates(keep)
        self._tries: list[_Try] = []
        self._end: Any = None
        self._latest: Any = None
        # Those of accepted steps that are not on the tape yet, with their versions.
        self._states: dict[int, tuple[State, list[int]]] = {}
        self.looked_at: list[tuple[int, State, State]] = []
        # Of accepted steps, with the first query of each.
        self.times: list[tuple[Tensor, ...]] = []
        self._queries: list[int] = []
        self.rejected = 0

    def step(self, t0: Tensor, t1: Tensor, y: Tensor, extra: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        """The solver's own step, noted."""
        if self._adaptive and len(self._tries) == 3:
            self._decide(accepted=y is not self._tries[0].state[0])
        state, query = (y, *extra), len(self._noise.answers)
        versions = [x._version for x in state]
        try:
            self._end = end = self._step(t0, t1, y, extra)
        except RuntimeError as error:
            if "a leaf Variable that requires grad" in str(error):
                refuse_written(CALL)
            raise
        if self._adaptive:
            self._tries.append(_Try((t0, t1), query, state, versions))
        else:
            self._accept((t0, t1), query, state, versions)
        return end

    def finish(self) -> None:
        """After the solve: its last try was accepted."""
        if self._adaptive and self._tries:
            self._decide(accepted=True)
        if self._in_graph:
            self._noise.check()
            self._look_at_some()
        else:
            self._tape_states()
        # The solver holds this object, which must not hold the solver: the states would wait for the garbage collector.
        del self._step, self._end, self._latest

    def tape(self, ts: Tensor, end: Tensor, note: Note | None) -> SdeTape:
        """Of the accepted steps; ``end``: the last output. ``note``: if the solve changed something, before it."""
        self._tape_states()
        ends = _numbers([times[-1] for times in self.times])
        outputs = ts[1:].detach().double().cpu().contiguous()
        return SdeTape(
            length=len(self.times),
            states=self._kept.states,
            slots=self._kept.slots,
            step_of_output=torch.searchsorted(ends, outputs).tolist(),
            fingerprints=fingerprints(self._kept.last, end),
            rejected=self.rejected,
            notes=self._noise.notes if note is not None else (),
            ts=ts,
            steps=list(map(SdeStep, self.times, self._queries)),
            answers=self._noise.answers,
            note=note,
            unnoted=note is not None and not self._noise.looks,
        )

    def _decide(self, accepted: bool) -> None:
        """A try is one whole step, for the error estimate, and two halves; the host goes on from these."""
        if len(self._tries) != 3:
            raise _unknown_tries()
        whole, first, second = self._tries
        if first.state[0] is not whole.state[0] or second.times[1] is not whole.times[1]:
            raise _unknown_tries()
        for one in self._tries:
            _check_versions(one.state, one.versions)
        self._noise.check(whole.query)
        self._tries = []
        self._noise.forget(whole.query, first.query if accepted else None)
        if accepted:
            self._accept((*first.times, second.times[1]), whole.query, first.state, first.versions)
        else:
            self.rejected += 1

    def _accept(self, times: tuple[Tensor, ...], query: int, state: State, versions: list[int]) -> None:
        n = len(self.times)
        if self._in_graph:
            if [x._version for x in state] != versions:
                refuse_written(CALL)
            if n > _LOOKED_AT * self._stride:
                self._stride *= 2
                self._states = {m: x for m, x in self._states.items() if m % self._stride < 2}
        if n % self._stride < 2:
            self._states[n] = state, versions
        else:
            self._latest = state, versions
        self.times.append(times)
        self._queries.append(query)
        if not self._waits:
            self._tape_states()

    def _look_at_some(self) -> None:
        """At about as many however many there are, and the last."""
        last = len(self.times) - 1
        if self.times and last not in self._states:
            self._states[last] = self._latest
        self.looked_at += [(n, self._states[n][0], self._states[n + 1][0]) for n in range(0, last, self._stride)]
        if self.times:
            y, extra = self._end
            self.looked_at.append((last, self._states[last][0], (y, *extra)))

    def _tape_states(self) -> None:
        states, self._states = self._states, {}
        for n, (state, versions) in states.items():
            _check_versions(state, versions)
            self._kept.offer(n, tuple([x.detach() for x in state]) if self._in_graph else state)
        self._noise.settle()


def _check_versions(state: State, versions: list[int]) -> None:
    if [x._version for x in state] != versions:
        refuse_written(CALL)


def _numbers(times: Sequence[Tensor]) -> Tensor:
    """Times, of which those of adaptive steps may be on several devices."""
    if len({x.device for x in times}) == 1:
        return torch.stack([*times]).double().cpu()
    return torch.tensor([float(x) for x in times], dtype=torch.float64)


def _unknown_tries() -> Exception:
    return unsupported("torchsde", "adaptive tries that are one whole step and then two halves of it", "sde")
