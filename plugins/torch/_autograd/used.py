"""The tensors that func uses and that require a gradient, for callers who name none.

One evaluation under autograd shows them: a graph leads from what it returns to every leaf, and to every tensor that was
computed before it, such as an encoder's context or the coefficients of a spline. The latter get their cotangent from
the solve once, and pass it on through graphs of their own. So does what the evaluation computes once and keeps for all
others (``parametrize.cached()``, ``if self.A is None: self.A = ...``): it is computed before the solve then.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from steptape._errors import GradientError
from steptape.compat._torch import OperationMode, running_node, sequence_number, uncompiled
from steptape.torch._autograd.graph import Call, is_one_of, leads_to, tensors_of
from steptape.torch._autograd.surroundings import Note, SideState

# A node of a graph and the place of one of its outputs: which tensor it is.
Edge = tuple[Any, int]
# The n-th evaluation of a solve, of what it is given.
Evaluate = Callable[..., Any]
# Each parameter that is not used takes time in each pull.
_FEW = 50
_DERIVATIVES = (torch.autograd.grad, torch.autograd.backward, Tensor.backward)


class Used(NamedTuple):
    """The ``tensors`` that func uses; of them those that its ``first`` evaluation does, what it keeps being kept, and
    those that it has ``kept`` for the next ones.

    ``differentiates``: whether it takes derivatives inside, for which it needs a graph. ``value``: of the first
    evaluation, and ``after``: what func changes besides, after it.
    """

    tensors: list[Tensor]
    first: list[Tensor]
    kept: list[Tensor]
    differentiates: bool
    value: Tensor | None
    after: Note


class Inside:
    """Tells func from the host's solver around it, which may take derivatives of its own."""

    def __init__(self) -> None:
        self.depth = 0

    def __call__(self, evaluate: Callable[[], Any]) -> Any:
        """Evaluate func."""
        self.depth += 1
        try:
            return evaluate()
        finally:
            self.depth -= 1


def tensors_used(evaluate: Evaluate, given: Sequence[Tensor], since: int, inside: Inside, side: SideState) -> Used:
    """The leaves, and the tensors computed before, that ``evaluate(0, *given)`` depends on other than by ``given``.

    ``evaluate(1, *given)``: another one, that uses what the first one may have kept; ``since``: the place in the order
    of nodes after which the host may have evaluated for itself; ``inside``: what encloses func in the evaluations.
    """
    looks = [_look(evaluate, 0, given, inside, side)]
    after = side.note()
    if looks[0].left_something:
        looks += [_look(evaluate, n, given, inside, side) for n in (0, 1)]
    used = list({id(x): x for look in looks for x in look.used}.values())
    kept = [x for x in used if x.grad_fn is not None and sequence_number(x.grad_fn) >= since]
    first = looks[min(1, len(looks) - 1)].used
    return Used(used, first, kept, looks[0].differentiates, looks[0].value, after)


def place_in_order() -> int:
    """The place of the next node of a graph in the order in which this thread makes them."""
    with torch.enable_grad():
        return sequence_number(torch.ones((), requires_grad=True).clone().grad_fn)


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

    def is_source(x: Tensor) -> bool:
        return not is_one_of(x, found) and any(leads_to(y, [x]) for y in before)

    more = [x for x in own if x.requires_grad and not is_source(x)]
    params = list({id(x): x for x in (*more, *found)}.values())
    if len(near) > _FEW:
        # Outputs of one operation, such as the knots of a spline, go together.
        nodes = {x.grad_fn for x in before}
        near = [x for x in near if x.grad_fn in nodes]
    return params + [
        x
        for x in {id(x): x for x in near if x.requires_grad}.values()
        if not is_one_of(x, params) and not is_source(x) and not leads_to(x, params)
    ]


