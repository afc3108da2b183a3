"""torchdiffeq's solves: read from a call, recorded, and the steps that only the host can take, taken again."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from steptape._errors import UnsupportedError
from steptape.compat import _torchdiffeq as host
from steptape.torch._autograd.field import Field
from steptape.torch._autograd.graph import Call, Parameters
from steptape.torch._autograd.side import SideState
from steptape.torch._autograd.surroundings import Surroundings
from steptape.torch._hosts.base import Before, HostSteps, Solve, Timeline, check_kind
from steptape.torch._hosts.loops import loop_of
from steptape.torch._hosts.recorder import Recorder
from steptape.torch._hosts.scheme import Scheme, scheme_of
from steptape.torch._hosts.tableau import Tableau
from steptape.torch._hosts.timeline import timeline_of
from steptape.torch._hosts.whole import as_one_graph
from steptape.torch._tape.checkpoints import Keep
from steptape.torch._tape.graphs import Graphs
from steptape.torch._tape.tape import OdeTape, State, fingerprints


@dataclasses.dataclass(frozen=True)
class OdeSolve(Solve):
    """One call of odeint, given y0, t, and the points at which steps may be cut short.

    Returns the solution and the time it ends. ``jumps``: how many of the points, the last ones, come from ``jump_t``.
    """

    func: Any
    user_func: Any
    rtol: Any
    atol: Any
    method: str
    options: dict[str, Any]
    scheme: Scheme
    jumps: int
    keep: Keep
    event_fn: Any = None
    back: Any = None
    before: Before | None = None
    first: Any = None
    call: Call = Call()  # noqa: RUF009

    given = 3
    constants = 1
    begins = True
    takes_times = True

    @classmethod
    def from_call(
        cls,
        func: Any,
        y0: Tensor,
        t: Tensor,
        rtol: Any,
        atol: Any,
        method: str,
        options: dict[str, Any],
        keep: Keep,
        event_fn: Any,
    ) -> tuple[OdeSolve, Tensor]:
        """Read a call in the host's normal form; also the points its steps may end at: step_t, then jump_t."""
        scheme = scheme_of(host.SOLVERS[method], options.get("interp", "linear"))
        if scheme is None:
            able = [name for name, solver in host.SOLVERS.items() if scheme_of(solver) is not None]
            raise UnsupportedError(
                f"odeint_adjoint(..., method={method!r}, adjoint_method='aca'): steps of {method!r} cannot be "
                f"replayed. Use one of {', '.join(able)}, or leave out adjoint_method for the host's own adjoint."
            )
        if scheme.tableau is None and keep.graph == "stage":
            raise UnsupportedError(
                f"odeint_adjoint(..., method={method!r}, adjoint_method='aca', adjoint_options={{'graph': 'stage'}}): "
                f"a step of {method!r} is replayed as a whole. Leave out 'graph'."
            )
        if scheme.tableau is None and keep.memory == "graphs":
            raise UnsupportedError(
                f"odeint_adjoint(..., method={method!r}, adjoint_method='aca', adjoint_options={{'memory': "
                f"'graphs'}}): a step of {method!r} starts from slopes of earlier ones, or iterates, and is taken "
                "again from its state. Leave out 'memory', or use an explicit Runge–Kutta method."
            )
        if scheme.tableau is None and keep.compile is not None:
            raise UnsupportedError(
                f"odeint_adjoint(..., method={method!r}, adjoint_method='aca', adjoint_options={{'compile': ...}}): a "
                f"step of {method!r} is the host's own, which is not compiled. Leave out 'compile', or use an explicit "
                "Runge–Kutta method."
            )
        _check_options(options, event_fn)
        dtype = scheme.points_dtype(t, y0, options)
        points = [
            torch.as_tensor([] if options.get(name) is None else options[name], dtype=dtype, device=y0.device)
            for name in scheme.point_names
        ]
        jumps = len(points[1]) if points else 0
        solve = cls(func, host.original_func(func), rtol, atol, method, options, scheme, jumps, keep, event_fn)
        return solve, torch.cat([t.new_zeros(0, dtype=dtype), *points])

    @property
    def tableau(self) -> Tableau | None:
        """That of the scheme."""
        return self.scheme.tableau

    @property
    def vector_field(self) -> Any:
        """func as a replay calls it."""
        return self.scheme.vector_field(self.func)

    @property
    def bare_field(self) -> Any:
        func = self.func
        while isinstance(func, _Enclosed):
            func = func.enclosed
        return self.scheme.vector_field(func)

    @property
    def calls_back(self) -> bool:
        return bool(host.VALID_CALLBACKS) and any(hasattr(self.user_func, name) for name in host.CALLBACKS)

    @property
    def in_options(self) -> list[Tensor]:
        return [x for x in self.options.values() if isinstance(x, Tensor) and x.requires_grad]

    @property
    def grid(self) -> Callable[..., Any] | None:
        if self.options.get("grid_constructor") is None:
            return None
        return lambda n, y0, t, *_: self.solver(y0).grid_constructor(self.func, y0, t)

    def beginning_with(self, first: Callable[..., Tensor]) -> OdeSolve:
        return dataclasses.replace(self, first=first)

    def _begun(self, first: Callable[..., Tensor], side: SideState) -> OdeSolve:
        """The same, which now has its first evaluation."""
        waiting = [first]

        def enclose(evaluate: Any) -> Tensor:
            return waiting.pop()(side, evaluate, evaluate.args[1]) if waiting else evaluate()

        return dataclasses.replace(self.around(enclose, first=True), first=None)

    def around(self, enclose: Callable[[Callable[[], Any]], Any], first: bool = False) -> OdeSolve:
        return dataclasses.replace(self, func=_Enclosed(self.func, enclose, first))

    def solver(self, y0: Tensor) -> Any:
        """A new solver of the host for this call."""
        return host.SOLVERS[self.method](func=self.func, y0=y0, rtol=self.rtol, atol=self.atol, **self.options)

    def evaluated(self, n: int, *given: Tensor) -> Any:
        y0, t, *_ = given
        side = {"perturb": host.BEFORE if n < 0 else host.AFTER} if self.options.get("perturb") else {}
        # The second one at a time of its own, for what func keeps of a time.
        at = t[0] + (t[-1] - t[0]) / 8 if n == 1 else t[n]
        return self.func(at, y0, **side)

    def integrate(self, *given: Tensor) -> tuple[Tensor, Tensor]:
        if self.first is not None:
            # Where nothing is recorded, what the first evaluation drew is drawn once all the same.
            side = Surroundings(given[0].device, self.user_func).side
            return self._begun(self.first, side).integrate(*given)
        y0, t, _ = given
        solver = self.solver(y0)
        host.attach(solver, self.func, seeks_event=self.event_fn is not None)
        return self._integrated(loop_of(solver, lean=self.keep.lean), t)

    def record(
        self,
        given: Sequence[Tensor],
        surroundings: Surroundings,
        graphs: Graphs | None = None,
        grid: Tensor | None = None,
    ) -> tuple[tuple[Tensor, Tensor], Any]:
        """The same; ``grid``: if it has been laid before."""
        whole = as_one_graph(self, given, surroundings, graphs)
        if whole is not None:
            return (whole[0], given[1][-1].clone()), whole[1]
        begun = self if self.first is None else self._begun(self.first, surroundings.side)
        return begun._recorded(given, surroundings, graphs, grid)

    def _recorded(
        self, given: Sequence[Tensor], surroundings: Surroundings, graphs: Graphs | None, grid: Tensor | None
    ) -> tuple[tuple[Tensor, Tensor], OdeTape]:
        y0, t, points = given
        solver = self.solver(y0)
        if grid is not None:
            solver.grid_constructor = lambda *_: grid
        recorder = self.scheme.recorder(self.func, self.keep, surroundings.side, solver, graphs)
        host.attach(solver, recorder, seeks_event=self.event_fn is not None)
        note = recorder.note_interpolant if self.keep.interpolants else None
        solution, end = self._integrated(loop_of(solver, lean=self.keep.lean, note_interpolant=note), t)
        recorder.finish()
        self._check(recorder, y0, t)
        outputs = t[1:] if self.event_fn is None else end[None]
        return (solution, end.clone()), self._tape(recorder, outputs, points, solution[-1])

    def _integrated(self, loop: Any, t: Tensor) -> tuple[Tensor, Tensor]:
        if self.event_fn is None:
            return loop.integrate(t), t[-1]
        end, solution = loop.integrate_until_event(t[0], self.event_fn)
        return solution, end

    def _check(self, recorder: Recorder, y0: Tensor, t: Tensor) -> None:
        """Raise where the recorded steps cannot be taken again as they were."""
        for y, *_ in recorder.kept.states.values():
            check_kind(y, y0, t)
        interp = self.options.get("interp", "linear")
        if not recorder.settled and not self.scheme.hands_on and interp != "linear":
            raise UnsupportedError(
                f"odeint_adjoint(..., method={self.method!r}, options={{'interp': {interp!r}}}, "
                "adjoint_method='aca'): func drew random numbers (dropout?) or changed its buffers, and this "
                "interpolation evaluates it anew for each output. Use 'interp': 'linear', or an adaptive method."
            )

    def _tape(self, recorder: Recorder, outputs: Tensor, points: Tensor, end: Tensor) -> OdeTape:
        if recorder.starts:
            sizes = torch.stack(recorder.sizes)
            nodes = self._nodes(recorder, sizes, outputs, points)
            times = self.scheme.times(self.method, recorder.times)
        else:
            nodes = sizes = times = outputs[:0]
        moves_with, evaluates = [0], [True]
        for n, cut in enumerate(recorder.cut):
            point = int((points == nodes[n + 1]).nonzero()[0]) if cut else None
            moves_with.append(moves_with[-1] if point is None else point + 1)
            at_jump = point is not None and point >= len(points) - self.jumps
            evaluates.append(at_jump or not self.scheme.hands_on)
        outputs = outputs.to(nodes.dtype)
        inside = outputs if recorder.starts else outputs[:0]
        return OdeTape(
            length=len(recorder.starts),
            states={n: self.scheme.taped(state, evaluates[n]) for n, state in recorder.kept.states.items()},
            slots=recorder.kept.slots,
            step_of_output=torch.searchsorted(nodes[1:].contiguous(), inside.contiguous()).tolist(),
            fingerprints=fingerprints(recorder.kept.last, end),
            rejected=recorder.rejected,
            notes=recorder.notes,
            nodes=nodes,
            sizes=sizes,
            times=times,
            outputs=outputs,
            evaluates_first_stage=evaluates[:-1],
            moves_with=moves_with,
            settled=recorder.settled,
            interpolants=recorder.interpolants,
        )

    def _nodes(self, recorder: Recorder, sizes: Tensor, outputs: Tensor, points: Tensor) -> Tensor:
        """The ends of all steps, in the host's own numbers."""
        starts = torch.stack(recorder.starts)
        last = starts[-1:] + sizes[-1:]
        if recorder.cut[-1]:
            last = points[(points - last).abs().argmin()][None]
        elif not self.scheme.hands_on:
            end = outputs[-1:].to(last.dtype)
            last = end if self.event_fn is None else starts[-1:] + self.options["step_size"]
        return torch.cat([starts, last])

    def start(self, tape: Any, given: Sequence[Tensor], surroundings: Surroundings) -> tuple[State, Timeline]:
        y0, t, points = given

        def grid() -> Tensor:
            return self.solver(y0).grid_constructor(self.func, y0, t)

        return (y0,), timeline_of(self.scheme, tape, y0, t, points, grid, self.event_fn is not None)

    def host_steps(
        self, tape: Any, timeline: Timeline, given: Sequence[Tensor], parameters: Parameters, surroundings: Surroundings
    ) -> HostSteps:
        y0 = given[0]
        field = Field(self.vector_field, surroundings, tape.notes, y0.shape, parameters, in_time=False, checks=False)
        # As the host hands them to its step: where it seeks an event, the very step_size of the call.
        sizes = list(timeline.sizes) if self.event_fn is None else [self.options["step_size"]] * tape.length
        return _OdeSteps(self.solver(y0), field, timeline, sizes)


