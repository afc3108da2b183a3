"""A solve as autograd or ``torch.func`` is to see it: forward the host's own, backward the replay of its tape."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

import torch
from torch import Tensor

from steptape.compat._torch import Batches, forward_mode_allowed, transforms_active
from steptape.compat._torch_graphs import graph_is_retained
from steptape.torch._autograd.batch import BatchParameters, Unbatchable
from steptape.torch._autograd.field import Field
from steptape.torch._autograd.gate import Gate
from steptape.torch._autograd.graph import Parameters, is_one_of
from steptape.torch._autograd.stored import StoredLate, check_stored
from steptape.torch._autograd.surroundings import Surroundings
from steptape.torch._autograd.used import check_kept
from steptape.torch._hosts.base import Solve, Timeline
from steptape.torch._hosts.whole import known_solver, step_again
from steptape.torch._replay.checks import (
    check_end,
    check_unchanged,
    refuse_clipping,
    refuse_forward_mode,
    refuse_other_values,
)
from steptape.torch._replay.compiled import CompiledSweep, How, check_compilable, refuse_parts
from steptape.torch._replay.first import FirstEvaluation
from steptape.torch._replay.grid_steps import GridSweep
from steptape.torch._replay.host_step import HostStepSweep, pull_whole
from steptape.torch._replay.kept import graphs_of
from steptape.torch._replay.runge_kutta import RungeKuttaSweep
from steptape.torch._replay.sweep import Sweep
from steptape.torch._replay.transforms import solve_in_transforms
from steptape.torch._replay.unrolled import unrolled
from steptape.torch._tape.graphs import Graphs
from steptape.torch._tape.tape import OdeTape, State, Tape
from steptape.torch._tape.transfer import settle


def run(solve: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
    """What a solve returns, differentiable in its inputs: what it is given, and then the parameters.

    ``solve``: a ``Solve``, or something around one.
    """
    if transforms_active():
        return solve_in_transforms(solve, *inputs[: solve.given])
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        try:
            return Replay.apply(solve, *inputs)
        except StoredLate:
            return Replay.apply(solve.storing(inputs), *inputs)
    with torch.no_grad():
        return solve.integrate(*inputs[: solve.given])


class Replay(torch.autograd.Function):
    """The inputs of a solve to what it returns. Holds the tape in between, and no graph."""

    @staticmethod
    @forward_mode_allowed()
    def forward(ctx: Any, solve: Solve, *inputs: Tensor) -> tuple[Tensor, ...]:
        # A view of a leaf requires a gradient also where no graph is built, and func may go by that.
        given, params = [x.detach() for x in inputs[: solve.given]], inputs[solve.given :]
        assert solve.before is not None
        ctx.surroundings, untouched, first, kept, *_ = solve.before
        held = untouched.held
        ctx.graphs = graphs_of(solve, inputs, ctx.needs_input_grad[1:], ctx.surroundings)
        results, tape = solve.record(given, ctx.surroundings, ctx.graphs)
        if solve.keep.device is not None:
            settle(given[0].device)
        if solve.keep.compile is not None:
            check_compilable(solve.call, tape, ctx.surroundings)
        held_still, graphs_are_all = held.holds, bool(ctx.graphs and ctx.graphs.are_of(tape.length))
        written = untouched.gained.written
        gained = untouched.gained.elsewhere if held_still else untouched.gained.tensors
        _check_gained(solve, gained, graphs_are_all, ctx.graphs is None)
        ctx.surroundings.compare(held, held_still)
        # What has come to a history by being written to would have that of another evaluation.
        if ctx.surroundings.first is not None and solve.back is None and not any(x.requires_grad for x in written):
            parameters = Parameters(params, solve.call, ctx.surroundings.autocast)
            with ctx.surroundings.replayed(changed=False, params=params):
                FirstEvaluation(solve, given, ctx.surroundings, parameters).note(held)
        used = set(map(id, first))
        unused = [x for x in params if id(x) not in used]
        new = ctx.surroundings.hold(held, held_still, params, unused, solve.call.named)
        new += [x for x in gained if x.grad_fn is not None and not is_one_of(x, (*params, *written))]
        if (kept or new) and not graphs_are_all:
            with ctx.surroundings.looked_at(), untouched.kept_now():
                is_constant = functools.partial(ctx.surroundings.keeps_constants, held)
                check_kept(kept, new, solve.evaluated, given, solve.call, is_constant)
        if not held_still:
            held.clear()
        untouched.let_go()
        # Hooks such as save_on_cpu unpack other objects, and the check of what func depends on goes by identity.
        ctx.solve, ctx.params = solve, params
        ctx.versions = [(x, x._version, x.detach()) for x in first if not x.is_inference()]
        ctx.kinds = [(x.dtype, x.device) for x in params] if ctx.graphs else ()
        ctx.tape, tensors = tape.emptied()
        ctx.save_for_backward(*inputs[: solve.given], *tensors)
        ctx.mark_non_differentiable(*results[len(results) - solve.constants :])
        # A pass that ends before it gets here must not take the steps again: a closed gate sends None on.
        ctx.set_materialize_grads(False)
        ctx.shapes = [(x.shape, x.dtype, x.device) for x in results[: len(results) - solve.constants]]
        return results

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        """Refused."""
        refuse_forward_mode(ctx.solve.call.function)

    @staticmethod
    def backward(ctx: Any, *found: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(x is None for x in found):
            return (None,) * len(ctx.needs_input_grad)
        cotangents = [
            torch.zeros(shape, dtype=dtype, device=device) if x is None else x
            for x, (shape, dtype, device) in zip(found, ctx.shapes, strict=False)
        ]
        batches = Batches(cotangents)
        if batches:
            with batches.outside():
                grads = _pulled_together(ctx, batches.plain, batches.size)
            grads = [None if grad is None else batches.around(grad) for grad in grads]
        else:
            grads = _pulled(ctx, cotangents)
        if not graph_is_retained():
            ctx.surroundings.let_go()
            ctx.tape = None
        return (None, *grads)


def _check_gained(solve: Solve, gained: Sequence[Tensor], graphs_are_all: bool, no_graphs: bool) -> None:
    """After a solve, what func has gained in it: raise ``StoredLate`` where that is to be told from what has a history.

    Then all is as before the solve; else the graphs that evaluations built apart are over.
    """
    before = solve.before
    assert before is not None
    with_history = any(x.grad_fn is not None for x in gained)
    check_stored(solve.user_func, with_history)
    told = before.stores or (before.apart and (no_graphs or not with_history))
    if gained and not told and (with_history or not graphs_are_all):
        before.untouched.restore()
        raise StoredLate
    if before.apart is not None:
        before.apart.is_open = False


def _pulled(ctx: Any, cotangents: Sequence[Tensor], size: int | None = None) -> list[Tensor | None]:
    """The cotangents of the inputs as far as they are needed, of a batch of ``size`` if there is one."""
    solve, params, needed, saved = ctx.solve, ctx.params, ctx.needs_input_grad[1:], ctx.saved_tensors
    tape = ctx.tape.refilled(saved[solve.given :])
    about = (params, solve.call, ctx.surroundings.autocast, needed[solve.given :], solve.before.used_first)
    parameters = Parameters(*about) if size is None else BatchParameters(size, *about)
    parameters.has_graphs = solve.keep.memory != "states"
    back = (solve.back or ReplayBack)(solve, ctx.surroundings, tape, saved[: solve.given], parameters, needed)
    pull = back.differentiable if torch.is_grad_enabled() else back.plain
    with ctx.surroundings.replayed(changed=tape.changes, params=params), ctx.surroundings.as_solved():
        if ctx.graphs is not None and pull == back.plain:
            back.graphs = _kept_graphs(ctx, parameters, tape.length)
        if not (back.graphs and back.graphs.are_of(tape.length)):
            check_unchanged(ctx.versions, solve.call)
        grads = pull(cotangents)
    if ctx.surroundings.draws_anew:
        refuse_other_values(parameters)
    return [grad if need else None for grad, need in zip(grads, needed, strict=True)]


def _kept_graphs(ctx: Any, parameters: Parameters, length: int) -> Graphs:
    """Those that were kept of so many steps, if they lead to the parameters as these are now."""
    parameters.retains, parameters.solve = graph_is_retained(), ctx.graphs.solve
    graphs: Graphs = ctx.graphs if parameters.retains else ctx.graphs.handed_over()
    edges = ctx.next_functions[ctx.solve.given :]
    if graphs.are_of(length):
        parameters.ask_at(edges, ctx.kinds)
    elif graphs.steps and not parameters.are_at(edges):
        return Graphs()
    return graphs


def _pulled_together(ctx: Any, cotangents: Sequence[Tensor], size: int) -> list[Tensor | None]:
    """The same of a batch, each step taken once for all of it unless an operation of func takes no batch."""
    with suppress(Unbatchable):
        return _pulled(ctx, cotangents, size)
    each = [_pulled(ctx, one) for one in zip(*cotangents, strict=True)]
    return [
        None if grads[0] is None else torch.stack([x.to_dense() for x in grads]) for grads in zip(*each, strict=True)
    ]


class ReplayBack:
    """One backward pass: from the cotangents of what a solve returns to those of its inputs.

    ``needed``: which of these are. ``graphs``: of the steps that need not be taken again.
    """

    graphs = Graphs()

    def __init__(
        self,
        solve: Solve,
        surroundings: Surroundings,
        tape: Tape,
        given: Sequence[Tensor],
        parameters: Parameters,
        needed: Sequence[bool],
    ):
        self._solve, self._surroundings, self._tape = solve, surroundings, tape
        self._given, self._parameters, self._needed = given, parameters, needed
        self._first = FirstEvaluation(solve, given, surroundings, parameters)

    def plain(self, cotangents: Sequence[Tensor]) -> list[Tensor | None]:
        """By replaying the tape, last step to first."""
        parameters = self._parameters
        if not self.graphs.are_of(self._tape.length):
            self._first.check()
        if self.graphs.whole is not None:
            needed = self._needed[: self._solve.given]
            pulled = pull_whole(self.graphs.whole, cotangents, needed, parameters, self._end_again)
            return [*pulled, *parameters.found]
        solution, *at_end = cotangents
        solution = solution.movedim(len(parameters.batch), 0)
        with torch.enable_grad(), parameters.in_place():
            leaves = [x.detach().requires_grad_(need) for x, need in zip(self._given, self._needed, strict=False)]
            start, timeline = self._solve.start(self._tape, leaves, self._surroundings)
        sweep = self._sweep(timeline)
        at_start = sweep.run(solution[1:], [torch.zeros_like(solution[0]), *at_end])
        at_start[0] = at_start[0] + solution[0]
        # What the solve starts from is given, or made of what is.
        places = {id(x): i for i, x in enumerate(leaves)}
        grads = [parameters.zeros(x) for x in leaves]
        in_times = [g.movedim(-1, 0) if parameters.batch else g for g in sweep.cotangents]
        made = [*zip(timeline, in_times, strict=True)]
        for x, g in zip(start, at_start, strict=True):
            if id(x) in places:
                grads[places[id(x)]] = grads[places[id(x)]] + g
            else:
                made.append((x, g))
        made = [(x, g) for x, g in made if x.requires_grad]
        if made:
            moving = [i for i, x in enumerate(leaves) if x.requires_grad]
            for i, g in zip(moving, parameters.pull(made, [leaves[i] for i in moving]), strict=True):
                grads[i] = grads[i] + g
        return [*grads, *parameters.found]

    def differentiable(self, cotangents: Sequence[Tensor]) -> list[Tensor | None]:
        """The same as functions of the inputs and of the cotangents, for second derivatives."""
        self._first.check()
        if self._tape.length and not self._first.takes_multiples():
            refuse_clipping(self._solve.call)
        gate = Gate()
        given = [gate.through(x) for x in self._given]
        parameters = self._parameters.with_stand_ins(gate.through)
        inputs = (*given, *parameters.params)
        count = cotangents[0].shape[len(parameters.batch)]
        results = unrolled(self._solve, self._tape, given, parameters, self._surroundings, count)
        if self._tape.length:
            check_end(results[0][-1], self._tape.fingerprints[1], given[0], parameters)
        pairs = [(x, c) for x, c in zip(results, cotangents, strict=False) if x.requires_grad]
        if not pairs:
            return [self._parameters.zeros(x) for x in inputs]
        ends, pulled = zip(*pairs, strict=True)
        wanted = [x for x, need in zip(inputs, self._needed, strict=True) if need]
        with gate.closed():
            found = iter(parameters.taken_with_graph(ends, pulled, wanted))
        return [next(found) if need else None for need in self._needed]

    def _sweep(self, timeline: Timeline) -> Sweep:
        solve, tape, y0 = self._solve, self._tape.made, self._given[0]
        if solve.tableau is None or not isinstance(tape, OdeTape):
            return self._host_sweep(timeline)
        around, moves = self._surroundings, timeline.moves
        field = Field(solve.vector_field, around, tape.notes, y0.shape, self._parameters, in_time=moves)
        if solve.keep.compile is not None and y0.numel() and not (moves or self._parameters.batch):
            if not self._first.takes_multiples():
                refuse_parts(solve.call)
            how = How(solve.bare_field, solve.user_func, around.autocast_settings, solve.keep.compile)
            return CompiledSweep(solve.tableau, tape, timeline, field, y0, how)
        whole_steps, graphs = solve.keep.graph == "step", self._graphs_for(timeline)
        if whole_steps and not moves and (solver := self._known_solver(tape)):
            return GridSweep(solver, solve.tableau.stages, tape, timeline, field, y0)
        return RungeKuttaSweep(solve.tableau, tape, timeline, field, y0, whole_steps, graphs)

    def _known_solver(self, tape: OdeTape) -> Any:
        """The solver of a fixed grid whose steps can be taken again by several, without regard to anything else."""
        solve: Any = self._solve
        y0, t, *_ = self._given
        apart = tape.notes or self._parameters.batch or solve.keep.memory != "states" or solve.options.get("perturb")
        return None if apart or not y0.numel() else known_solver(solve, y0, t)

    def _host_sweep(self, timeline: Timeline) -> HostStepSweep:
        steps = self._solve.host_steps(self._tape, timeline, self._given, self._parameters, self._surroundings)
        return HostStepSweep(steps, self._tape, timeline, self._parameters, self._given[0].device)

    def _end_again(self, n: int, start: State | None) -> State:
        if self._solve.tableau is None:
            return self._host_sweep(Timeline.empty(self._given[0])).end_again(n)
        tape: Any = self._tape
        (y,) = start or tape.states[n]
        with torch.enable_grad(), self._surroundings.side.kept(), self._surroundings.around_func():
            return step_again(self._solve, tape.nodes, n, y.detach().view_as(self._given[0]).requires_grad_())

    def _graphs_for(self, timeline: Timeline) -> Graphs:
        return self.graphs if self.graphs.in_time or not timeline.moves else Graphs()
