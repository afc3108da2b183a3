"""The quadrature adjoint: the gradient in the parameters is an integral, and no ODE.

Backward in time the host's solver integrates the cotangent of the state alone,

    da/dt = -(∂f/∂y)ᵀ a,    with jumps at the outputs,

with y(t) read from the dense output of the forward solve; y is not integrated in reverse, and the parameters are in no
state and no error norm. Their gradient is ∫ aᵀ ∂f/∂θ dt over each accepted step: by the weights b_i of the solver's own
scheme, at the stages it evaluates anyway, which is a quadrature of its order; or by Gauss–Legendre. No error norm sees
how ∂f/∂θ varies along the way, but the forward solve did: no step is longer than the forward ones there. a is linear in
the cotangent of the loss, so it is solved at scale 1, and tolerances do not depend on the scale of the loss.

Source: Hu, arXiv 2402.15141, points 1 and 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from steptape.torch._autograd.field import Field
from steptape.torch._autograd.graph import is_dense
from steptape.torch._continuous.dense import DenseOutput
from steptape.torch._continuous.solver import BackwardSolver


class AdjointField:
    """da/ds = (∂f/∂y)ᵀ a in s = -t, a func for the host's solvers that adds up the parameters' integral on the way.

    A stage's share is taken where the stage is evaluated, and kept if the step is accepted. The first stage of a step
    is the last evaluation before its first try, so its share waits. Gauss–Legendre comes after the step. ``callbacks``:
    the user's, by name, who are told a at its own ``scale``, each of a batch in its turn. ``step``: the start and the
    size of the last accepted step.
    """

    def __init__(
        self,
        field: Field,
        dense: DenseOutput,
        solver: BackwardSolver,
        callbacks: dict[str, Callable[[Tensor, Tensor, Tensor], Any]],
    ):
        self._field, self._dense, self._callbacks = field, dense, callbacks
        self._parameters = field.parameters
        self._params = field.parameters.params
        b = solver.tableau.rows[-1]
        self._weights = (b if solver.nodes is None else 0 * b).tolist()
        self.is_batch = bool(self._parameters.batch)
        self._nodes = [] if solver.nodes is None else gauss_legendre(solver.nodes)
        self._first: Sequence[Tensor | None] = ()
        self._latest: Sequence[Tensor | None] = ()
        self._try = [self._parameters.zeros(p) for p in self._params]
        self._stage = 0
        self.step = 0.0, 0.0
        self.scale = torch.ones(())
        self.proposed = 0.0

    def __call__(self, s: Tensor, a: Tensor) -> Tensor:
        # Stage 0 stands for all that is evaluated between two steps.
        first, last = self._stage == 0, self._stage == len(self._weights) - 1
        weight = 0.0 if first else self._weights[self._stage]
        if first:
            # On the side of the step that begins here, where f may jump.
            s = torch.nextafter(s, s + 1)
        in_y, in_params = self._pull(s, a, weight != 0 or ((first or last) and self._weights[0] != 0))
        _add(self._try, in_params, weight)
        self._latest = in_params
        self._stage += not first
        return in_y

    def _pull(self, s: Tensor, a: Tensor, with_params: bool, with_y: bool = True) -> tuple[Tensor, list[Tensor | None]]:
        """(∂f/∂y)ᵀ a and (∂f/∂θ)ᵀ a at -s and y(-s), as far as asked for."""
        stage = self._field.evaluate(-s, self._dense(-s.item()))
        inputs = ((stage.y,) if with_y else ()) + (tuple(self._params) if with_params else ())
        grads: list[Tensor | None] = [None] * len(inputs)
        if stage.slope.requires_grad:
            grads = list(map(_coo, self._parameters.taken((stage.slope,), (a,), inputs)))
        in_y = grads.pop(0) if with_y else None
        if with_params:
            self._parameters.use(grads)
        return torch.zeros_like(a) if in_y is None else in_y, grads

    def reach(self, s: float) -> float:
        """How long a step from s may be: as one of the solve there."""
        return self._dense.reach(-s)

    def _tell(self, name: str, s: Tensor, a: Tensor, h: Tensor) -> None:
        if name in self._callbacks:
            a = of_each(self.scale, a) * a
            for member in a.unbind() if self.is_batch else (a,):
                self._callbacks[name](s, member, h)

    def callback_step(self, s: Tensor, a: Tensor, h: Tensor) -> None:
        self._tell("callback_step", s, a, h)
        if self._stage == 0:
            self._first = self._latest
            self._dense.forget_after(-s.item())
        self.proposed = h.item()
        self._stage = 1

    def callback_accept_step(self, s: Tensor, a: Tensor, h: Tensor) -> None:
        self._tell("callback_accept_step", s, a, h)
        self.step = s.item(), h.item()
        _add(self._try, self._first, self._weights[0])
        self._add_scaled(self._try, h.item())
        self._begin_try()
        self._stage = 0

    def callback_reject_step(self, s: Tensor, a: Tensor, h: Tensor) -> None:
        self._tell("callback_reject_step", s, a, h)
        self._begin_try()

    def _begin_try(self) -> None:
        for share in self._try:
            share.zero_()

    def note_interpolant(self, coefficients: Sequence[Tensor]) -> None:
        """Gauss–Legendre over the step just accepted, with a read from its dense output, given by powers."""
        start, size = self.step
        for x, weight in self._nodes:
            a = torch.stack([c * x**power for power, c in enumerate(coefficients)]).sum(0)
            s = a.real.new_tensor(start + x * size)
            _, in_params = self._pull(s, a, with_params=True, with_y=False)
            self._add_scaled(in_params, weight * size)

    def _add_scaled(self, shares: Sequence[Tensor | None], weight: float) -> None:
        scaled = [None if x is None else of_each(self.scale, x) * x for x in shares]
        _add(self._parameters.cotangents, scaled, weight)


def _add(totals: list[Tensor], shares: Sequence[Tensor | None], weight: float) -> None:
    if weight:
        for i, share in enumerate(shares):
            if share is not None:
                totals[i] = totals[i].add_(share, alpha=weight) if is_dense(totals[i]) else weight * share + totals[i]


def _coo(x: Tensor | None) -> Tensor | None:
    """A sparse tensor of the layout that takes the arithmetic of a quadrature; a dense one as it is."""
    return x if x is None or is_dense(x) else x.to_sparse_coo()


def of_each(members: Tensor, x: Tensor) -> Tensor:
    """A number for each member of a batch, to multiply ``x`` with."""
    return members.view((*members.shape, *[1] * (x.ndim - members.ndim)))


def gauss_legendre(count: int) -> list[tuple[float, float]]:
    """The nodes in [0, 1] and the weights of the quadrature that is exact up to degree 2 count - 1."""
    nodes, weights = leggauss(count)
    return list(zip(((nodes + 1) / 2).tolist(), (weights / 2).tolist(), strict=True))
