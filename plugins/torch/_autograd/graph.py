"""Graphs: pull cotangents back through one, and see what it depends on."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.overrides import TorchFunctionMode

from steptape._errors import GradientError, UnsupportedError
from steptape.compat._torch import add_each, pull, uncompiled
from steptape.compat._torch_hooks import has_hooks

# A node of a graph and the place of one of its outputs: which tensor it is.
Edge = tuple[Any, int]
_DENSE = torch.strided


class Call(NamedTuple):
    """What an error calls a solve; ``func`` is the name of its vector field.

    ``named``: whether the caller has said what to differentiate in, so that nothing else has a gradient.
    """

    function: str = "odeint_adjoint"
    func: str = "func"
    method: str = "aca"
    named: bool = False

    def __str__(self) -> str:
        return f"{self.function}({self.func}, ..., adjoint_method={self.method!r})"


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


class Parameters:
    """The parameters of a solve, whose ``cotangents`` add up.

    Where one was computed from others, ``params`` has a stand-in for it, which func is given in its place: its
    cotangent ends there. ``replaced``: those that have one. ``needed``: which are to have a gradient, all by default;
    the others get none. ``rough``: whether func computes with them in less precision than the state's, as under
    autocast. ``used_first``: those that the first evaluation of the solve used. ``batch``: the leading dimensions of
    cotangents, none where they come one at a time. ``retains``: whether graphs are kept for another backward pass, if
    the solve ``has_graphs``.
    ``solve``: what the leaves are known by of the graphs that the solve itself built.
    """

    batch: tuple[int, ...] = ()
    retains = has_graphs = False

    def __init__(
        self,
        params: Sequence[Tensor],
        call: Call,
        rough: bool = False,
        needed: Sequence[bool] | None = None,
        used_first: Sequence[Tensor] = (),
    ):
        self.call, self.rough, self._used_first = call, rough, used_first
        self._actual, self._needed = tuple(params), needed or [True] * len(params)
        self.replaced = [p for p in params if leads_to(p, params)]
        self._exchange(_leaf)
        self.cotangents = [self.zeros(p) for p in self.params]
        self._are_sparse = not all(map(is_dense, self.cotangents))
        self._used: set[int] = set()
        self._pulled, self.solve = False, object()

    def _exchange(self, stand_in: Callable[[Tensor], Tensor]) -> None:
        self._stand_ins = {id(p): stand_in(p) for p in self.replaced}
        self.params = tuple(self._stand_ins.get(id(p), p) for p in self._actual)
        self._asked: tuple[Any, ...] = self.params
        self._left_out = {id(p) for p, need in zip(self.params, self._needed, strict=True) if not need}

    def with_stand_ins(self, stand_in: Callable[[Tensor], Tensor]) -> Parameters:
        """The same with other stand-ins than leaves."""
        others = copy.copy(self)
        others._exchange(stand_in)
        return others

    def ask_at(self, edges: Sequence[Edge], kinds: Sequence[tuple[torch.dtype, torch.device]]) -> None:
        """Have cotangents taken where the parameters were in a graph that was kept, and of the kind they had then.

        Where its data are exchanged for others, as by ``module.double()``, a leaf begins other graphs in another place.
        """
        if self.are_at(edges):
            return
        self._asked = tuple(
            p if node is None else GradientEdge(node, n) for p, (node, n) in zip(self.params, edges, strict=True)
        )
        self._left_out |= {id(x) for p, x in zip(self.params, self._asked, strict=True) if id(p) in self._left_out}
        for i, (dtype, device) in enumerate(kinds):
            self.cotangents[i] = self.cotangents[i].to(device, dtype)

    def are_at(self, edges: Sequence[Edge]) -> bool:
        """Whether graphs still begin where the parameters were when they had these edges."""
        pairs = zip(self.params, edges, strict=True)
        return all(node is None or node_of(p) is node for p, (node, _) in pairs)

    @property
    def used_first(self) -> list[Tensor]:
        """As evaluations find them."""
        return [self._stand_ins.get(id(x), x) for x in self._used_first]

    def in_place(self) -> AbstractContextManager[Any]:
        """A context for func to be evaluated in."""
        return _exchanged(self._stand_ins) if self._stand_ins else nullcontext()

    def zeros(self, x: Tensor) -> Tensor:
        """The cotangent of what nothing depends on; of what needs none, an empty one."""
        shape = (*self.batch, *((0,) if id(x) in self._left_out else x.shape))
        # Of these, and of no other sparse ones, there are some of any shape.
        return x.new_zeros(shape) if is_dense(x) else x.new_zeros(shape, layout=torch.sparse_coo)

    def taken(
        self, ends: Sequence[Tensor], cotangents: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        """The cotangents of ``inputs`` that need one, none added up; frees the graph unless it is retained."""
        wanted = [x for x in inputs if id(x) not in self._left_out] if self._left_out else inputs
        try:
            found = self._taken(ends, cotangents, wanted) if wanted else ()
        except RuntimeError as error:
            _refuse_shared_graphs(error, self.call)
            raise
        if not self._left_out:
            return found
        grads = iter(found)
        return [None if id(x) in self._left_out else next(grads) for x in inputs]

    def _taken(
        self, ends: Sequence[Tensor], cotangents: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        return pull(ends, cotangents, inputs, self.retains)

    def taken_with_graph(
        self, ends: Sequence[Tensor], cotangents: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        """The same as functions of all that they depend on."""
        return torch.autograd.grad(ends, inputs, cotangents, create_graph=True, allow_unused=True)

    def pull(self, outputs: Iterable[tuple[Tensor, Tensor]], inputs: Sequence[Tensor]) -> list[Tensor]:
        """The cotangents of ``inputs`` from pairs of an output and its own, in any shape; those of parameters add up.

        Frees the graph.
        """
        pairs = [(x, cotangent.view((*self.batch, *x.shape))) for x, cotangent in outputs if x.requires_grad]
        if not pairs:
            self._pulled = True
            return [self.zeros(x) for x in inputs]
        ends, cotangents = zip(*pairs, strict=True)
        return self._added(ends, cotangents, inputs)

    def pull_on(self, outputs: Iterable[tuple[Tensor, Tensor]], inputs: Sequence[Tensor]) -> list[Tensor]:
        """The same of several evaluations, whose shares are added one by one to what there is, as by back-propagation.

        To the bit: a view that is made last is pulled first, and so what there is comes before the shares.
        """
        going = [
            (i, p)
            for i, p in enumerate(self.params)
            if i in self._used and id(p) not in self._left_out and is_dense(p) and is_dense(self.cotangents[i])
        ]
        with torch.enable_grad():
            before = [(p.view_as(p), self.cotangents[i]) for i, p in going]
        for i, _ in going:
            self.cotangents[i] = torch.zeros_like(self.cotangents[i])
        return self.pull([*outputs, *before], inputs)

    def pull_one(self, end: Any, cotangent: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The same of one output, or of the end of its graph."""
        if not end.requires_grad:
            self._pulled = True
            return [self.zeros(x) for x in inputs]
        return self._added((end,), (cotangent,), inputs)

    def _added(self, ends: Sequence[Tensor], cotangents: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
        grads = self.taken(ends, cotangents, (*inputs, *self._asked))
        self._pulled = True
        self._add(grads[len(inputs) :])
        return [self.zeros(x) if grad is None else grad for x, grad in zip(inputs, grads, strict=False)]

    def _add(self, shares: Sequence[Any]) -> None:
        """Add what an evaluation gives to the parameters' cotangents."""
        totals = self.cotangents
        # Of a small net, an evaluation is not much longer than the rest of this.
        for share in shares:
            if share is None or share.layout is not _DENSE or self._are_sparse:
                break
        else:
            if shares:
                add_each(totals, shares)
            if len(self._used) < len(shares):
                self._used.update(range(len(shares)))
            return
        found = [i for i, share in enumerate(shares) if share is not None]
        sparse = {i for i in found if not (is_dense(shares[i]) and is_dense(totals[i]))}
        if dense := [i for i in found if i not in sparse]:
            add_each([totals[i] for i in dense], [shares[i] for i in dense])
        for i in sparse:
            totals[i] = self._sum(i, shares[i])
        self._are_sparse = not all(map(is_dense, totals))
        self._used.update(found)

    def _sum(self, i: int, share: Tensor) -> Tensor:
        """A cotangent with a share more: it stays sparse as long as all of them are, as by back-propagation."""
        if is_dense(share):
            return share + self.cotangents[i]
        total = self.cotangents[i] + share if i in self._used else share
        return total.coalesce() if total.is_sparse else total

    def use(self, grads: Sequence[Tensor | None]) -> None:
        """Note which of the parameters an evaluation depends on, by their shares in its gradient."""
        self.use_at(i for i, grad in enumerate(grads) if grad is not None)

    def use_at(self, places: Iterable[int]) -> None:
        """The same by their places."""
        self._pulled = True
        self._used.update(places)

    @property
    def places(self) -> dict[int, int]:
        """Of those that are to have a gradient the place, by what they are known by outside of a replay."""
        return {id(p): i for i, p in enumerate(self._actual) if self._needed[i]}

    def cover(self, tensors: Sequence[Tensor]) -> bool:
        """Whether evaluations that use these tensors depend on no others, and use what the first one used."""
        own, found = set(map(id, self._actual)), set(map(id, tensors))
        known = self.call.named or all(id(x) in own for x in tensors if x.requires_grad)
        return known and all(id(x) in found for x in self._used_first)

    @property
    def found(self) -> list[Tensor | None]:
        """The cotangents, but for those of parameters that no evaluation used: None, as by back-propagation."""
        if not self._pulled:
            return [*self.cotangents]
        return [total if i in self._used else None for i, total in enumerate(self.cotangents)]


def _refuse_shared_graphs(error: RuntimeError, call: Call) -> None:
    """Raise in words of ours if the error is that a graph was used a second time, or was written to."""
    if isinstance(error, GradientError):
        return
    if "a second time" in str(error):
        raise GradientError(
            f"{call}: {call.func} uses a tensor that was computed before this evaluation, and that its first one "
            "neither used nor computed. Evaluations cannot share its graph. Compute it in each of them; or before "
            "the solve, and name it: adjoint_params=(*func.parameters(), x, ...)."
        ) from error
    if "modified by an inplace operation" in str(error):
        raise GradientError(
            f"{call}: a tensor that {call.func} uses has been modified by an inplace operation since its graph was "
            f"built, such as by an optimizer's step. Go backward before that. If {call.func} does it, let it make a "
            "new tensor instead; or, of an ODE, have one graph at a time by adjoint_options={'graph': 'stage'} without "
            "'memory'."
        ) from error


# A way out of what a replay cannot do.
BY_HOST = (
    "differentiate with the host's own function, as adjoint_method='aca' does with {'memory': 'graphs'} where neither "
    "event_fn nor adjoint_params are given"
)


def check_hooks(given: Iterable[Tensor], call: Call) -> None:
    """Raise if func has put hooks on what it was ``given``."""
    if any(map(has_hooks, given)):
        refuse_hooks(call)


def refuse_hooks(call: Call) -> NoReturn:
    """Raise where func puts hooks on what it is given."""
    raise GradientError(
        f"{call}: {call.func} puts a hook on the state y itself. By back-propagation it would see the gradient of that "
        "state from all that comes after it, which no single evaluation has. Put it on a view, z = y.view_as(y), to "
        f"see what comes through {call.func}; or {BY_HOST}."
    )


def refuse_written(call: Call) -> NoReturn:
    """Raise where func writes to what it is given."""
    raise UnsupportedError(
        f"{call}: {call.func} changed the state y in place, or its time, so the replay could not start from "
        "it again. Make a new tensor of it instead."
    )


def is_dense(x: Tensor) -> bool:
    """Whether a tensor is none of the sparse ones."""
    return x.layout is _DENSE


def is_one_of(x: Tensor, tensors: Iterable[Tensor]) -> bool:
    """Whether x is one of some tensors, by identity."""
    return any(x is y for y in tensors)


def edges_from(front: Iterable[Edge], ends: Container[Edge] = ()) -> Iterator[Edge]:
    """The nodes and their outputs that graphs lead to, up to some ``ends``.

    The nearest first: a graph may be that of all that came before.
    """
    waiting, seen = deque(front), set()
    while waiting:
        edge = waiting.popleft()
        if edge[0] is None or edge in seen:
            continue
        seen.add(edge)
        yield edge
        if edge not in ends:
            waiting.extend(edge[0].next_functions)


def leaf_at(edge: Edge) -> Tensor | None:
    """The leaf that an edge leads to, if it does."""
    return getattr(edge[0], "variable", None)


def place_of(x: Tensor) -> Any:
    """What a tensor is known by in a graph, be it a leaf or not."""
    return id(x) if x.grad_fn is None else (x.grad_fn, x.output_nr)


def places_from(front: Iterable[Edge], ends: Container[Edge] = ()) -> Iterator[Any]:
    """What the tensors are known by that graphs lead to."""
    for edge in edges_from(front, ends):
        leaf = leaf_at(edge)
        yield edge if leaf is None else id(leaf)


def node_of(x: Tensor) -> Any:
    """The node at which graphs of a tensor begin that requires a gradient."""
    if x.grad_fn is not None:
        return x.grad_fn
    with torch.enable_grad():
        # Sparse tensors have no views.
        other: Any = x.view_as(x) if is_dense(x) else x.clone()
        return other.grad_fn.next_functions[0][0]


def leads_to(x: Tensor, others: Sequence[Tensor]) -> bool:
    """Whether the graph of a tensor leads to another one of them."""
    if x.grad_fn is None:
        return False
    places = {place_of(y) for y in others if y is not x}
    return any(place in places for place in places_from(x.grad_fn.next_functions))


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """The tensors of tuples, lists and dictionaries in each other."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for part in tree:
            yield from tensors_of(part)
    elif isinstance(tree, dict):
        yield from tensors_of(list(tree.values()))


@contextmanager
def _exchanged(stand_ins: dict[int, Tensor]) -> Iterator[None]:
    with uncompiled(), _Exchanged(stand_ins):
        yield


class _Exchanged(TorchFunctionMode):
    """Operations on some tensors, by identity, are done on their stand-ins."""

    def __init__(self, stand_ins: dict[int, Tensor]):
        super().__init__()
        self._stand_ins = stand_ins

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*self._exchanged(args), **self._exchanged(kwargs or {}))

    def _exchanged(self, tree: Any) -> Any:
        if isinstance(tree, Tensor):
            return self._stand_ins.get(id(tree), tree)
        if isinstance(tree, dict):
            return {key: self._exchanged(part) for key, part in tree.items()}
        return type(tree)(map(self._exchanged, tree)) if type(tree) in (tuple, list) else tree
