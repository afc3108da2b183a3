"""torchdiffeq's solvers: tape the accepted steps, and place steps and outputs in time as functions of the inputs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steptape._errors import GradientError, UnsupportedError
from steptape._plan import Keeper
from steptape.compat import _torchdiffeq as host
from steptape.compat._unsupported import unsupported
from steptape.torch._autograd.caches import CacheWatch
from steptape.torch._autograd.side_state import Note, SideState, same, shared
from steptape.torch._hosts.tableau import Tableau
from steptape.torch._tape.checkpoints import Keep
from steptape.torch._tape.tape import State, Tape, Timeline, sample


class Clock:
    """func as the host evaluates it in the end, noting when: its arithmetic rounds times in ways of its own."""

    def __init__(self, func: Any, side: SideState, watch: CacheWatch | None):
        self._func = func if watch is None else functools.partial(watch.evaluated, side.kept, func)
        self.times: list[Tensor] = []
        self.evaluated = False

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.times.append(t)
        self.evaluated = True
        return self._func(t, y)

    def restarted(self, times: list[Tensor]) -> list[Tensor]:
        """Go on noting in another list, which is ``times`` so far."""
        self.times = times
        return times


class Recorder:
    """The func a solver integrates: the user's, noting each accepted step through the host's own callbacks.

    After the solve: ``starts`` and ``sizes`` of all steps, the ``times`` at which func was evaluated for each, whether
    they were ``cut`` short to end at an entry of ``step_t`` or ``jump_t``, the ``states`` that were kept, with their
    first slopes if asked for, the ``last`` one in any case, the ``notes`` of what func changes besides: before a step's
    first evaluation, which may be the last of the step before, and before the next one; and the ``pieces`` of the dense
    output, if they are handed in.
    """

    def __init__(self, func: Any, keep: Keep, side: SideState, watch: CacheWatch | None, carries_slopes: bool = False):
        self._func = func
        self._clock = Clock(host.without_sides(func), side, watch)
        self._evaluate = host.with_sides(self._clock)
        self._side = side
        self._carries_slopes = carries_slopes
        self._device = keep.device
        self._keeper = Keeper(keep.checkpoints)
        self._evaluation = self._start = side.note()
        self._after_first: Note | None = None
        self._try: tuple[Note, ...] = ()
        self._tried: Tensor | None = None
        self._latest: Tensor | None = None
        self._first: tuple[Tensor, ...] = ()
        self._stages: list[Tensor] = []
        self.starts: list[Tensor] = []
        self.sizes: list[Tensor] = []
        self.times: list[list[Tensor]] = []
        self.cut: list[bool] = []
        self.states: dict[int, State] = {}
        self.last = State(torch.empty(0), ())
        self._notes: list[tuple[Note, ...]] = []
        self.pieces: list[Tensor] = []
        self.callback_reject_step = func.callback_reject_step

    @property
    def notes(self) -> list[tuple[Note, ...]]:
        """For each step the notes of the side state; none if the whole solve changed nothing there."""
        return [] if same(self._start, self._side.note()) else self._notes

    @property
    def settled(self) -> bool:
        """Whether what func changes besides, it changed in its first evaluation alone, as by noise that it keeps."""
        return self._after_first is None or same(self._after_first, self._side.note())

    def __call__(self, t: Tensor, y: Tensor, **kwargs: Any) -> Tensor:
        self._evaluation = self._side.note()
        if self._after_first is None and self._clock.evaluated:
            self._after_first = self._evaluation
        slope = self._evaluate(t, y, **kwargs)
        if self._carries_slopes:
            self._latest = slope
        return slope

    def callback_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        self._func.callback_step(t, y, h)
        # The latest evaluation before a step's first try is the slope the host steps from.
        if self._latest is not None and not self._first:
            self._first = (self._latest.to(y.dtype, copy=True),)
        self._tried = h
        if self._try:
            self._stages = self._clock.restarted(self._stages[:1])
        else:
            # That slope's own time: of the first step the solve's first evaluation.
            latest = self._clock.times
            self._stages = self._clock.restarted(latest[-1:] if self.starts else latest[:1])
        # Until a step is accepted, its first slope stays as it is; that of the first step is the solve's first one.
        first = self._try[0] if self._try else self._evaluation if self.starts else self._start
        self._try = (first, self._side.note())

    def callback_accept_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        self._func.callback_accept_step(t, y, h)
        # The host makes a new size when it cuts a try short.
        self._take(t, State(y, self._first), h, self._stages[:], self._try, cut=h is not self._tried)
        self._first = self._try = ()

    def note_interpolant(self, coefficients: Sequence[Tensor]) -> None:
        """Keep that of the step just accepted."""
        piece = torch.stack([x.reshape(-1) for x in coefficients])
        self.pieces.append(piece if self._device is None else piece.to(self._device))

    def _take(
        self, t: Tensor, state: State, h: Tensor, times: list[Tensor], notes: tuple[Note, ...], cut: bool = False
    ) -> None:
        step = len(self.starts)
        self.starts.append(t)
        self.sizes.append(h)
        self.times.append(times)
        self.cut.append(cut)
        if step:
            # Where nothing changes, one note serves all steps.
            last = self._notes[-1]
            notes = last if same(last[-1], notes[-1]) else tuple(shared(note, last[-1]) for note in notes)
        self._notes.append(notes)
        self.last = state
        self.states[step] = state if step == 0 or self._device is None else state.to(self._device)
        dropped = self._keeper.offer(step)
        if dropped is not None:
            del self.states[dropped]


class FixedGridRecorder(Recorder):
    """The same for a fixed grid, where every step is accepted."""

    def callback_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        self._func.callback_step(t, y, h)
        self._take(t, State(y, ()), h, self._clock.restarted([]), (self._side.note(),))


class WholeStepRecorder(Recorder):
    """The same for a solver whose steps may start from the slopes of earlier ones as well."""

    def __init__(self, func: Any, keep: Keep, side: SideState, watch: CacheWatch | None, solver: Any):
        super().__init__(func, keep, side, watch)
        self._solver = solver
        self._moved: dict[int, tuple[Tensor, Tensor]] = {}

    def callback_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        self._func.callback_step(t, y, h)
        slopes = host.history(self._solver)
        if self._device is not None:
            # Successive histories share their slopes; so do their copies.
            self._moved = {id(x): self._moved.get(id(x)) or (x, x.to(self._device)) for x in slopes}
            slopes = [self._moved[id(x)][1] for x in slopes]
        self._take(t, State(y, tuple(slopes)), h, self._clock.restarted([]), (self._side.note(),))


@dataclasses.dataclass(frozen=True)
class Solve:
    """One call of odeint in the host's normal form, without the tensors that may need gradients.

    ``user_func``: func as the user passed it. ``jumps``: how many of the points, the last ones, come from ``jump_t``.
    ``back``: what makes the backward pass of a tape; None: its replay. ``watch``: looks at the first evaluations, where
    a gradient is asked for.
    """

    func: Any
    user_func: Any
    rtol: Any
    atol: Any
    method: str
    options: dict[str, Any]
    tableau: Tableau
    jumps: int
    keep: Keep
    event_fn: Any = None
    back: Any = None
    watch: CacheWatch | None = None

    def record(self, y0: Tensor, t: Tensor, points: Tensor, side: SideState) -> tuple[Tensor, Tensor, Tape]:
        """Run the host's solver: its solution, (len(t), *y0.shape), the time it ends, and the tape of its steps."""
        solver = self.solver(y0)
        recorder = self._recorder(solver, side)
        host.attach(solver, recorder, seeks_event=self.event_fn is not None)
        if self.keep.pieces:
            host.call_after_steps(solver, recorder.note_interpolant)
        if self.event_fn is None:
            end, solution = t[-1], solver.integrate(t)
        else:
            end, solution = solver.integrate_until_event(t[0], self.event_fn)
        if self.watch is not None:
            self.watch.finish()
        if any(x.y.dtype != y0.dtype or x.y.shape != y0.shape for x in recorder.states.values()):
            raise UnsupportedError(
                f"odeint_adjoint(..., adjoint_method='aca'): the state y0 ({y0.dtype}, shape {tuple(y0.shape)}) turned "
                "into another dtype or shape on the way. Return the dtype and shape of y from func; where both are "
                f"scalars, give y0 at least the precision of t ({t.dtype})."
            )
        if not recorder.settled and not self.tableau.chained and self.options.get("interp", "linear") != "linear":
            raise UnsupportedError(
                f"odeint_adjoint(..., method={self.method!r}, options={{'interp': {self.options['interp']!r}}}, "
                "adjoint_method='aca'): func drew random numbers (dropout?) or changed its buffers, and this "
                "interpolation evaluates it anew for each output. Use 'interp': 'linear', or an adaptive method."
            )
        outputs = t[1:] if self.event_fn is None else end[None]
        return solution, end, self._tape(recorder, outputs, points, solution[-1])

    def timeline(self, tape: Tape, y0: Tensor, t: Tensor, points: Tensor) -> Timeline:
        """The tape's times as a function of y0 (a grid constructor may read it), t and the points."""
        if not len(tape.fresh):
            none = t.new_zeros(0)
            return Timeline(t.new_zeros(0, self.tableau.stages), none, none, none, none)
        if self.tableau.chained or self.event_fn is not None:
            inputs = torch.cat([t[:1].to(tape.nodes.dtype), points])
            # Zero with a gradient: the times keep the very bits the host stepped with.
            shift = (inputs - inputs.detach())[torch.tensor(tape.anchors, device=t.device)]
            nodes, sizes = tape.nodes + shift, tape.sizes + shift.diff()
        else:
            nodes = self._grid(tape, y0, t)
            sizes = nodes.diff()
        serving = torch.tensor(tape.serving, dtype=torch.long, device=t.device)
        outputs = t[1:].to(nodes.dtype) if self.event_fn is None else tape.outputs
        spans = nodes[serving + 1] - nodes[serving]
        places = (outputs - nodes[serving]) / spans
        if not self.tableau.chained and len(self.tableau.dense) == 1:
            # A linear interpolation returns the state at the end of a step as it is.
            places = torch.where(places == 1, places.detach(), places)
        if self.tableau.chained:
            # As the host rounds them.
            sizes, places = sizes.to(y0.real.dtype), places.to(y0.real.dtype)
        return Timeline(self._stages(tape, nodes, y0.real.dtype), sizes, outputs, spans, places)

    def _stages(self, tape: Tape, nodes: Tensor, dtype: torch.dtype) -> Tensor:
        """When func is evaluated: as it was in the solve, to the bit, and moving with the ends of the steps."""
        if self.tableau.whole:
            return torch.stack([nodes[:-1], nodes[1:]], dim=1)
        c = torch.tensor(self.tableau.c, dtype=nodes.dtype, device=nodes.device)
        moved = (nodes[:-1, None] + c * nodes.diff()[:, None]).to(dtype)
        return tape.times + (moved - moved.detach()) if moved.requires_grad else tape.times

    def _times(self, recorder: Recorder) -> Tensor:
        if self.tableau.whole:
            return torch.empty(0)
        # A fixed grid takes the slope at the end of a step for outputs inside it alone, and then for each one.
        count = self.tableau.stages
        whole = [(times + times[-1:])[:count] for times in recorder.times]
        if any(len(times) != count for times in whole):
            raise unsupported("torchdiffeq", f"{count} evaluations in a step of {self.method!r}", "torch")
        return torch.stack([t for times in whole for t in times]).view(-1, count)

    def _recorder(self, solver: Any, side: SideState) -> Recorder:
        if self.tableau.whole:
            return WholeStepRecorder(self.func, self.keep, side, self.watch, solver)
        if self.tableau.chained:
            return Recorder(self.func, self.keep, side, self.watch, carries_slopes=not self.tableau.last_at_end)
        return FixedGridRecorder(self.func, self.keep, side, self.watch)

    @property
    def vector_field(self) -> Any:
        """func as a replay calls it: at times already on their side of a jump, or by a step of the host's."""
        return self.func if self.tableau.whole else host.without_sides(self.func)

    def solver(self, y0: Tensor) -> Any:
        """A new solver of the host for this call."""
        return host.SOLVERS[self.method](func=self.func, y0=y0, rtol=self.rtol, atol=self.atol, **self.options)

    def _grid(self, tape: Tape, y0: Tensor, t: Tensor) -> Tensor:
        grid = self.solver(y0).grid_constructor(self.func, y0, t)
        if not torch.equal(grid, tape.nodes):
            raise GradientError(
                "odeint_adjoint(..., options={'grid_constructor': ...}): the grid constructor returned another grid in "
                "the backward pass than in the forward pass. Make it a function of its arguments alone."
            )
        return grid

    def _tape(self, recorder: Recorder, outputs: Tensor, points: Tensor, end: Tensor) -> Tape:
        if not recorder.starts:
            none = outputs[:0]
            return Tape(none, none, none, outputs, none, (), (), (), (), None, (), (), (), ())
        starts, sizes = torch.stack(recorder.starts), torch.stack(recorder.sizes)
        last_node = starts[-1:] + sizes[-1:]
        if recorder.cut[-1]:
            last_node = points[(points - last_node).abs().argmin()][None]
        elif not self.tableau.chained:
            given = outputs[-1:].to(last_node.dtype)
            last_node = given if self.event_fn is None else starts[-1:] + self.options["step_size"]
        nodes = torch.cat([starts, last_node])

        fresh, anchors = [True], [0]
        for n, cut in enumerate(recorder.cut):
            point = int((points == nodes[n + 1]).nonzero()[0]) if cut else None
            anchors.append(anchors[-1] if point is None else point + 1)
            fresh.append(not self.tableau.chained or (point is not None and point >= len(points) - self.jumps))
        outputs = outputs.to(nodes.dtype)
        serving = torch.searchsorted(nodes[1:].contiguous(), outputs.contiguous())
        states = [
            state._replace(slopes=()) if fresh[n] and self.tableau.chained else state
            for n, state in recorder.states.items()
        ]
        slopes = list({id(slope): slope for state in states for slope in state.slopes}.values())
        places = {id(slope): i for i, slope in enumerate(slopes)}
        return Tape(
            nodes=nodes,
            sizes=sizes,
            times=self._times(recorder),
            outputs=outputs,
            marks=torch.stack([sample(recorder.last.y), sample(end)]),
            ys=[state.y.reshape(-1) for state in states],
            slopes=[slope.reshape(-1) for slope in slopes],
            history=[[places[id(slope)] for slope in state.slopes] for state in states],
            kept=list(recorder.states),
            slots=self.keep.checkpoints,
            fresh=fresh[:-1],
            anchors=anchors,
            serving=serving.tolist(),
            notes=recorder.notes,
            settled=recorder.settled,
            pieces=recorder.pieces,
        )
