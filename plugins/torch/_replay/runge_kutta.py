"""The adjoint of an explicit Runge–Kutta step, stage by stage.

It is the matching discrete one (Hu, arXiv 2402.15141, point 3), exact to rounding: with λ the cotangent of the step's
end and μ_q those of the outputs inside it,

    ℓ_i = h (b_i λ + Σ_q w_i(x_q) μ_q + Σ_j a_ji g_j),    g_i = (∂f/∂y)ᵀ ℓ_i,    i = s … 1,

the cotangent of the step's start is λ + Σ_q μ_q + Σ_i g_i, and the parameters gain Σ_i (∂f/∂θ)ᵀ ℓ_i. Autograd sees the
evaluations of f alone. The sums are made as back-propagation makes them: term by term, that of the latest use first.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from steptape.torch._autograd.field import Field, Stage
from steptape.torch._autograd.graph import check_hooks
from steptape.torch._hosts.base import Timeline
from steptape.torch._hosts.tableau import Tableau
from steptape.torch._replay.outputs import outputs_of
from steptape.torch._replay.sweep import Sweep
from steptape.torch._tape.graphs import Graphs
from steptape.torch._tape.tape import OdeTape, State


class Link(NamedTuple):
    """What a step leaves to the one before, whose last stage is its first: its cotangent, and its graph if built."""

    cotangent: Tensor
    stage: Stage | None


class After(NamedTuple):
    """What there is after a step: λ, the cotangent of its end, and what the next one left."""

    end: Tensor
    link: Link | None


class RungeKuttaSweep(Sweep):
    """The sweep over the steps of a tableau.

    ``whole_steps``: build the graphs of all stages of a step at once, rather than take each stage twice to have one
    graph alive at a time. ``graphs``: of the steps that need not be taken again.
    """

    tape: OdeTape

    def __init__(
        self,
        tableau: Tableau,
        tape: OdeTape,
        timeline: Timeline,
        field: Field,
        y0: Tensor,
        whole_steps: bool,
        graphs: Graphs | None = None,
    ):
        super().__init__(tape, timeline, y0.device, field.parameters)
        self.graphs = graphs or Graphs()
        self.tableau, self.field, self.whole_steps = tableau, field, whole_steps
        self.times = timeline.stages.detach()
        self.last = tableau.stages - 1
        # How many stages the end of a step needs: all, but for a last one that is evaluated there.
        self.to_end = tableau.stages - tableau.last_at_end
        self.sizes = timeline.sizes.tolist()
        sizes = timeline.sizes.detach()[torch.tensor(tape.step_of_output, dtype=torch.long, device=y0.device)]
        weights, slopes, of_start = tableau.weights(timeline.positions.detach(), timeline.spans.detach(), sizes)
        self.weights, self.weight_slopes, self.of_start = weights.to(y0), slopes.to(y0.real), of_start.to(y0)

        # Of the step at hand: k_i, and ℓ_i as far as it is summed up; for a batch of cotangents all of theirs. Where
        # every graph of a step is built before the first one is pulled, ℓ_i replaces k_i.
        self.batch = field.parameters.batch
        sums = y0.new_zeros(1 + tableau.stages, *self.batch, *y0.shape)
        self.start, *self.each = sums.unbind()
        self.start_and_sums = sums.view(len(sums), self.start.numel())
        self.sums = self.start_and_sums[1:]
        shared = whole_steps and not self.batch
        self.k = self.sums if shared else y0.new_zeros(tableau.stages, y0.numel())
        self.slopes = self.k.view(len(self.k), *y0.shape).unbind()
        a = tableau.rows.to(y0)
        self.by_row = [(self.k[:i].T, a[i, :i]) for i in range(tableau.stages)]
        self.to_the_end = (self.k[: self.to_end].T, a[-1, : self.to_end])
        # The table times h, as the host rounds it, by rows that each stand upright; of a step's start, all take one.
        self.table, scaled = a, a.new_ones(len(a), 1 + len(self.k))
        self.scaled = scaled[:, 1 : 1 + a.shape[1]]
        upright = scaled.view(*scaled.shape, *[1] * (sums.ndim - 1))
        self.by_column = [(sums[: i + 1], upright[i, : i + 1]) for i in range(len(a))]
        self.outputs = outputs_of(tableau, timeline, y0, self.weights, self.of_start)

    def run(self, at_outputs: Tensor, at_end: list[Tensor]) -> list[Tensor]:
        """The same, by flat states and flat batches of them."""
        (y,) = at_end
        (flat,) = super().run(at_outputs.reshape(len(at_outputs), y.numel()), [y.reshape(-1)])
        return [flat.view_as(y)]

    def _begun(self, at_end: list[Tensor]) -> After:
        return After(at_end[0], None)

    def _ended(self, before: After) -> list[Tensor]:
        return [before.end]

    def _step(self, n: int, state: State, outputs: slice, mu: Tensor, after: After) -> After:
        end, link = after
        self.field.look_at(n, self.tape.length, self.to_end)
        # A last stage at the end of the step is the next step's first, or of use to outputs inside the step alone.
        own = self.to_end if link or not len(mu) else self.last + 1
        kept = self.graphs.take_out(n, self.field.parameters.retains)
        if kept is None:
            stages = self._slopes(n, state, own, graphs=self.whole_steps)
            self.check(n, state)
        else:
            stages = [evaluation.stage for evaluation in kept]
            check_hooks((stage.y for stage in stages if stage), self.field.parameters.call)
            self.field.check_kept(stages)
        if kept is None and link and own == self.last:
            stages[own] = link.stage
        handed_on = not self.tape.evaluates_first_stage[n]
        carried = self.k[0].clone() if self.moves and stages[0] is None else self.k[0]
        torch.mul(self.table, self.sizes[n], out=self.scaled)
        if len(mu):
            start, end = self.outputs.pull(outputs, mu, self.sizes[n], end, self.sums)
            self.start.copy_(start.view_as(self.start))
        else:
            self.start_and_sums.zero_()
        if link:
            self.each[-1].add_(link.cotangent)
        end = end.view_as(self.start)
        if not self.tableau.last_at_end:
            self._pull_place(len(self.k), end)
        for i in range(self.last, handed_on - 1, -1):
            in_y = end
            if link or i != own:
                # A copy, since hooks in func may keep it.
                stage, cotangent = stages[i] or self._again(n, i, state, i < own), self.each[i].clone()
                if self.moves:
                    asked = cotangent - link.cotangent if link and i == self.last else cotangent
                    self._pull_places(n, i, outputs, mu, asked, stage.slope.reshape(-1))
                in_y, in_t = self.field.pull(stage, cotangent)
                if i == self.to_end:
                    in_y = end + in_y
                if in_t is not None:
                    self.cotangents.stages[n, i] = in_t
            self._pull_place(i, in_y)
        start = self.start.flatten().clone()
        if not handed_on:
            return After(start, None)
        if self.moves:
            first = carried if stages[0] is None else stages[0].slope.reshape(-1)
            self._pull_places(n, 0, outputs, mu, self.each[0], first)
        return After(start, Link(self.each[0].clone(), stages[0]))

    def _pull_place(self, i: int, cotangent: Tensor) -> None:
        """Add the cotangent of where stage i is evaluated to those of the step's start and of the slopes before it."""
        sums, weights = self.by_column[i]
        # In two roundings, as back-propagation makes them.
        sums += weights * cotangent

    def check(self, n: int, state: State) -> None:
        """Hold the step against the state that follows, or at the end of the solve against what the tape says of it."""
        if n < len(self.sizes) - 1:
            self.hold(n, state[0], self._end(n, state), ())
        else:
            start = self.of_start[-1] * state[0]
            output = torch.addmv(start, self.k.T, self.weights[-1], alpha=self.sizes[n])
            self.hold(n, state[0], output, (output,))

    def advance(self, n: int, state: State) -> State:
        """The state at the end of step n."""
        self._slopes(n, state, self.to_end, graphs=False)
        carries = not self.tableau.last_at_end and not self.tape.evaluates_first_stage[n + 1]
        return (self._end(n, state), self.k[self.last].clone()) if carries else (self._end(n, state),)

    def _end(self, n: int, state: State) -> Tensor:
        """The end of the step whose slopes are at hand."""
        return torch.addmv(state[0], *self.to_the_end, alpha=self.sizes[n])

    def interpolant(self, n: int, state: State) -> Tensor:
        """The dense output of step n: y by powers of the relative place in the step, (degree + 1, numel)."""
        self._slopes(n, state, self.tableau.stages, graphs=False)
        return torch.cat([state[0][None], self.sizes[n] * self.tableau.dense.to(state[0]) @ self.k])

    def _slopes(self, n: int, state: State, count: int, graphs: bool) -> list[Stage | None]:
        """Take the first ``count`` stages of step n again: their slopes, and their graphs if asked for."""
        stages: list[Stage | None] = [None] * len(self.k)
        for i in range(count):
            if i == 0 and len(state) > 1:
                self.k[0] = state[1]
            elif graphs:
                stages[i] = stage = self._stage(n, i, state)
                self.slopes[i].copy_(stage.slope)
            else:
                self.field.side.before(n, i)
                self.slopes[i].copy_(self.field.value(self.times[n, i], self._place(n, i, state)))
        return stages

    def _stage(self, n: int, i: int, state: State) -> Stage:
        self.field.side.before(n, i)
        return self.field.evaluate(self.times[n, i], self._place(n, i, state), first=n == i == 0)

    def _again(self, n: int, i: int, state: State, is_known: bool) -> Stage:
        """A stage with its graph, whose slope is the same as without one, if that ``is_known``."""
        stage = self._stage(n, i, state)
        if is_known:
            y, h = state[0], self.sizes[n]
            self.ends.note(y + h * stage.slope.detach().reshape(-1), y + h * self.k[i], y)
        return stage

    def _place(self, n: int, i: int, state: State) -> Tensor:
        return torch.addmv(state[0], *self.by_row[i], alpha=self.sizes[n]) if i else state[0]

    def _pull_places(self, n: int, i: int, outputs: slice, mu: Tensor, cotangent: Tensor, k: Tensor) -> None:
        """What step n's size, and the places of the outputs inside it, gain by its stage i."""
        h = self.sizes[n]
        # A step is linear in h k: what it asks of its slopes, it asks of h in proportion.
        asked, mu = cotangent.view(*self.batch, -1), mu.view(len(mu), *self.batch, len(k))
        self.cotangents.sizes[n] += (asked.conj() * k).sum(-1).real / h
        slopes = self.weight_slopes[outputs, i].view(-1, *[1] * len(self.batch))
        self.cotangents.positions[outputs] += (mu.conj() @ k).real * slopes * h