class First:
    """The first evaluation, for a solve to take in place of its own: what it drew and kept is drawn once.

    ``y``: its state. ``value``: what it returned, and ``after``: what func changes besides, after it.
    """

    def __init__(self, y: Tensor, value: Tensor, after: Note):
        self._y, self._value, self._after = y, value, after

    def __call__(self, side: SideState, evaluate: Callable[[Tensor, Tensor], Tensor], t: Tensor, y: Tensor) -> Tensor:
        """The value at ``y``, if it is that of this evaluation; ``side``: of the solve, which takes notes of it."""
        if y.shape != self._y.shape or not torch.equal(y, self._y):
            return evaluate(t, y)
        side.set(self._after)
        return self._value


def differentiating(evaluate: Callable[[], Any]) -> Any:
    """An evaluation that takes derivatives inside, with the graph that it needs where none is asked for."""
    if torch.is_grad_enabled():
        return evaluate()
    with torch.enable_grad():
        out = evaluate()
    return out.detach() if isinstance(out, Tensor) else tuple(x.detach() for x in out)


def is_among(x: Tensor, named: Sequence[Tensor], given: Sequence[Tensor]) -> bool:
    """Whether a tensor is named, or what was computed from it is."""
    return is_one_of(x, named) or leads_to(x, [*named, *given])


def check_kept(
    kept: Sequence[Tensor], new: Sequence[Tensor], evaluate: Evaluate, given: Sequence[Tensor], call: Call
) -> None:
    """Raise if, after the solve, evaluations at its ends do not use what the first one kept: others have no history.

    Or if they use ``new`` tensors without a history, that func has come to refer to in the solve.
    """
    for n in (0, -1) if kept else (-1,):
        with torch.no_grad(), uncompiled(), _Operations(Inside()) as operations:
            used = [*tensors_of(evaluate(n, *(x.clone() for x in given))), *operations.entered]
        unused = next((x for x in kept if not is_one_of(x, used)), None)
        if unused is not None:
            raise GradientError(
                f"{call}: {call.func} computed a tensor of shape {tuple(unused.shape)} in its first evaluation, which "
                "the next one used again, and later ones do not. They build no graph, so the gradient of what they "
                "compute and keep in its place would be lost. Compute it in each evaluation, or once and for all; or "
                "detach() it, if it needs no gradient."
            )
        late = next((x for x in new if id(x) in operations.all_entered), None)
        if late is not None:
            raise GradientError(
                f"{call}: {call.func} computed a tensor of shape {tuple(late.shape)} in the solve, after its first "
                "evaluation, and kept it for others. The solve builds no graph, so the gradient of what it was "
                "computed from would be lost. Compute it in each evaluation, in the first one, or before the solve."
            )


class _Seen(NamedTuple):
    """What one evaluation used, whether it ``left_something`` that it computed, and whether it differentiates."""

    used: list[Tensor]
    left_something: bool
    differentiates: bool
    value: Tensor | None


def _look(evaluate: Evaluate, n: int, given: Sequence[Tensor], inside: Inside, side: SideState) -> _Seen:
    """By calls, which takes least time, and where they do not show all, as in scripted modules, by operations."""
    before = side.note()
    seen = _seen(evaluate, n, given, _Calls(inside))
    if seen is None:
        side.set(before)
        seen = _seen(evaluate, n, given, _Operations(inside))
    assert seen is not None
    return seen


