"""A solve of torchdiffeq's on a fixed grid as one graph, as back-propagation has it.

What its steps leave to autograd is less than the graphs of evaluations from leaves of their own cost. Where steps are
taken again after all, for second derivatives or for a batch that an operation does not take, the solve is taken again
for its tape, from what it drew from.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steptape.compat import _torchdiffeq as host
from steptape.compat._torch import place_in_order
from steptape.compat._torch_hooks import has_hooks
from steptape.torch._autograd.graph import refuse_written
from steptape.torch._autograd.leaves import Node, is_looked_at
from steptape.torch._autograd.side import Note
from steptape.torch._autograd.surroundings import Surroundings
from steptape.torch._hosts.base import check_kind
from steptape.torch._hosts.fixed_loop import integrated, is_as_host, plain
from steptape.torch._tape.graphs import Graphs, Step
from steptape.torch._tape.tape import Later, OdeTape, State, fingerprints


def as_one_graph(
    solve: Any, given: Sequence[Tensor], surroundings: Surroundings, graphs: Graphs | None
) -> tuple[Tensor, Later] | None:
    """The solution, whose graph is kept, and the tape; None where steps are to be kept one by one."""
    y0, t, _ = given
    if graphs is None or not graphs.keeps_all or graphs.in_time:
        return None
    solver, side = known_solver(solve, y0, t), surroundings.side
    if solver is None:
        return None
    note, writes = side.note(), side.writes
    with torch.enable_grad():
        grid = solver.grid_constructor(solve.func, y0, t)
    if grid.requires_grad:
        side.set(note)
        return None
    assert grid[0] == t[0]
    assert grid[-1] == t[-1]
    watched = _Watched(solve, y0, len(grid) - 1)

    def integrate(y: Tensor) -> tuple[Tensor]:
        ys: list[Tensor] = []
        # Views have their place in the order in which a backward pass adds up, which is that of the host's writes.
        watched.finish(integrated(solver, watched, y, t, grid, watched.before, lambda y: ys.append(y.view_as(y))))
        check_kind(ys[-1], y0, t)
        return (torch.stack(ys),)

    (solution,) = graphs.keep_whole(integrate, (y0,), watched.steps, watched.glances)
    if watched.lost:
        # What came without a graph may be taken over from elsewhere, and a hook on the state is to be refused.
        graphs.whole = None
    changes = not side.is_untouched_since(note, writes)
    states = {n: solve.scheme.taped(tuple(x.detach() for x in start), True) for n, start, _ in watched.steps}
    marks = fingerprints(states[len(grid) - 2], solution[-1])
    make = functools.partial(_taken_again, solve, given, surroundings, grid, note if changes else None, states, marks)
    held = [grid, marks, *(x for state in states.values() for x in state)]
    known = {"rejected": 0, "states_kept": len(states), "nodes": grid, "held": lambda: held}
    return solution, Later(len(grid) - 1, make, changes, **known)


def step_again(solve: Any, nodes: Tensor, n: int, y: Tensor) -> State:
    """Where step n ends that starts from y, as part of the caller's graph."""
    solver, t0, t1 = solve.solver(y), nodes[n], nodes[n + 1]
    return (y + host.fixed_step(solver)(_func_of(solve, y), t0, t1 - t0, t1, y)[0],)


def known_solver(solve: Any, y0: Tensor, t: Tensor) -> Any:
    """A new solver of a solve on a fixed grid that our loop takes as the host's does; None if there is none.

    Its outputs are made of plain tensors, and of the ends of its steps alone.
    """
    plainly = type(y0) in (Tensor, torch.nn.Parameter) and solve.keep.lean and solve.event_fn is None
    begins = solve.first is None or solve.first.repeats
    of_ends = len(t) > 1 and solve.options.get("interp", "linear") == "linear" and not solve.in_options
    if not (plainly and begins and of_ends):
        return None
    solver = solve.solver(y0)
    known = host.fixed_step(solver) is not None and is_as_host(solver.__class__, y0.dtype, t.dtype, y0.device)
    return solver if known else None


def _func_of(solve: Any, y0: Tensor) -> Any:
    return solve.func if solve.options.get("perturb") else plain(solve.func, y0)


def _taken_again(
    solve: Any,
    given: Sequence[Tensor],
    surroundings: Surroundings,
    grid: Tensor,
    note: Note | None,
    states: dict[int, State],
    marks: Tensor,
) -> OdeTape:
    """The tape of a solve that began with a ``note``, if that changed; its few ``states`` and ``marks`` remain.

    By these it shows whether func still returns the same.
    """
    keep = dataclasses.replace(solve.keep, memory="states")
    again = dataclasses.replace(solve, func=_NotCalledBack(solve.func), keep=keep)
    with torch.no_grad(), surroundings.side.kept(), surroundings.around_func():
        if note is not None:
            surroundings.side.set(note)
        _, tape = again.record(given, surroundings, grid=grid)
    return dataclasses.replace(tape, states={**tape.states, **states}, fingerprints=marks)


class _Watched:
    """func in the host's normal form, in a solve of so many steps.

    ``steps``: a few, by their number, with the states they start from and end at. ``glances``: of one in three
    evaluations at least where such a state is in the graph, and func there. ``lost``: whether func returned what has
    no graph, or put a hook on a state.
    """

    def __init__(self, solve: Any, y0: Tensor, count: int):
        self._func, self._callback = _func_of(solve, y0), solve.func.callback_step
        self._call = solve.call
        self._count, self._rare = count, max(1, 3 // solve.tableau.stages)
        self._n, self._place = 0, place_in_order()
        self._sizes: set[int] = set()
        self._start: Tensor | None = None
        self._glances = self._looks = False
        self.steps: list[Step] = []
        self.glances: list[tuple[int, Any, Any]] = []
        self.lost = False

    def __call__(self, t: Tensor, y: Tensor, **side: Any) -> Tensor:
        slope = self._func(t, y, **side)
        if not slope.requires_grad or has_hooks(y):
            self.lost = True
        elif self._glances and slope.grad_fn is not None:
            self.glances.append((self._n, Node(y.grad_fn, y.output_nr), Node(slope.grad_fn, slope.output_nr)))
            self._glances = False
        return slope

    def before(self, n: int, t: Tensor, y: Tensor, h: Tensor) -> None:
        """A step: what the last one was is known now."""
        if n:
            self._close(y)
        self._n, self._start = n, y
        self._looks = is_looked_at(n, self._count)
        self._glances = not self._looks and n % self._rare == 0
        if self._callback is not host.NO_CALLBACK:
            self._callback(t, y.detach(), h)
        self._place = place_in_order()

    def finish(self, end: Tensor) -> None:
        """After the last step."""
        self._close(end)
        self._start = None

    def _close(self, end: Tensor) -> None:
        size, start = place_in_order() - self._place, self._start
        assert start is not None
        if start._version and self._n:
            refuse_written(self._call)
        # One of another size is likely to depend on something else.
        if self._looks or size not in self._sizes:
            self._sizes.add(size)
            self.steps.append((self._n, (start,), (end,)))


class _NotCalledBack:
    """func in the host's normal form, whose callbacks have seen the solve."""

    def __init__(self, func: Any):
        self._func = func

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._func(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._func, name)

    def callback_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        """None."""
