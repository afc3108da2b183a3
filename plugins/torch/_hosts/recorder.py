"""Note the accepted steps of a solver of torchdiffeq while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steptape.compat import _torchdiffeq as host
from steptape.torch._autograd.side import Note, SideState, same, shared
from steptape.torch._tape.checkpoints import Keep, KeptStates
from steptape.torch._tape.graphs import Evaluation, Graphs
from steptape.torch._tape.tape import State
from steptape.torch._tape.transfer import moved


class Clock:
    """func as the host evaluates it in the end, noting when: its arithmetic rounds times in ways of its own.

    ``graphs``: what keeps the graphs of evaluations, if any are kept.
    """

    def __init__(self, func: Any, graphs: Graphs | None):
        self._func, self._graphs = func, graphs
        self.noted: list[Evaluation] = []
        self.evaluated = False

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.evaluated = True
        if self._graphs is None:
            self.noted.append(Evaluation(t))
            return self._func(t, y)
        slope, evaluation = self._graphs.evaluate(self._func, t, y)
        self.noted.append(evaluation)
        return slope

    def restarted(self, noted: list[Evaluation]) -> list[Evaluation]:
        """Go on noting in another list, which is ``noted`` so far."""
        self.noted = noted
        return noted


class Recorder:
    """The func a solver integrates: the user's, noting each accepted step through the host's own callbacks.

    After the solve: ``starts`` and ``sizes`` of all steps, the ``times`` at which func was evaluated for each, whether
    they were ``cut`` short to end at an entry of ``step_t`` or ``jump_t``, the states that were ``kept``, with their
    first slopes if asked for, the ``notes`` of what func changes besides: before a step's
    first evaluation, which may be the last of the step before, and before the next one; and the ``interpolants``, if
    they are handed in.
    """

    def __init__(self, func: Any, keep: Keep, side: SideState, graphs: Graphs | None = None):
        self._func, self._graphs = func, graphs
        self.clock = Clock(host.without_sides(func), graphs)
        self._evaluate = host.with_sides(self.clock)
        self._side = side
        self._device = keep.device
        self.kept = KeptStates(keep, graphs)
        self._start = self._evaluation = side.note()
        self._writes = self._writes_of_first = side.writes
        self._after_first: Note | None = None
        self.starts: list[Tensor] = []
        self.sizes: list[Tensor] = []
        self.times: list[list[Tensor]] = []
        self._latest_step: list[Evaluation] = []
        self.cut: list[bool] = []
        self.rejected = 0
        self._notes: list[tuple[Note, ...]] = []
        self.interpolants: list[Tensor] = []

    @property
    def notes(self) -> list[tuple[Note, ...]]:
        """For each step the notes of the side state; none if the whole solve changed nothing there."""
        return [] if self._side.is_untouched_since(self._start, self._writes) else self._notes

    @property
    def settled(self) -> bool:
        """Whether what func changes besides, it changed in its first evaluation alone, as by noise that it keeps."""
        return self._after_first is None or self._side.is_untouched_since(self._after_first, self._writes_of_first)

    def __call__(self, t: Tensor, y: Tensor, **kwargs: Any) -> Tensor:
        self._note_evaluation()
        return self._evaluate(t, y, **kwargs)

    def evaluate_plain(self, t: Tensor, y: Tensor) -> Tensor:
        """func at a time on neither side of a jump."""
        if self._after_first is None:
            self._note_evaluation()
        return self.clock(t, y)

    def _note_evaluation(self) -> None:
        self._evaluation = self._side.note()
        if self._after_first is None and self.clock.evaluated:
            self._after_first, self._writes_of_first = self._evaluation, self._side.writes

    def callback_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        self._func.callback_step(t, y, h)
        self._take(t, (y,), h, self.clock.restarted([]), (self._side.note(),))

    def callback_accept_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        self._func.callback_accept_step(t, y, h)

    def callback_reject_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        self.rejected += 1
        self._func.callback_reject_step(t, y, h)

    def note_interpolant(self, coefficients: Sequence[Tensor]) -> None:
        """Keep that of the step just accepted."""
        piece = torch.stack([x.reshape(-1) for x in coefficients])
        self.interpolants.append(piece if self._device is None else piece.to(self._device))

    def _take(
        self, t: Tensor, state: State, h: Tensor, noted: list[Evaluation], notes: tuple[Note, ...], cut: bool = False
    ) -> None:
        self._close()
        self._latest_step = noted
        self.kept.offer(len(self.starts), state)
        self.starts.append(t)
        self.sizes.append(h)
        self.cut.append(cut)
        if self._notes:
            # Where nothing changes, one note serves all steps.
            last = self._notes[-1]
            unchanged = len(last) == len(notes) and all(map(same, last, notes))
            notes = last if unchanged else tuple(shared(note, last[-1]) for note in notes)
            if notes is not last:
                self.kept.count(x for note in (*self._notes[0], *notes) for x in note)
        self._notes.append(notes)

    def finish(self) -> None:
        """After the solve."""
        self._close()
        self.clock.restarted([])
        self.kept.count(x for notes in self.notes for note in notes for x in note)

    def _close(self) -> None:
        """Once a step has been taken, note when it was evaluated, and keep its graphs."""
        step = len(self.times)
        if step == len(self.starts):
            return
        noted, self._latest_step = self._latest_step, []
        self.times.append([evaluation.t for evaluation in noted])
        self.kept.spend(sum(x.element_size() for x in (*self.times[-1], self.starts[-1], self.sizes[-1])))
        if self._graphs is not None and all(evaluation.stage is not None for evaluation in noted):
            self._graphs.keep(step, noted)


class AdaptiveRecorder(Recorder):
    """The same where tries may be rejected. ``carries_slopes``: whether a state needs its first slope."""

    def __init__(self, func: Any, keep: Keep, side: SideState, graphs: Graphs | None, carries_slopes: bool):
        super().__init__(func, keep, side, graphs)
        self._carries_slopes = carries_slopes
        self._try: tuple[Note, ...] = ()
        self._tried: Tensor | None = None
        self._latest: Tensor | None = None
        self._first: tuple[Tensor, ...] = ()
        self._stages: list[Evaluation] = []

    def __call__(self, t: Tensor, y: Tensor, **kwargs: Any) -> Tensor:
        slope = super().__call__(t, y, **kwargs)
        if self._carries_slopes:
            self._latest = slope
        return slope

    def evaluate(self, t: Tensor, y: Tensor, last: bool) -> Tensor:
        """func at a time that is on its side of a jump; ``last``: whether the next step may start from it."""
        if last or self._after_first is None:
            self._note_evaluation()
        slope = self.clock(t, y)
        if last and self._carries_slopes:
            self._latest = slope
        return slope

    def callback_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        self._func.callback_step(t, y, h)
        # The latest evaluation before a step's first try is the slope the host steps from.
        if self._latest is not None and not self._first:
            self._first = (self._latest.to(y.dtype, copy=True),)
        self._tried = h
        if self._try:
            self._stages = self.clock.restarted(self._stages[:1])
        else:
            # That slope's own time: of the first step the solve's first evaluation.
            latest = self.clock.noted
            self._stages = self.clock.restarted(latest[-1:] if self.starts else latest[:1])
        # Until a step is accepted, its first slope stays as it is; that of the first step is the solve's first one.
        first = self._try[0] if self._try else self._evaluation if self.starts else self._start
        self._try = (first, self._side.note())

    def callback_accept_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        self._func.callback_accept_step(t, y, h)
        # The host makes a new size when it cuts a try short.
        self._take(t, (y, *self._first), h, self._stages[:], self._try, cut=h is not self._tried)
        self._first = self._try = ()

    def finish(self) -> None:
        super().finish()
        self._stages = []


class HostStepRecorder(Recorder):
    """The same for a solver whose steps may start from the slopes of earlier ones as well."""

    def __init__(self, func: Any, keep: Keep, side: SideState, graphs: Graphs | None, solver: Any):
        super().__init__(func, keep, side, graphs)
        # Its steps share slopes with others, by graphs of several evaluations.
        self.clock = Clock(host.without_sides(func), None)
        self._evaluate = host.with_sides(self.clock)
        self._solver = solver
        self._moved: dict[int, tuple[Tensor, Tensor]] = {}

    def callback_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        self._func.callback_step(t, y, h)
        # As a replay returns them.
        slopes = [x if x.shape == y.shape else x.expand(y.shape) for x in host.history(self._solver)]
        if self._device is not None:
            # Successive histories share their slopes; so do their copies.
            self._moved = {id(x): self._moved.get(id(x)) or (x, moved((x,), self._device)[0]) for x in slopes}
            slopes = [self._moved[id(x)][1] for x in slopes]
        self._take(t, (y, *slopes), h, self.clock.restarted([]), (self._side.note(),))
