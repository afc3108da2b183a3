"""The backward pass of the quadrature adjoint: from output to output, and what else it gives a gradient in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from steptape._errors import GradientError, UnsupportedError
from steptape.compat._torch import transforms_active
from steptape.torch._autograd.field import Field
from steptape.torch._autograd.graph import Parameters
from steptape.torch._autograd.surroundings import Surroundings
from steptape.torch._continuous.dense import DenseOutput
from steptape.torch._continuous.quadrature import AdjointField, of_each
from steptape.torch._continuous.solver import BackwardSolver
from steptape.torch._hosts.torchdiffeq import OdeSolve
from steptape.torch._replay.runge_kutta import RungeKuttaSweep
from steptape.torch._tape.tape import OdeTape


def check_supported(points: Tensor) -> None:
    """Raise where the backward solve would give no gradient; ``points``: step_t and jump_t of the forward solve."""
    call = "odeint_adjoint(..., adjoint_method='quadrature')"
    if points.requires_grad:
        raise UnsupportedError(
            f"{call}: step_t or jump_t require a gradient, which a continuous adjoint does not give. Detach them, or "
            "use adjoint_method='aca'."
        )
    if transforms_active():
        raise UnsupportedError(
            f"{call} inside a transform of torch.func, which sees no backward pass of ours. Use adjoint_method='aca', "
            "or torch.autograd.grad."
        )


class QuadratureBack:
    """One backward pass: from the cotangent of the solution to those of y0, t, the points and the parameters."""

    graphs = None

    def __init__(
        self,
        solver: BackwardSolver,
        callbacks: dict[str, Callable[[Tensor, Tensor, Tensor], Any]],
        solve: OdeSolve,
        surroundings: Surroundings,
        tape: OdeTape,
        given: Sequence[Tensor],
        parameters: Parameters,
        needed: Sequence[bool],
    ):
        self._callbacks = callbacks
        self._solver, self._solve, self._tape, self._given, self._needed = solver, solve, tape, given, needed
        self._field = Field(solve.vector_field, surroundings, tape.notes, given[0].shape, parameters, in_time=False)
        self._surroundings = surroundings
        self._dense = DenseOutput(tape.nodes.tolist(), self._interpolants())

    def differentiable(self, cotangents: Sequence[Tensor]) -> NoReturn:
        """Refused."""
        raise UnsupportedError(
            "odeint_adjoint(..., adjoint_method='quadrature'): second derivatives (create_graph=True). The backward "
            "solve is not differentiated in its turn. Use adjoint_method='aca'."
        )

    def plain(self, cotangents: Sequence[Tensor]) -> list[Tensor | None]:
        """By solving for a, output to output."""
        if not self._tape.settled:
            raise GradientError(
                "odeint_adjoint(..., adjoint_method='quadrature'): func drew random numbers (dropout?) or changed its "
                "buffers, so the vector field of the backward solve would be another one. Use adjoint_method='aca', "
                "which takes the very evaluations of the solve again."
            )
        (y0, t, points), parameters, batch = self._given, self._field.parameters, self._field.parameters.batch
        grad_solution = cotangents[0].movedim(len(batch), 0)
        times = torch.cat([t[:1].to(self._tape.outputs), self._tape.outputs])
        in_t = t.new_zeros(*t.shape, *batch)
        adjoint = AdjointField(self._field, self._dense, self._solver, self._callbacks)
        a, first_step = parameters.zeros(y0), self._tape.sizes[-1:].sum().item()
        lost = torch.zeros(batch, dtype=torch.bool, device=y0.device)
        for i in range(len(times) - 1, 0, -1):
            a = a + grad_solution[i]
            if self._needed[1] and self._solve.event_fn is None:
                in_t[i] = self._dot(grad_solution[i], self._slope(times[i]))
            scale = a.reshape((*batch, -1)).abs().amax(-1)
            lost = lost | ~scale.isfinite()
            moving = (scale > 0) & ~lost
            if moving.any():
                adjoint.scale = scale.where(moving, 1)
                scaled = torch.where(of_each(moving, a), a / of_each(adjoint.scale, a), 0)
                a = self._solver.run(adjoint, scaled, -times[i], -times[i - 1], first_step)
                a = of_each(adjoint.scale, a) * a
                first_step = adjoint.proposed
        if len(times) > 1:
            in_t[0] = -self._dot(a, self._first_slope(times[0]))
        grads = [a + grad_solution[0], in_t.movedim(-1, 0), parameters.zeros(points), *parameters.found]
        if not lost.any():
            return grads
        return [None if x is None else x.masked_fill(of_each(lost, x), math.nan) for x in grads]

    def _dot(self, a: Tensor, b: Tensor) -> Tensor:
        return (a.conj() * b).reshape((*self._field.parameters.batch, -1)).sum(-1).real

    def _slope(self, t: Tensor) -> Tensor:
        return self._field.value(t.to(self._given[0].real.dtype), self._dense(t.item()))

    def _first_slope(self, t: Tensor) -> Tensor:
        """f at the start, which must be what the forward solve took it for, also where a graph is built."""
        start = self._field.evaluate(t.to(self._given[0].real.dtype), self._dense(t.item()), first=True)
        slope, taped = start.slope.detach(), self._dense.slope(t.item()).view(self._given[0].shape)
        near = max(1e-3, 4 * torch.finfo(slope.dtype).eps)
        if not torch.allclose(slope, taped, rtol=near, atol=near * taped.abs().max().item(), equal_nan=True):
            raise GradientError(
                "odeint_adjoint(func, ..., adjoint_method='quadrature'): func returned another value in the backward "
                "pass than in the forward pass for the same t and y. Make func a function of its arguments and "
                "parameters alone."
            )
        return slope

    def _interpolants(self) -> Iterator[Tensor]:
        """Those of the steps, the last one first: from the tape, or from its steps taken again."""
        solve, tape, y0 = self._solve, self._tape, self._given[0]
        if tape.interpolants:
            yield from (piece.to(y0.device) for piece in reversed(tape.interpolants))
            return
        tableau, (_, timeline) = solve.tableau, solve.start(tape, self._given, self._surroundings)
        assert tableau is not None
        sweep = RungeKuttaSweep(tableau, tape, timeline, self._field, y0, whole_steps=False)
        for n, state in sweep.steps_backward():
            piece = sweep.interpolant(n, state)
            sweep.check(n, state)
            sweep.following = state
            if n == 0:
                sweep.ends.check(self._field.parameters)
            yield piece
