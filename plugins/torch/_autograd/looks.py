"""One evaluation of func under autograd, looked at: the tensors that its graph ends at, and what it left."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode

from steptape.compat._torch import (
    OperationMode,
    is_pulled_whole,
    place_in_order,
    running_node,
    sequence_number,
    transforms_active,
    uncompiled,
)
from steptape.compat._torch_hooks import has_hooks
from steptape.torch._autograd.graph import Edge, edges_from, leaf_at, tensors_of

# The n-th evaluation of a solve, of what it is given.
Evaluate = Callable[..., Any]
_NEED_GRAPHS = frozenset(
    (torch.autograd.grad, torch.autograd.backward, Tensor.backward, Tensor.register_hook, Tensor.retain_grad)
)


class Inside:
    """Tells func from the host's solver around it, which may take derivatives of its own; ``values``: func's.

    ``place``: what its first evaluation was given.
    """

    def __init__(self) -> None:
        self.depth, self.values, self.place = 0, list[Tensor](), list[Tensor]()

    def __call__(self, evaluate: functools.partial[Any]) -> Any:
        """Evaluate func."""
        if not self.values:
            self.place = [x.detach().clone() for x in tensors_of(evaluate.args)]
        self.depth += 1
        try:
            out = evaluate()
        finally:
            self.depth -= 1
        self.values += [x.detach() for x in tensors_of(out)]
        return out


class Traits(NamedTuple):
    """What sets an evaluation apart from plain operations: whether

    it ``needs_graph``, since it takes derivatives inside or puts hooks on what it computes; is in ``transforms`` of
    ``torch.func`` anywhere; has ``custom`` functions of the user's in its graph, or hooks, by which a backward pass
    need not be linear; of which some are pulled only as a ``whole``; puts hooks on what it is given (``hooks_given``),
    or writes to that (``writes_given``).
    """

    needs_graph: bool
    transforms: bool
    custom: bool
    whole: bool
    hooks_given: bool
    writes_given: bool


class Seen(NamedTuple):
    """What one evaluation used, what it computed and ``left`` somewhere, and its ``traits``.

    ``values``: those of func in it. ``began``: its place in the order of nodes. ``stored_state``: what it was given, if
    it left that.
    """

    used: list[Tensor]
    left: list[Tensor]
    stored_state: weakref.ref[Tensor] | None
    traits: Traits
    values: Sequence[Tensor]
    began: int


def look(evaluate: Evaluate, n: int, given: Sequence[Tensor], inside: Inside, restore: Callable[[], None]) -> Seen:
    """By calls, which takes least time, and where they do not show all, as in scripted modules, by operations.

    ``restore``: has all be as before, for another evaluation to be the first.
    """
    calls, inside.values = _Calls(inside), []
    seen = _seen(evaluate, n, given, calls)
    if seen is None:
        restore()
        inside.values = []
        seen = _seen(evaluate, n, given, Operations(inside))
        assert seen is not None
    needs_graph = seen.traits.needs_graph or calls.needs_graph
    traits = seen.traits._replace(needs_graph=needs_graph, transforms=calls.transforms)
    return seen._replace(traits=traits, values=inside.values)


def _seen(evaluate: Evaluate, n: int, given: Sequence[Tensor], noted: _Calls | Operations) -> Seen | None:
    """None if calls do not show where the graph ends."""
    with torch.enable_grad():
        # Copies, by which what it is given is told from the same tensors reached otherwise, as in a closure.
        apart = [x.clone() for x in given]
        # The state requires a gradient, as it does in all evaluations but, it may be, the first one.
        start = apart[0].requires_grad_()
        apart[0] = start.clone()
        versions = [x._version for x in apart]
        began = place_in_order()
        with uncompiled(), noted:
            outputs = list(tensors_of(evaluate(n, *apart)))
    outside: dict[Edge, Tensor] = {}
    for x in (*noted.entered, *outputs):
        if x.grad_fn is None:
            continue
        if noted.is_made(x):
            noted.made.append(weakref.ref(x))
        # Other threads count their nodes for themselves, so a later one may be older all the same.
        elif sequence_number(x.grad_fn) < began or noted.sees_all:
            outside[x.grad_fn, x.output_nr] = x
        else:
            return None
    found = _ends(outputs, outside, 0 if noted.sees_all else began)
    if found is None:
        return None
    ends, custom = found
    traits = Traits(
        noted.needs_graph,
        noted.transforms,
        noted.needs_graph or bool(custom),
        any(map(is_pulled_whole, custom)),
        any(map(has_hooks, apart)),
        any(x._version != before for x, before in zip(apart, versions, strict=True)),
    )
    own = set(map(id, (start, *apart)))
    ends = [x for x in ends if id(x) not in own]
    used, leaves = [x for x in ends if not x.is_leaf], [weakref.ref(x) for x in ends if x.is_leaf]
    state = weakref.ref(apart[0])
    # What the evaluation made for itself goes with its graph, leaves as well.
    del outputs, outside, start, apart, found, ends, custom, x
    noted.entered.clear()
    used += [x for x in (leaf() for leaf in leaves) if x is not None]
    alive = (x for x in (ref() for ref in noted.made) if x is not None)
    left = {id(x): x for x in alive if x.grad_fn is not None}
    return Seen(used, [*left.values()], None if state() is None else state, traits, (), began)


def _ends(
    outputs: Sequence[Tensor], outside: dict[Edge, Tensor], began: int
) -> tuple[list[Tensor], list[BackwardCFunction]] | None:
    """Where the graph of ``outputs`` ends: at leaves, and at tensors from ``outside``; and functions of the user's.

    None if it goes on to other nodes that were made before one ``began``.
    """
    ends, custom = [x for x in outputs if x.is_leaf and x.requires_grad], []
    for edge in edges_from(((x.grad_fn, x.output_nr) for x in outputs), outside):
        node = edge[0]
        end = outside.get(edge) if outside else None
        if end is None:
            end = leaf_at(edge)
        if end is not None:
            ends.append(end)
        elif sequence_number(node) < began:
            return None
        elif isinstance(node, BackwardCFunction):
            custom.append(node)
    return ends, custom


class Noticed(TorchFunctionMode):
    """Which of some tensors, by identity, enter an operation in a block: those ``found``.

    What tells of a tensor, such as its shape, is none.
    """

    def __init__(self, tensors: dict[int, Tensor]):
        super().__init__()
        self._waiting, self.found = dict(tensors), list[Tensor]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self._waiting and (out is None or any(True for _ in tensors_of((out,)))):
            entered = {id(x) for x in tensors_of((args, kwargs))}
            self.found += [self._waiting.pop(key) for key in entered & self._waiting.keys()]
        return out


class _Noted:
    """What is noted in a block: the tensors that ``entered`` and require a gradient, and which were ``made`` in it.

    ``needs_graph``: whether func took derivatives, or put hooks on what it computes. ``transforms``: whether it is in
    transforms of ``torch.func`` anywhere.
    """

    def __init__(self, inside: Inside) -> None:
        super().__init__()
        self._inside = inside
        self.entered: list[Tensor] = []
        self.needs_graph = self.transforms = False
        self.made: list[weakref.ref[Tensor]] = []
        self._made: set[int] = set()

    def _enter(self, args: Iterable[Any]) -> None:
        for x in args:
            if isinstance(x, Tensor):
                if x.requires_grad:
                    self.entered.append(x)
            elif isinstance(x, (tuple, list, dict)):
                self.entered += [part for part in tensors_of(x) if part.requires_grad]

    def _make(self, out: Any) -> Any:
        for x in (out,) if isinstance(out, Tensor) else tensors_of(out):
            self._made.add(id(x))
            if x.requires_grad:
                self.made.append(weakref.ref(x))
        return out


class _Calls(_Noted, TorchFunctionMode):
    """Of the functions of torch that are called; not what happens inside of scripted ones."""

    sees_all = False

    def is_made(self, x: Tensor) -> bool:
        return id(x) in self._made

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _NEED_GRAPHS and self._inside.depth:
            self.needs_graph = True
        self.transforms = self.transforms or transforms_active()
        self._enter(args)
        if not kwargs:
            return self._make(func(*args))
        self._enter(kwargs.values())
        return self._make(func(*args, **kwargs))


class Operations(_Noted, OperationMode):
    """Of single operations, also of scripted functions and backward passes.

    ``follow``: tensors of which is noted what is computed from them.
    """

    sees_all = True

    def __init__(self, inside: Inside, follow: Sequence[Tensor] = ()) -> None:
        super().__init__(inside)
        self._around = running_node()
        self._from = {id(x): [x] for x in follow}

    def is_made(self, x: Tensor) -> bool:
        # A view is another tensor where it is made than where it is used.
        return id(x) in self._made or x._is_view()

    def operate(self, run: Callable[[], Any], args: Sequence[Any]) -> Any:
        """Run an operation."""
        self._enter(args)
        if self._inside.depth and running_node() is not self._around:
            self.needs_graph = True
        out = self._make(run())
        if self._from:
            entered = set(map(id, tensors_of(args)))
            for made in self._from.values():
                if any(id(x) in entered for x in made):
                    made += tensors_of(out)
        return out

    def leads_to(self, x: Tensor, outputs: Iterable[Tensor]) -> bool:
        """Whether one of ``outputs`` was computed from a tensor that was followed."""
        made = set(map(id, self._from[id(x)]))
        return any(id(out) in made for out in outputs)
