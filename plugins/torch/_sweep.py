"""The adaptive checkpoint adjoint of an explicit Runge–Kutta solve: replay the accepted steps, last to first.

Each accepted step is taken again from its taped state, stage by stage under autograd, with its known size: no error
estimate, no rejected try. Its adjoint is the matching discrete one (Hu, arXiv 2402.15141, point 3), exact to rounding:
with λ the cotangent of the step's end and μ_q those of the outputs inside it,

    ℓ_i = h (b_i λ + Σ_q w_i(x_q) μ_q + Σ_j a_ji g_j),    g_i = (∂f/∂y)ᵀ ℓ_i,    i = s … 1,

the cotangent of the step's start is λ + Σ_q μ_q + Σ_i g_i, and the parameters gain Σ_i (∂f/∂θ)ᵀ ℓ_i.
"""

from __future__ import annotations

import bisect
from typing import NamedTuple

import torch
from torch import Tensor

from steptape.torch._field import Field, Stage
from steptape.torch._tableau import Tableau
from steptape.torch._torchdiffeq import Tape, Timeline


class Cotangents(NamedTuple):
    """Of the initial state, like y0, and of a timeline's stages, sizes and places."""

    y0: Tensor
    stages: Tensor
    sizes: Tensor
    places: Tensor


class _Link(NamedTuple):
    """What a step leaves to the one before, whose last stage is its first: that stage's cotangent and evaluation.

    ``stage`` is None where the step before has to evaluate it, not being at the end of the step.
    """

    cotangent: Tensor
    stage: Stage | None


class Sweep:
    """The backward pass over one tape that starts from ``y0``; ``field`` gathers the cotangents of the parameters."""

    def __init__(self, tableau: Tableau, tape: Tape, timeline: Timeline, field: Field, y0: Tensor):
        self.tableau, self.tape, self.field = tableau, tape, field
        self.moves = timeline.moves
        self.times = timeline.stages.detach()
        self.sizes = timeline.sizes.tolist()
        weights, slopes = tableau.weights(timeline.places.detach().double())
        self.weights, self.weight_slopes = weights.to(y0), slopes.to(y0)
        self.cotangents = Cotangents(*map(torch.zeros_like, (y0, *timeline)))

        # Of the step at hand: k_i, and g_i with λ below. The table by rows makes the places of the stages of the one,
        # and by columns their cotangents of the other.
        self.k = y0.new_zeros(tableau.stages, y0.numel())
        self.g = y0.new_zeros(tableau.stages + 1, y0.numel())
        rows = tableau.rows.to(y0)
        self.by_row = [(self.k[:i].T, rows[i, :i]) for i in range(tableau.stages)]
        self.by_column = [(self.g[i + 1 :].T, rows[i + 1 :, i].contiguous()) for i in range(tableau.stages)]

    def run(self, grad_outputs: Tensor) -> Cotangents:
        """Pull the cotangents of the outputs after the first, (len(t) - 1, numel), back to the start of the tape."""
        end, link = grad_outputs.new_zeros(grad_outputs.shape[1]), None
        last = len(grad_outputs)
        for n in reversed(range(len(self.tape.states))):
            first = bisect.bisect_left(self.tape.serving, n, hi=last)
            end, link = self._step(n, slice(first, last), grad_outputs[first:last], end, link)
            last = first
        return self.cotangents._replace(y0=end.view_as(self.cotangents.y0))

    def _step(self, n: int, outputs: slice, mu: Tensor, end: Tensor, link: _Link | None) -> tuple[Tensor, _Link | None]:
        """Replay step n: from the cotangents of its outputs, its end and its last stage to that of its start."""
        h = self.sizes[n]
        stages = self._replay(n, len(mu) > 0, link)
        inside = self.weights[outputs].T @ mu if len(mu) else None
        self.g.zero_()
        self.g[-1] = end
        left, asked = None, []
        for i in reversed(range(len(stages))):
            stage = stages[i]
            if inside is None:
                cotangent = torch.mv(*self.by_column[i]).mul_(h)
            else:
                cotangent = torch.addmv(inside[i], *self.by_column[i]).mul_(h)
            asked.append(cotangent)
            if link and i == len(stages) - 1:
                cotangent = cotangent + link.cotangent
            if i == 0 and not self.tape.fresh[n]:
                left = _Link(cotangent, stage)
            elif stage is not None:
                self.g[i], in_time = self.field.pull(stage, cotangent)
                if in_time is not None:
                    self.cotangents.stages[n, i] = in_time
        if self.moves:
            self._pull_places(n, outputs, mu, torch.stack(asked[::-1]))
        start = self.g.sum(0)
        return start + mu.sum(0) if len(mu) else start, left

    def _replay(self, n: int, inside: bool, link: _Link | None) -> list[Stage | None]:
        """Step n again from its taped state: its stages, with slopes in ``k``, zero where not evaluated."""
        y = self.tape.states[n].reshape(-1)
        stages: list[Stage | None] = [None] * len(self.k)
        for i in range(len(stages)):
            if i == 0 and self.tape.slopes and not self.tape.fresh[n]:
                self.k[0] = self.tape.slopes[n].reshape(-1)
                continue
            stage = None
            if i == len(stages) - 1 and self.tableau.last_at_end:
                if link is None and not inside:
                    self.k[i] = 0
                    continue
                stage = link.stage if link else None
            if stage is None:
                place = torch.addmv(y, *self.by_row[i], alpha=self.sizes[n]) if i else y
                stage = self.field.evaluate(self.times[n, i], place)
            stages[i] = stage
            self.k[i] = stage.slope.reshape(-1)
        return stages

    def _pull_places(self, n: int, outputs: slice, mu: Tensor, asked: Tensor) -> None:
        """The cotangents of step n's size and of the places of the outputs inside it."""
        # A step is linear in h k: what it asks of its slopes, it asks of h in proportion.
        self.cotangents.sizes[n] = (asked.conj() * self.k).sum().real / self.sizes[n]
        along = self.weight_slopes[outputs] @ self.k * self.sizes[n]
        self.cotangents.places[outputs] = (mu.conj() * along).sum(1).real
