"""The taped solve as one differentiable function: what back-propagation would hold, for second derivatives.

The sweep treats the taped states as constants, which is right for a gradient and wrong for the gradient of a gradient.
Here the accepted steps are taken again from y0, whole and under autograd.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steptape.torch._autograd.field import Field
from steptape.torch._hosts.tableau import Tableau
from steptape.torch._hosts.torchdiffeq import Solve
from steptape.torch._replay.host_step import step_sizes, whole_step
from steptape.torch._tape.tape import Tape, Timeline


def chain(solve: Solve, tape: Tape, timeline: Timeline, field: Field, y0: Tensor) -> Tensor:
    """The solution at all outputs, (len(t), *y0.shape), along the steps of the tape."""
    if solve.tableau.whole:
        return _by_whole_steps(solve, tape, timeline, field, y0)
    return _by_tableau(solve.tableau, tape, timeline, field, y0)


def _by_tableau(tableau: Tableau, tape: Tape, timeline: Timeline, field: Field, y0: Tensor) -> Tensor:
    sizes = timeline.sizes.to(y0.real.dtype)
    around = sizes[torch.tensor(tape.serving, dtype=torch.long, device=y0.device)]
    weights, _, of_start = (x.to(y0) for x in tableau.weights(timeline.places, timeline.spans, around))
    rows = tableau.rows.tolist()
    ys, y, slope = [y0], y0, None
    for n, h in enumerate(sizes):
        ahead = n + 1 < len(sizes) and not tape.fresh[n + 1]
        inside = [q for q, step in enumerate(tape.serving) if step == n]
        if slope is None:
            field.side.before(n, 0)
            t = timeline.stages[n, 0]
            slope = field.slope(t, y)
            field.check(slope, (t, y))
        k = [slope]
        for i in range(1, tableau.stages):
            if i == tableau.stages - 1 and tableau.last_at_end and not (ahead or inside):
                break
            field.side.before(n, i)
            k.append(field.slope(timeline.stages[n, i], y + h * _combined(rows[i], k)))
        slopes = torch.stack(k)
        ys += [of_start[q] * y + h * torch.tensordot(weights[q, : len(k)], slopes, 1) for q in inside]
        y = y + h * _combined(rows[-1], k)
        slope = k[-1] if ahead else None
    outside = [y0] * (len(tape.outputs) - len(tape.serving))
    return torch.stack(ys + outside)


def _by_whole_steps(solve: Solve, tape: Tape, timeline: Timeline, field: Field, y0: Tensor) -> Tensor:
    solver, sizes = solve.solver(y0), step_sizes(solve, timeline)
    ys, y = [y0], y0
    slopes: list[Tensor] = []
    for n, ((t0, t1), h) in enumerate(zip(timeline.stages, sizes, strict=True)):
        field.side.before(n, 0)
        outputs = [x for x, serving in zip(timeline.outputs, tape.serving, strict=True) if serving == n]
        known = [x for x in (t0, t1, h, y, *slopes) if isinstance(x, Tensor)]
        y, inside, slope, slopes = whole_step(solver, slopes, field, t0, t1, h, y, outputs)
        field.check(slope, known)
        ys += inside
    return torch.stack(ys)


def _combined(row: Sequence[float], k: Sequence[Tensor]) -> Tensor:
    terms = [a * slope for a, slope in zip(row, k, strict=False) if a]
    return torch.stack(terms).sum(0)
