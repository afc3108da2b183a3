"""The autograd function: the host's solve forward, its tape backward, which is replayed unless the solve says else."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from steptape._errors import GradientError, UnsupportedError
from steptape.compat._torch import is_batch_of_cotangents
from steptape.compat._torch_hooks import hooks_passed_by
from steptape.torch._autograd.ambient import Ambient
from steptape.torch._autograd.belongings import Belongings
from steptape.torch._autograd.field import Field, lost, unknown_leaves
from steptape.torch._autograd.gate import Gate
from steptape.torch._autograd.side_state import Restored, SideState
from steptape.torch._hosts.torchdiffeq import Solve
from steptape.torch._replay.host_step import WholeStepSweep
from steptape.torch._replay.runge_kutta import RungeKuttaSweep
from steptape.torch._replay.sweep import Sweep, check_end
from steptape.torch._replay.unrolled import chain
from steptape.torch._tape.tape import Tape, Timeline


class Replay(torch.autograd.Function):
    """(y0, t, points, *params) to the solution at t, (len(t), *y0.shape), and the time it ends, which has no gradient.

    Holds the tape in between, and no graph.
    """

    @staticmethod
    def forward(
        ctx: Any, solve: Solve, y0: Tensor, t: Tensor, points: Tensor, *params: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.ambient, ctx.belongings = Ambient(y0.device), Belongings(solve.user_func)
        ctx.side = SideState(y0.device, solve.user_func)
        solution, end, tape = solve.record(y0, t, points, ctx.side)
        # Saved parameters are watched for changes in place, but hooks such as save_on_cpu unpack other objects, and the
        # check of what func depends on goes by identity.
        ctx.solve, ctx.tape, ctx.params = solve, tape.emptied(), params
        ctx.save_for_backward(y0, t, points, *params, *tape.tensors())
        end = end.clone()
        ctx.mark_non_differentiable(end)
        return solution, end

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        """Refused."""
        refuse_forward_mode("odeint_adjoint")

    @staticmethod
    def backward(ctx: Any, grad_solution: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        refuse_batches(grad_solution, "odeint_adjoint")
        y0, t, points, *rest = ctx.saved_tensors
        tape = ctx.tape.refilled(rest[len(ctx.params) :])
        side = Restored(ctx.side, tape.notes)
        back = (ctx.solve.back or _Back)(
            ctx.solve, ctx.ambient, side, tape, (y0, t, points, *ctx.params), ctx.needs_input_grad[1:]
        )
        side_kept = ctx.side.kept() if tape.notes else nullcontext()
        with ctx.ambient.without_autocast(), side_kept, hooks_passed_by(ctx.params):
            pull = back.differentiable if torch.is_grad_enabled() else back.plain
            grads = ctx.belongings.given_back(lambda: pull(grad_solution))
        return (None, *(grad if need else None for grad, need in zip(grads, back.needed, strict=True)))


def refuse_forward_mode(function: str) -> NoReturn:
    """Raise where ``torch.autograd.forward_ad`` comes to a solve."""
    raise UnsupportedError(
        f"torch.autograd.forward_ad over {function}(..., adjoint_method=...): there is a tape to go back on, none to "
        "go forward with. Use torch.func.jvp with odeint_adjoint and 'aca', or the host's own function on a fixed grid."
    )


def refuse_batches(cotangent: Tensor, function: str) -> None:
    """Raise if the cotangent is a batch of them."""
    if is_batch_of_cotangents(cotangent):
        raise UnsupportedError(
            f"{function}(..., adjoint_method=...): several cotangents at once (is_grads_batched=True, vectorize=True). "
            "Take them one after another: vectorize=False, or a loop over torch.autograd.grad(..., retain_graph=True)."
        )


def check_leaves(timeline: Timeline, known: Sequence[Tensor]) -> None:
    """Raise if a time depends on leaves besides ``known``: those that a grid constructor reads."""
    unknown = {id(x): x for times in timeline if times.requires_grad for x in unknown_leaves(times, known)}
    if unknown:
        raise GradientError(lost(list(unknown.values()), reader="the grid_constructor"))


class _Back(NamedTuple):
    """One backward pass: from the cotangent of the solution to those of the inputs (y0, t, points, *params)."""

    solve: Solve
    ambient: Ambient
    side: Restored
    tape: Tape
    inputs: tuple[Tensor, ...]
    needed: tuple[bool, ...]

    def plain(self, grad_solution: Tensor) -> list[Tensor]:
        """By replaying the tape, last step to first."""
        solve, tape, inputs = self.solve, self.tape, self.inputs
        y0, params = inputs[0], inputs[3:]
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_(need) for x, need in zip(inputs[:3], self.needed[:3], strict=True)]
            timeline = solve.timeline(tape, *leaves)
        check_leaves(timeline, (*leaves, *params))
        field = self._field(timeline)
        if solve.tableau.whole:
            sweep: Sweep = WholeStepSweep(solve, tape, timeline, field, y0)
        else:
            sweep = RungeKuttaSweep(solve.tableau, tape, timeline, field, y0, solve.keep.graph == "step")
        cotangents = sweep.run(grad_solution[1:].reshape(len(grad_solution) - 1, y0.numel()))
        grads = [cotangents.y0 + grad_solution[0], *map(torch.zeros_like, inputs[1:3]), *field.cotangents]
        moved = [(x, g) for x, g in zip(timeline, cotangents[1:], strict=True) if x.requires_grad]
        if moved:
            ends, pulled = zip(*moved, strict=True)
            movers = [(i, x) for i, x in enumerate((*leaves, *params)) if x.requires_grad]
            found = torch.autograd.grad(ends, [x for _, x in movers], pulled, allow_unused=True)
            for (i, _), g in zip(movers, found, strict=True):
                grads[i] = grads[i] if g is None else grads[i] + g
        return grads

    def differentiable(self, grad_solution: Tensor) -> list[Tensor]:
        """The same as functions of the inputs and of ``grad_solution``, for second derivatives."""
        solve, tape, gate = self.solve, self.tape, Gate()
        inputs = (*map(gate.through, self.inputs[:3]), *self.inputs[3:])
        y0 = inputs[0]
        timeline = solve.timeline(tape, *inputs[:3])
        check_leaves(timeline, inputs)
        field = self._field(timeline)
        solution = chain(solve, tape, timeline, field, y0)
        if tape.kept:
            check_end(solution[-1], tape.marks[1], y0)
        wanted = [x for x, need in zip(inputs, self.needed, strict=True) if need]
        with gate.closed():
            grads = torch.autograd.grad(
                solution, wanted, grad_solution, create_graph=True, allow_unused=True, materialize_grads=True
            )
        found = iter(grads)
        return [next(found) if need else x for x, need in zip(inputs, self.needed, strict=True)]

    def _field(self, timeline: Timeline) -> Field:
        shape, params = self.inputs[0].shape, self.inputs[3:]
        return Field(self.solve.vector_field, self.ambient, self.side, shape, params, in_time=timeline.moves)
