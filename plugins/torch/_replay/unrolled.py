"""The taped solve as one differentiable function: what back-propagation would hold, for second derivatives.

The sweep treats the taped states as constants, which is right for a gradient and wrong for the gradient of a gradient.
Here the accepted steps are taken again from the start, whole and under autograd.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steptape.compat._torch import outside_transforms
from steptape.torch._autograd.field import Field
from steptape.torch._autograd.graph import Parameters
from steptape.torch._autograd.leaves import LeafCheck, is_looked_at
from steptape.torch._autograd.surroundings import Surroundings
from steptape.torch._hosts.base import HostSteps, Solve, Timeline
from steptape.torch._hosts.tableau import Tableau
from steptape.torch._tape.tape import Tape


def unrolled(
    solve: Solve,
    tape: Tape,
    given: Sequence[Tensor],
    parameters: Parameters,
    surroundings: Surroundings,
    count: int,
    checks: bool = True,
) -> tuple[Tensor, ...]:
    """The solution at its ``count`` outputs, (count, *y0.shape), and the state at the end, along the steps of the tape.

    ``checks``: whether to look at what the steps depend on.
    """
    with parameters.in_place():
        start, timeline = solve.start(tape, given, surroundings)
    if not tape.length:
        return (torch.stack([start[0]] * count), *start[1:])
    if solve.tableau is None:
        steps = solve.host_steps(tape, timeline, given, parameters, surroundings)
        return _by_host_steps(steps, tape, start, parameters if checks else None)
    y0 = start[0]
    field = Field(solve.vector_field, surroundings, tape.notes, y0.shape, parameters, in_time=False, checks=checks)
    return (_by_tableau(solve.tableau, tape, timeline, field, y0),)


def _by_host_steps(
    steps: HostSteps, tape: Tape, state: Sequence[Tensor], parameters: Parameters | None
) -> tuple[Tensor, ...]:
    ys, check_leaves = [state[0]], None if parameters is None else LeafCheck(parameters)
    for n in range(tape.length):
        outputs = _outputs_of(tape, n)
        step = (n, state, steps.times(n, outputs), outputs)
        end, inside = steps.take(*step)
        if check_leaves and is_looked_at(n, tape.length):
            check_leaves(end, (*state, *step[2]), functools.partial(_end_of, steps, *step), first=n == 0)
        ys += inside
        state = end
    return (torch.stack(ys), *state[1:])


def _end_of(steps: HostSteps, *step: Any) -> Sequence[Tensor]:
    return steps.take(*step)[0]


def _by_tableau(tableau: Tableau, tape: Any, timeline: Timeline, field: Field, y0: Tensor) -> Tensor:
    sizes = timeline.sizes.to(y0.real.dtype)
    around = sizes[torch.tensor(tape.step_of_output, dtype=torch.long, device=y0.device)]
    weights, _, of_start = (x.to(y0) for x in tableau.weights(timeline.positions, timeline.spans, around))
    with outside_transforms():
        rows = tableau.rows.tolist()
    ys, y, slope = [y0], y0, None
    for n, h in enumerate(sizes):
        ahead = n + 1 < len(sizes) and not tape.evaluates_first_stage[n + 1]
        outputs = range(len(tape.step_of_output))[_outputs_of(tape, n)]
        field.look_at(n, len(sizes), tableau.stages)
        if slope is None:
            field.side.before(n, 0)
            t = timeline.stages[n, 0]
            slope = field.slope(t, y)
            field.check(slope, t, y, first=n == 0)
        k = [slope]
        for i in range(1, tableau.stages):
            if i == tableau.stages - 1 and tableau.last_at_end and not (ahead or outputs):
                break
            field.side.before(n, i)
            t, place = timeline.stages[n, i], y + h * _combined(rows[i], k)
            k.append(field.slope(t, place))
            field.check(k[-1], t, place)
        slopes = torch.stack(k)
        ys += [of_start[q] * y + h * torch.tensordot(weights[q, : len(k)], slopes, 1) for q in outputs]
        y = y + h * _combined(rows[-1], k)
        slope = k[-1] if ahead else None
    return torch.stack(ys)


def _combined(row: Sequence[float], k: Sequence[Tensor]) -> Tensor:
    terms = [a * slope for a, slope in zip(row, k, strict=False) if a]
    return torch.stack(terms).sum(0)


def _outputs_of(tape: Tape, n: int) -> slice:
    first, last = (bisect.bisect_left(tape.step_of_output, step) for step in (n, n + 1))
    return slice(first, last)