class _OdeSteps(HostSteps):
    """Of a solver whose steps start from y and the slopes of earlier steps, or iterate for their stages."""

    def __init__(self, solver: Any, field: Field, timeline: Timeline, sizes: Sequence[Any]):
        self._solver, self._field, self._timeline, self._sizes = solver, field, timeline, sizes

    def times(self, n: int, outputs: slice) -> list[Tensor]:
        size = [self._sizes[n]] if isinstance(self._sizes[n], Tensor) else []
        return [*self._timeline.stages[n], *size, *self._timeline.outputs[outputs]]

    def take(self, n: int, state: Sequence[Tensor], times: Sequence[Tensor], outputs: slice) -> tuple[State, State]:
        self._field.side.before(n, 0)
        (t0, t1, *ts), (y, *slopes), h = times, state, self._sizes[n]
        if isinstance(h, Tensor):
            h, *ts = ts
        increment, slope, after = host.whole_step(self._solver, slopes, self._field.returned, t0, t1, h, y)
        y1 = y + increment
        end_slope = self._field.returned(t1, y1) if ts and self._solver.interp != "linear" else None
        inside = [host.interpolated(self._solver, t0, y, slope, t1, y1, end_slope, t) for t in ts]
        return (y1, *after), tuple(inside)

    def place(self, cotangents: Timeline, n: int, outputs: slice, in_times: Sequence[Tensor]) -> None:
        at_start, at_end, *others = in_times
        cotangents.stages[n] = torch.stack([at_start, at_end])
        if isinstance(self._sizes[n], Tensor):
            cotangents.sizes[n], *others = others
        if others:
            cotangents.outputs[outputs] = torch.stack(others)


class _Enclosed:
    """A func in the host's normal form, each evaluation of which is enclosed, or the ``first`` one alone."""

    def __init__(self, func: Any, enclose: Callable[[Callable[[], Any]], Any], first: bool):
        self.enclosed, self._enclose, self._first = func, enclose, first
        self._encloses = True

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        if not self._encloses:
            return self.enclosed(*args, **kwargs)
        self._encloses = not self._first
        return self._enclose(functools.partial(self.enclosed, *args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.enclosed, name)

    @property
    def base_func(self) -> _Enclosed:
        return _Enclosed(self.enclosed.base_func, self._enclose, self._first)


def _check_options(options: dict[str, Any], event_fn: Any) -> None:
    # A grid is a function of the step_size, whose gradient it has as that of any tensor a grid_constructor reads.
    able = ("step_t", "jump_t") if event_fn else ("step_t", "jump_t", "step_size")
    for name, value in options.items():
        if name not in able and isinstance(value, Tensor) and value.requires_grad:
            raise UnsupportedError(
                f"odeint_adjoint(..., options={{{name!r}: {value!r}}}): it requires a gradient, and is held constant. "
                "Pass it with .detach(), or differentiate with torchdiffeq.odeint."
            )
