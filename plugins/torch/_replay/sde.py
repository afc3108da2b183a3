"""The autograd function of an SDE's solve: the host's solve forward, the replay of its tape backward.

Each accepted step is the host's own, taken again from its state with the increments of the solve, whole and under
autograd; its graph is freed before that of the step before is built.

Source: Zhuang et al., arXiv 2006.02493, for ODEs; the discrete adjoint of a step holds whatever its increments are.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NoReturn

import torch
from torch import Tensor

from steptape._errors import GradientError
from steptape.compat import _torchsde as host
from steptape.compat._torch_hooks import hooks_passed_by
from steptape.torch._autograd.ambient import Ambient
from steptape.torch._autograd.belongings import Belongings
from steptape.torch._autograd.field import lost, pull_into, shared_graphs_refused, unknown_leaves
from steptape.torch._autograd.gate import Gate
from steptape.torch._autograd.side_state import SideState
from steptape.torch._hosts.torchsde import Solve, Stepper
from steptape.torch._replay.function import refuse_batches, refuse_forward_mode
from steptape.torch._replay.sweep import check_end, states_backward
from steptape.torch._tape.sde import State, Tape


class SdeReplay(torch.autograd.Function):
    """(y0, *extra, *params) to the solution at ts, (len(ts), *y0.shape), and the solver's extra state at the end.

    ``extras``: how many tensors there are in extra, or None where the host makes the extra state. Holds the tape in
    between, and no graph.
    """

    @staticmethod
    def forward(ctx: Any, solve: Solve, extras: int | None, y0: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        ctx.ambient, ctx.belongings = Ambient(y0.device), Belongings(solve.user_sde)
        extra, params = (None, rest) if extras is None else (rest[:extras], rest[extras:])
        ctx.side = SideState(y0.device, solve.user_sde)
        solution, after, tape = solve.record(y0, extra, ctx.side)
        # The check of what sde depends on goes by identity, and hooks on saved tensors unpack other objects.
        ctx.solve, ctx.extras, ctx.params = solve, extras, params
        ctx.tape, ctx.counts = tape.emptied()
        # The times of the tape may be views of ts.
        ctx.save_for_backward(solve.ts, y0, *rest, *tape.tensors())
        return (solution, *(after if tape.steps else map(torch.clone, after)))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        """Refused."""
        refuse_forward_mode("sdeint_adjoint")

    @staticmethod
    def backward(ctx: Any, grad_solution: Tensor, *grad_after: Tensor) -> tuple[Tensor | None, ...]:
        refuse_batches(grad_solution, "sdeint_adjoint")
        given = ctx.extras or 0
        _, y0, *saved = ctx.saved_tensors
        extra, tensors = saved[:given], saved[given + len(ctx.params) :]
        tape = ctx.tape.refilled(ctx.counts, tensors)
        inputs, needed = (y0, *extra, *ctx.params), ctx.needs_input_grad[2:]
        back = _Back(ctx.solve, ctx.ambient, ctx.side, tape, ctx.extras is None, inputs, 1 + given)
        differentiate = back.differentiable if torch.is_grad_enabled() else back.plain

        def run() -> Sequence[Tensor]:
            return differentiate((grad_solution, *grad_after), needed)

        side_kept = ctx.side.kept() if tape.note is not None else nullcontext()
        with ctx.ambient.without_autocast(), side_kept, hooks_passed_by(ctx.params):
            grads = ctx.belongings.given_back(run)
        return (None, None, *(grad if need else None for grad, need in zip(grads, needed, strict=True)))


class _Back:
    """One backward pass over a tape: from the cotangents of (solution, *after) to those of ``inputs``.

    ``inputs``: y0, the extra state where the user gave it, and then, from place ``params``, the parameters. ``made``:
    whether the host made the extra state from y0.
    """

    def __init__(
        self,
        solve: Solve,
        ambient: Ambient,
        side: SideState,
        tape: Tape,
        made: bool,
        inputs: Sequence[Tensor],
        params: int,
    ):
        self._ts, self._tape, self._made = solve.ts, tape, made
        self._stepper = Stepper(solve, tape, ambient, side, inputs[0].device)
        self._start, self._params = tuple(inputs[:params]), tuple(inputs[params:])
        self._totals = [torch.zeros_like(p) for p in self._params]

    def plain(self, cotangents: Sequence[Tensor], _: Sequence[bool]) -> Sequence[Tensor]:
        """By replaying the tape, last step to first."""
        solution, *after = cotangents
        start = self._sweep(solution[1:], [torch.zeros_like(solution[0]), *after])
        if self._made:
            start = self._pull_first_extra(start)
        return [start[0] + solution[0], *start[1:], *self._totals]

    def differentiable(self, cotangents: Sequence[Tensor], needed: Sequence[bool]) -> Sequence[Tensor]:
        """The same as functions of the inputs and of the cotangents, for second derivatives: the chain of all steps."""
        gate = Gate()
        state = tuple(gate.through(x) for x in self._start)
        inputs = (*state, *self._params)
        if self._made:
            state = (*state, *self._stepper.first_extra(state[0]))
        outputs = self._chain(state)
        wanted = [x for x, need in zip(inputs, needed, strict=True) if need]
        pairs = [(x, c) for x, c in zip(outputs, cotangents, strict=True) if x.requires_grad]
        if not pairs:
            return [torch.zeros_like(x) for x in inputs]
        ends, pulled = zip(*pairs, strict=True)
        settings = {"create_graph": True, "allow_unused": True, "materialize_grads": True}
        with gate.closed():
            found = iter(torch.autograd.grad(ends, wanted, pulled, **settings))
        return [next(found) if need else x for x, need in zip(inputs, needed, strict=True)]

    def _chain(self, state: State) -> tuple[Tensor, ...]:
        """The solution and the extra state at the end, taken from ``state`` along the steps of the tape."""
        ys, q = [state[0]], 0
        for n, step in enumerate(self._tape.steps):
            after = self._stepper.take(n, state)
            if self._is_outer(n):
                self._check_leaves(n, *self._graph(n, state))
                self._check_end(n, state[0].detach(), after[0].detach())
            while q < len(self._tape.serving) and self._tape.serving[q] == n:
                t0, t1 = step.times[0], step.times[-1]
                ys.append(host.linear_interp(t0=t0, y0=state[0], t1=t1, y1=after[0], t=self._ts[q + 1]))
                q += 1
            state = after
        return (torch.stack(ys), *state[1:])

    def _sweep(self, grad_outputs: Tensor, end: list[Tensor]) -> list[Tensor]:
        """Pull the cotangents of the outputs after the first, and of the last state, back to the first state."""
        tape, device, last = self._tape, self._start[0].device, len(self._tape.serving)
        states = dict(zip(tape.kept, tape.states, strict=True))

        def load(state: State) -> State:
            return tuple(x.to(device) for x in state)

        for n, state in states_backward(states, len(tape.steps), tape.slots, load, self._stepper.take):
            first = bisect.bisect_left(tape.serving, n, hi=last)
            end = self._step(n, state, slice(first, last), grad_outputs[first:last], end)
            last = first
        return end

    def _step(self, n: int, state: State, outputs: slice, mu: Tensor, end: list[Tensor]) -> list[Tensor]:
        """Replay step n: from the cotangents of its outputs and of the state at its end to those of its start."""
        start, after = self._graph(n, state)
        if self._is_outer(n):
            self._check_leaves(n, start, after)
            self._check_end(n, state[0], after[0].detach())
        at_start, at_end = self._pull_outputs(n, outputs, mu) if len(mu) else (None, None)
        found = self._pull(after, end if at_end is None else [end[0] + at_end, *end[1:]], start)
        return found if at_start is None else [found[0] + at_start, *found[1:]]

    def _pull_outputs(self, n: int, outputs: slice, mu: Tensor) -> tuple[Tensor, Tensor]:
        """What the outputs in step n ask of y at its start and at its end: the host interpolates linearly."""
        t0, *_, t1 = self._tape.steps[n].times
        # One time at a time, in the dtypes of the host's arithmetic.
        times = self._ts[1:][outputs].unbind()
        before = torch.stack([(t1 - t) / (t1 - t0) for t in times]).to(mu)
        behind = torch.stack([(t - t0) / (t1 - t0) for t in times]).to(mu)
        return torch.tensordot(before, mu, 1), torch.tensordot(behind, mu, 1)

    def _graph(self, n: int, state: Sequence[Tensor]) -> tuple[list[Tensor], State]:
        """Leaves at the start of step n, and the state at its end as a function of them."""
        with torch.enable_grad():
            start = [x.detach().requires_grad_() for x in state]
            return start, self._stepper.take(n, tuple(start))

    def _pull(self, outputs: Sequence[Tensor], cotangents: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
        """The cotangents of ``inputs``; those of the parameters are added up."""
        pairs = [(x, c.to(x.dtype)) for x, c in zip(outputs, cotangents, strict=True)]
        with shared_graphs_refused("sdeint_adjoint", "sde", "aca"):
            return pull_into(self._totals, self._params, pairs, inputs)

    def _pull_first_extra(self, cotangents: list[Tensor]) -> list[Tensor]:
        """The cotangent of y0 alone, from those of y0 and of the extra state that the host made from it."""
        in_y, *in_extra = cotangents
        if not in_extra:
            return [in_y]
        with torch.enable_grad():
            y0 = self._start[0].detach().requires_grad_()
            extra = self._stepper.first_extra(y0)
        (through_extra,) = self._pull(extra, in_extra, (y0,))
        return [in_y + through_extra]

    def _is_outer(self, n: int) -> bool:
        """Whether step n is the first or the last."""
        return n in (0, len(self._tape.steps) - 1)

    def _check_leaves(self, n: int, start: Sequence[Tensor], after: State) -> None:
        """Raise if step n, from ``start`` to ``after``, depends on leaves besides its start and the parameters."""
        unknown = self._unknown_leaves(start, after)
        if unknown:
            # The host's own leaves, and those that sde makes as it is called, are others each time.
            again = {id(x) for x in self._unknown_leaves(*self._graph(n, start))}
            unknown = [x for x in unknown if id(x) in again]
        if unknown:
            raise GradientError(lost(unknown, "sdeint_adjoint", "sde"))

    def _unknown_leaves(self, start: Sequence[Tensor], after: State) -> list[Tensor]:
        known = (*start, *self._params)
        found = {id(leaf): leaf for x in after if x.requires_grad for leaf in unknown_leaves(x, known)}
        return list(found.values())

    def _check_end(self, n: int, start: Tensor, end: Tensor) -> None:
        """Raise if step n is the last and ends elsewhere than in the forward pass, by more than rounding."""
        if n == len(self._tape.steps) - 1:
            (taped,) = self._tape.end
            check_end(end, taped.reshape(-1), start, "sdeint_adjoint(sde, ...", "sde")
