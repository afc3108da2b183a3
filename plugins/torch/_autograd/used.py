"""The tensors that func uses and that require a gradient, for callers who name none.

One evaluation under autograd shows them: a graph leads from what it returns to every leaf, and to every tensor that was
computed before it, such as an encoder's context or the coefficients of a spline. The latter get their cotangent from
the solve once, and pass it on through graphs of their own. So does what the evaluation computes once and keeps for all
others (``parametrize.cached()``, ``if self.A is None: self.A = ...``): it is computed before the solve then.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from steptape._errors import GradientError
from steptape.compat._torch import is_freed, sequence_number, uncompiled
from steptape.torch._autograd.graph import BY_HOST, Call, is_one_of, leads_to, place_of, places_from, tensors_of
from steptape.torch._autograd.looks import Evaluate, Inside, Noticed, Operations, Traits, look
from steptape.torch._autograd.side import Note, SideState
from steptape.torch._autograd.surroundings import Untouched

# Each parameter that is not used takes time in each pull.
_FEW = 50


class Used(NamedTuple):
    """The ``tensors`` that func uses; of them those that its ``first`` evaluation does, what it keeps being kept, and
    those that it has ``kept`` for the next ones.

    ``traits``: of the first evaluation, its ``values``, and ``after``: what func changes besides, after it. ``stored``:
    what func still holds of what it was given or has computed, for someone else than its next evaluations.
    ``leaves``: whether the first evaluation has left something that it computed.
    """

    tensors: list[Tensor]
    first: list[Tensor]
    kept: list[Tensor]
    traits: Traits
    values: Sequence[Tensor]
    after: Note
    stored: Sequence[weakref.ref[Tensor]]
    leaves: bool


def tensors_used(
    evaluate: Evaluate,
    given: Sequence[Tensor],
    since: int | None,
    inside: Inside,
    untouched: Untouched,
    grid: Evaluate | None = None,
) -> Used:
    """The leaves, and the tensors computed before, that ``evaluate(0, *given)`` depends on other than by ``given``.

    ``evaluate(1, *given)``: another one, that uses what the first one may have kept; ``since``: the place in the order
    of nodes after which the host has evaluated for itself, if so; ``inside``: what encloses func in the evaluations;
    ``untouched``: func before them; ``grid``: what also uses some, and is no evaluation.
    """
    looks, side = [look(evaluate, 0, given, inside, untouched.restore)], untouched.side
    after = side.note()
    first_left = untouched.held_now if looks[0].left else None
    if first_left is not None:
        looks += [look(evaluate, n, given, inside, functools.partial(side.set, side.note())) for n in (0, 1)]
    laid = [] if grid is None else look(grid, 0, given, inside, functools.partial(side.set, side.note())).used
    used = list({id(x): x for xs in (*(look.used for look in looks), laid) for x in xs}.values())
    since = looks[0].began if since is None else since
    kept = [x for x in used if x.grad_fn is not None and sequence_number(x.grad_fn) >= since]
    if first_left is not None and not kept:
        # What is left is for someone else, who is to find that of one evaluation.
        first_left.restore()
    first = looks[min(1, len(looks) - 1)].used
    stored = [weakref.ref(x) for look in looks for x in look.left if not is_one_of(x, used)]
    stored += [look.stored_state for look in looks if look.stored_state is not None]
    return Used(used, first, kept, looks[0].traits, looks[0].values, after, stored, bool(looks[0].left))


def piled_up(
    used: Used, evaluate: Evaluate, given: Sequence[Tensor], inside: Inside, side: SideState
) -> Sequence[weakref.ref[Tensor]]:
    """Of what func stores what there is more of after each evaluation: not what the same one uses again."""
    again = look(evaluate, 1, given, inside, functools.partial(side.set, side.note())).used
    return [x for x in used.stored if (stored := x()) is not None and not is_one_of(stored, again)]


def parameters_used(
    used: Used,
    given: Sequence[Tensor],
    own: Iterable[Tensor],
    near: Sequence[Tensor],
    named: Sequence[Tensor] | None,
) -> list[Tensor]:
    """What to differentiate with respect to besides what a solve is given: all that func uses, and ``own``.

    ``own``: the parameters of a module, used or not yet; not those that only tensors are computed from that are used
    in the place of the module's own. ``near``: tensors that func refers to, and may use later on.
    ``named``: of all these, those alone that are named, or computed from what is named or given.
    """
    found = used.tensors
    if named is not None:
        named = [x for x in named if x.requires_grad]
        found = [x for x in found if is_among(x, named, given)]
        return list({id(x): x for x in (*named, *found)}.values())
    before = [x for x in found if x.grad_fn is not None and not is_one_of(x, used.kept)]

    sources = set(places_from((x.grad_fn, x.output_nr) for x in before))

    def is_source(x: Tensor) -> bool:
        return place_of(x) in sources and not is_one_of(x, found)

    more = [x for x in own if x.requires_grad and not is_source(x)]
    params = list({id(x): x for x in (*more, *found)}.values())
    # Outputs of one operation, such as the knots of a spline, go together.
    nodes = {x.grad_fn for x in before}
    near = [x for x in near if (len(near) <= _FEW if x.grad_fn is None else x.grad_fn in nodes)]
    return params + [
        x for x in {id(x): x for x in near if x.requires_grad}.values() if not is_one_of(x, params) and not is_source(x)
    ]


def computed_before(near: Sequence[Tensor], params: Sequence[Tensor]) -> list[Tensor]:
    """Of tensors ``near`` those that were computed before, and are no ``params`` yet."""
    return [x for x in near if x.grad_fn is not None and not is_one_of(x, params) and not is_freed(x.grad_fn)]


def used_later(late: Sequence[Tensor], solve: Callable[[], Any]) -> list[Tensor]:
    """Of tensors that were computed before those that func uses in the solve.

    An earlier solve's solution is such a tensor too, which func's object may have kept: were it a parameter that is not
    used, a backward pass would run through the graph of that solve again. So the solve is taken once to see.
    """
    with torch.no_grad(), uncompiled(), Noticed({id(x): x for x in late}) as noticed:
        solve()
    return noticed.found


class First:
    """The first evaluation, for a solve to take in place of its own: what it drew and kept is drawn once.

    ``y``: its state. ``value``: what it returned, and ``after``: what func changes besides, after it. ``repeats``:
    whether func itself is as before, so that it returns the same again from the same numbers drawn.
    """

    def __init__(self, y: Tensor, value: Tensor, after: Note, repeats: bool):
        self._y, self._value, self._after, self.repeats = y, value, after, repeats

    def __call__(self, side: SideState, evaluate: Callable[[], Tensor], y: Tensor) -> Tensor:
        """``evaluate()`` at ``y``, if it is not this evaluation; ``side``: of the solve, which takes notes of it."""
        if y.shape != self._y.shape or not torch.equal(y, self._y):
            return evaluate()
        side.set(self._after)
        return self._value


def with_graph(evaluate: Callable[[], Any]) -> Any:
    """An evaluation of a func that needs a graph, where none is asked for."""
    if torch.is_grad_enabled():
        return evaluate()
    with torch.enable_grad():
        out = evaluate()
    return out.detach() if isinstance(out, Tensor) else tuple(x.detach() for x in out)


def is_among(x: Tensor, named: Sequence[Tensor], given: Sequence[Tensor]) -> bool:
    """Whether a tensor is named, or what was computed from it is."""
    return is_one_of(x, named) or leads_to(x, [*named, *given])


def check_kept(
    kept: Sequence[Tensor],
    new: Sequence[Tensor],
    evaluate: Evaluate,
    given: Sequence[Tensor],
    call: Call,
    is_constant: Callable[[Callable[[], Any]], bool],
) -> None:
    """Raise if, after the solve, evaluations at its ends do not use what the first one kept: others have no history.

    Or if they use ``new`` tensors without a history, that func has come to refer to in the solve, unless what an
    evaluation computes and keeps ``is_constant``.
    """
    for n in (0, -1) if kept else (-1,):
        apart = [x.clone() for x in given]
        with torch.no_grad(), uncompiled(), Operations(Inside(), follow=new) as operations:
            outputs = [*tensors_of(evaluate(n, *apart))]
        used = [*outputs, *operations.entered]
        unused = next((x for x in kept if not is_one_of(x, used)), None)
        if unused is not None:
            raise GradientError(
                f"{call}: {call.func} computed a tensor of shape {tuple(unused.shape)} in its first evaluation, which "
                "the next one used again, and later ones do not. They build no graph, so the gradient of what they "
                "compute and keep in its place would be lost. Compute it in each evaluation, or once and for all; or "
                "detach() it, if it needs no gradient."
            )
        late = next((x for x in new if operations.leads_to(x, outputs)), None)
        if late is not None and not is_constant(lambda: evaluate(-1, *(x.clone() for x in given))):
            raise GradientError(
                f"{call}: {call.func} computed a tensor of shape {tuple(late.shape)} in the solve, after its first "
                "evaluation, and kept it for others. The solve builds no graph, so the gradient of what it was "
                "computed from would be lost. Compute it in each evaluation, in the first one, or before the solve; "
                f"or, if it is of the past, as in a delay equation, {BY_HOST}."
            )