def _seen(evaluate: Evaluate, n: int, given: Sequence[Tensor], noted: _Calls | _Operations) -> _Seen | None:
    """None if calls do not show where the graph ends."""
    with torch.enable_grad():
        # Copies, by which what it is given is told from the same tensors reached otherwise, as in a closure.
        apart = [x.clone() for x in given]
        began = place_in_order()
        with uncompiled(), noted:
            outputs = list(tensors_of(evaluate(n, *apart)))
    value = outputs[0].detach() if outputs else None
    made: list[weakref.ref[Tensor]] = []
    outside: dict[Edge, Tensor] = {}
    for x in (*noted.entered, *outputs):
        if x.grad_fn is None:
            continue
        if noted.is_made(x):
            made.append(weakref.ref(x))
        # Other threads count their nodes for themselves, so a later one may be older all the same.
        elif sequence_number(x.grad_fn) < began or noted.sees_all:
            outside[x.grad_fn, x.output_nr] = x
        else:
            return None
    ends = _ends(outputs, outside, 0 if noted.sees_all else began)
    if ends is None:
        return None
    ends = [x for x in ends if not is_one_of(x, apart)]
    used, leaves = [x for x in ends if not x.is_leaf], [weakref.ref(x) for x in ends if x.is_leaf]
    # What the evaluation made for itself goes with its graph, leaves as well.
    del outputs, outside, apart, ends, x
    noted.entered.clear()
    used += [x for x in (leaf() for leaf in leaves) if x is not None]
    left = any(x is not None and x.grad_fn is not None for x in (ref() for ref in made))
    return _Seen(used, left, noted.differentiated, value)


def _ends(outputs: Sequence[Tensor], outside: dict[Edge, Tensor], began: int) -> list[Tensor] | None:
    """Where the graph of ``outputs`` ends: at leaves, and at tensors from ``outside``.

    None if it goes on to other nodes that were made before one ``began``.
    """
    ends = [x for x in outputs if x.is_leaf and x.requires_grad]
    front: deque[Edge] = deque((x.grad_fn, x.output_nr) for x in outputs)
    seen = set()
    while front:
        edge = front.popleft()
        if edge[0] is None or edge in seen:
            continue
        seen.add(edge)
        if edge in outside:
            ends.append(outside[edge])
            continue
        leaf = getattr(edge[0], "variable", None)
        if leaf is not None:
            ends.append(leaf)
        elif sequence_number(edge[0]) < began:
            return None
        front.extend(edge[0].next_functions)
    return ends


class _Calls(TorchFunctionMode):
    """Notes the tensors that ``entered`` functions of torch and require a gradient, and which were made by one.

    ``differentiated``: whether func took derivatives. Not seen is what happens inside of scripted functions.
    """

    sees_all = False

    def __init__(self, inside: Inside) -> None:
        super().__init__()
        self._inside = inside
        self.entered: list[Tensor] = []
        self.differentiated = False
        self._made: set[int] = set()

    def is_made(self, x: Tensor) -> bool:
        return id(x) in self._made

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _DERIVATIVES and self._inside.depth:
            self.differentiated = True
        _note(self.entered, args)
        if kwargs:
            _note(self.entered, kwargs.values())
            out = func(*args, **kwargs)
        else:
            out = func(*args)
        self._made.update((id(out),) if isinstance(out, Tensor) else map(id, tensors_of(out)))
        return out


class _Operations(OperationMode):
    """The same of the operations of a block, those of scripted functions and of backward passes as well."""

    sees_all = True

    def __init__(self, inside: Inside) -> None:
        super().__init__()
        self._inside = inside
        self.entered: list[Tensor] = []
        self.differentiated = False
        self._made: set[int] = set()
        self._around = running_node()
        self.all_entered: set[int] = set()

    def is_made(self, x: Tensor) -> bool:
        # A view is another tensor where it is made than where it is used.
        return id(x) in self._made or x._is_view()

    def operate(self, run: Callable[[], Any], args: Sequence[Any]) -> Any:
        """Run an operation."""
        _note(self.entered, args)
        self.all_entered.update(map(id, tensors_of(args)))
        if self._inside.depth and running_node() is not self._around:
            self.differentiated = True
        out = run()
        self._made.update((id(out),) if isinstance(out, Tensor) else map(id, tensors_of(out)))
        return out


def _note(entered: list[Tensor], args: Iterable[Any]) -> None:
    for x in args:
        if isinstance(x, Tensor):
            if x.requires_grad:
                entered.append(x)
        elif isinstance(x, (tuple, list, dict)):
            entered += [part for part in tensors_of(x) if part.requires_grad]
