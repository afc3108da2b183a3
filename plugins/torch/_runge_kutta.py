"""The adjoint of an explicit Runge–Kutta step, stage by stage.

It is the matching discrete one (Hu, arXiv 2402.15141, point 3), exact to rounding: with λ the cotangent of the step's
end and μ_q those of the outputs inside it,

    ℓ_i = h (b_i λ + Σ_q w_i(x_q) μ_q + Σ_j a_ji g_j),    g_i = (∂f/∂y)ᵀ ℓ_i,    i = s … 1,

the cotangent of the step's start is λ + Σ_q μ_q + Σ_i g_i, and the parameters gain Σ_i (∂f/∂θ)ᵀ ℓ_i. Autograd sees the
evaluations of f alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from steptape.torch._field import Field, Stage
from steptape.torch._sweep import Sweep
from steptape.torch._tableau import Tableau
from steptape.torch._tape import State, Tape, Timeline


class _Link(NamedTuple):
    """What a step leaves to the one before, whose last stage is its first: its cotangent, and its graph if built."""

    cotangent: Tensor
    stage: Stage | None


class RungeKuttaSweep(Sweep):
    """The sweep over the steps of a tableau.

    ``whole_steps``: build the graphs of all stages of a step at once, rather than take each stage twice to have one
    graph alive at a time.
    """

    def __init__(self, tableau: Tableau, tape: Tape, timeline: Timeline, field: Field, y0: Tensor, whole_steps: bool):
        super().__init__(tape, timeline, field, y0)
        self.tableau, self.whole_steps = tableau, whole_steps
        self.last = tableau.stages - 1
        # How many stages the end of a step needs: all, but for a last one that is evaluated there.
        self.to_end = tableau.stages - tableau.last_at_end
        self.sizes = timeline.sizes.tolist()
        weights, slopes = tableau.weights(self.places.double())
        self.weights, self.weight_slopes = weights.to(y0), slopes.to(y0)

        # Of the step at hand: k_i, and g_i with λ below. The table by rows makes the places of the stages of the one,
        # and by columns their cotangents of the other.
        self.k = y0.new_zeros(tableau.stages, y0.numel())
        self.g = y0.new_zeros(tableau.stages + 1, y0.numel())
        rows = tableau.rows.to(y0)
        self.by_row = [(self.k[:i].T, rows[i, :i]) for i in range(tableau.stages)]
        self.by_column = [(self.g[i + 1 :].T, rows[i + 1 :, i].contiguous()) for i in range(tableau.stages)]
        self.end_row = rows[-1, : self.to_end]

    def _step(
        self, n: int, state: State, outputs: slice, mu: Tensor, end: Tensor, link: _Link | None
    ) -> tuple[Tensor, _Link | None]:
        """Replay step n: from the cotangents of its outputs, its end and its last stage to that of its start."""
        # A last stage at the end of the step is the next step's first, or of use to outputs inside the step alone.
        own = self.to_end if link or not len(mu) else self.last + 1
        stages = self._slopes(n, state, own, graphs=self.whole_steps)
        if own == self.last:
            stages[own] = shared = link.stage if link else None
            self.k[own] = shared.slope.reshape(-1) if shared else 0
        inside = self.weights[outputs].T @ mu if len(mu) else None
        self.g.zero_()
        self.g[-1] = end
        left, asked = None, []
        for i in range(self.last, -1, -1):
            cotangent = torch.mv(*self.by_column[i]) if inside is None else torch.addmv(inside[i], *self.by_column[i])
            cotangent.mul_(self.sizes[n])
            if self.moves:
                asked.append(cotangent)
            if link and i == self.last:
                cotangent = cotangent + link.cotangent
            if i == 0 and not self.tape.fresh[n]:
                left = _Link(cotangent, stages[0])
            elif i < own or link:
                stage = stages[i] or self._stage(n, i, state)
                self.g[i], in_time = self.field.pull(stage, cotangent)
                if in_time is not None:
                    self.cotangents.stages[n, i] = in_time
        if self.moves:
            self._pull_places(n, outputs, mu, torch.stack(asked[::-1]))
        start = self.g.sum(0)
        return start + mu.sum(0) if len(mu) else start, left

    def _advance(self, n: int, state: State) -> State:
        """The state at the end of step n."""
        self._slopes(n, state, self.to_end, graphs=False)
        y = self._end(n, state)
        carries = not self.tableau.last_at_end and self.tableau.chained and not self.tape.fresh[n + 1]
        return State(y, (self.k[-1].clone(),) if carries else ())

    def _end(self, n: int, state: State) -> Tensor:
        return torch.addmv(state.y, self.k[: self.to_end].T, self.end_row, alpha=self.sizes[n])

    def _slopes(self, n: int, state: State, count: int, graphs: bool) -> list[Stage | None]:
        """Take the first ``count`` stages of step n again: their slopes into ``k``, and their graphs if asked for."""
        stages: list[Stage | None] = [None] * len(self.k)
        for i in range(count):
            if i == 0 and state.slopes:
                (self.k[0],) = state.slopes
            elif graphs:
                stages[i] = self._stage(n, i, state)
            else:
                self.field.draws.before(n, i)
                self.k[i] = self.field.value(self.times[n, i], self._place(n, i, state))
        return stages

    def _stage(self, n: int, i: int, state: State) -> Stage:
        self.field.draws.before(n, i)
        stage = self.field.evaluate(self.times[n, i], self._place(n, i, state))
        self.k[i] = stage.slope.reshape(-1)
        return stage

    def _place(self, n: int, i: int, state: State) -> Tensor:
        return torch.addmv(state.y, *self.by_row[i], alpha=self.sizes[n]) if i else state.y

    def _pull_places(self, n: int, outputs: slice, mu: Tensor, asked: Tensor) -> None:
        """The cotangents of step n's size and of the places of the outputs inside it."""
        # A step is linear in h k: what it asks of its slopes, it asks of h in proportion.
        self.cotangents.sizes[n] = (asked.conj() * self.k).sum().real / self.sizes[n]
        along = self.weight_slopes[outputs] @ self.k * self.sizes[n]
        self.cotangents.places[outputs] = (mu.conj() * along).sum(1).real
