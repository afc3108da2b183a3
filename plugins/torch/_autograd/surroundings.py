"""What evaluations of func read and change besides their arguments, such that a replay finds it as the solve did.

That is autocast; the tensors of its modules, to which ``torch.func.functional_call`` may lend others for the time of a
solve; what it refers to; and what evaluations change, its side state.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from steptape.compat._torch import uncompiled
from steptape.compat._torch_graphs import WritesAgain
from steptape.compat._torch_hooks import hooks_passed_by
from steptape.torch._autograd.constants import Constants, forget, is_differentiable, is_plain
from steptape.torch._autograd.draws import Draws, as_they_were, drawn_again, draws_of
from steptape.torch._autograd.gained import Gained
from steptape.torch._autograd.graph import is_one_of
from steptape.torch._autograd.held import Held
from steptape.torch._autograd.modules import all_of, modules_of
from steptape.torch._autograd.side import Note, SideState
from steptape.torch._autograd.snapshot import Place, Snapshot, cut, given_back, kept, restore


class FirstValues(NamedTuple):
    """What func returned in the first evaluation, from a ``note`` of what evaluations change.

    ``around``: makes the solve it is of, with each evaluation of func enclosed. ``derivatives``: what is known of them.
    ``left``: the tensors of modules after the last evaluation, where evaluations put others in their place.
    """

    note: Note
    values: Sequence[Tensor]
    around: Callable[[Callable[[Callable[[], Any]], Any]], Any]
    derivatives: Sequence[Tensor] | None = None
    left: Sequence[Snapshot] = ()


class Surroundings:
    """All of it as it is when a solve of ``func`` begins; ``side``: what evaluations change; ``autocast``: if so.

    ``modules``: all of func's, and of those; ``lent``: their tensors. ``first``: the first evaluation, which others
    need not agree with where func has come to refer to something else in the solve; without meaning where it has not.
    ``draws_anew``: whether a replay drew random numbers that are no longer those of the solve.
    """

    def __init__(self, device: torch.device, func: Any = None):
        self._func = func
        self.note_modules()
        self.side = SideState(device, [x for module in self.modules for x in module._buffers.values() if x is not None])
        self.first: FirstValues | None = None
        own = [x for x in self.parameters if not is_lazy(x)]
        self._versions = [(x, x._version) for x in own if not x.is_inference()]
        # The buffers as the solve left them, unless they are large.
        self._after: Note | None = None
        self._writes: list[int] = []
        self._frozen = [x for x in own if not x.requires_grad and x.is_leaf]
        # The weights that the solve wrote to, and what it left there.
        self._written: list[tuple[Tensor, Tensor]] = []
        self._held: Held | None = None
        # Where the solve's own evaluations put something.
        self._set: frozenset[Place] = frozenset()
        self._constants = Constants((), ())
        # Generators that were drawn from while it was solved, other than those of the side state.
        self._drawn: list[Draws] = []
        self.draws_anew = False
        self._device = device
        self.autocast = torch.is_autocast_enabled(device.type)
        self._dtype = torch.get_autocast_dtype(device.type)
        self._cached = torch.is_autocast_cache_enabled()

    def note_modules(self) -> None:
        """Take note of func's modules and of their tensors as they are now."""
        self.modules = all_of(modules_of(self._func))
        self.lent = self._tensors_now()

    def _tensors_now(self) -> list[Snapshot]:
        """What holds the parameters and buffers of the modules."""
        holders = [one for module in self.modules for one in (module._parameters, module._buffers)]
        # Those of a scripted module are no dictionaries, and cannot be lent others.
        return [Snapshot.of(one) for one in holders if one and isinstance(one, dict)]

    @property
    def parameters(self) -> list[Tensor]:
        """Of all modules; a lazy one has them once it is evaluated."""
        return [x for module in self.modules for x in module._parameters.values() if x is not None]

    @property
    def autocast_settings(self) -> tuple[Any, ...] | None:
        """Those of the autocast state that func ran under, if any."""
        return (self._device.type, self._dtype, True, self._cached) if self.autocast else None

    def around_func(self) -> AbstractContextManager[Any]:
        """A context, inside that of ``replayed``, with the autocast state that func ran under."""
        settings = self.autocast_settings
        autocast = nullcontext() if settings is None else torch.autocast(*settings)
        return self._writing_again(autocast) if self._written else autocast

    @contextmanager
    def _writing_again(self, autocast: AbstractContextManager[Any]) -> Iterator[None]:
        """With what evaluations write to weights that hold it already, which is no change to graphs."""
        with autocast, uncompiled(), WritesAgain(self._written):
            yield

    @contextmanager
    def looked_at(self) -> Iterator[None]:
        """A block with evaluations that are none of the solve's: they leave what they change as it was.

        Autocast keeps no copies of weights in it, which the solve would use again.
        """
        referred = [*self._held.snapshots, *self._tensors_now()] if self._held else ()
        queues = self._held.queues if self._held else ()
        with self.side.kept(), drawn_again([*self._drawn, *queues]), kept(referred):
            if not self.autocast:
                yield
                return
            with torch.autocast(self._device.type, self._dtype, True, cache_enabled=False):
                yield

    @contextmanager
    def replayed(self, changed: bool, params: Sequence[Tensor] = ()) -> Iterator[None]:
        """A block that replays, after which all is as before it.

        Without autocast, since the host writes its own arithmetic in operations that autocast leaves alone. The hooks
        of ``params`` do not see the parts of their gradients. ``changed``: whether evaluations change anything.
        """
        without_autocast = torch.autocast(self._device.type, enabled=False)
        frozen, thawed = [p for p in params if not p.requires_grad], [p for p in self._frozen if p.requires_grad]
        written = self._after is not None and self.side.is_written_to(self._after, self._writes)
        keep = self.side.kept() if changed or written else nullcontext()
        with without_autocast, keep, drawn_again(self._drawn) as draws, hooks_passed_by(params):
            if written and self._after is not None:
                self.side.set(self._after)
            # Whether they required one in the solve is what its graph goes by.
            _require_gradients(frozen, True)
            _require_gradients(thawed, False)
            try:
                yield
                self.draws_anew = not all(one.holds for one in draws)
            finally:
                _require_gradients(frozen, False)
                _require_gradients(thawed, True)

    def compare(self, before: Held, holds: bool) -> None:
        """After a solve; if all is the same as ``before``, and func ``holds`` the same, forget the first evaluation."""
        self._drawn = [] if holds else before.drawn
        left = self._tensors_now() if any(one.changes() for one in self.lent) else ()
        self.first = self.first._replace(left=left) if self.first and (left or not holds) else None

    def hold(
        self, before: Held, holds: bool, params: Sequence[Tensor], unused: Sequence[Tensor], named: bool
    ) -> list[Tensor]:
        """Take what func refers to now for what the solve left; the tensors that are new, and have no history.

        ``before``: what it referred to before the solve, of which nothing is held any more, but for where it ``holds``
        still. Nor is what was computed elsewhere than the ``params``: an earlier solve's solution would hold that
        solve, and so on. Of what has no gradient, as others are ``named``, its values are. ``unused``: those of the
        parameters that the first evaluation does not depend on, but may compute with.
        """
        known = set(map(id, before.tensors))
        self._written = [(x, x.detach().clone()) for x, version in self._versions if x._version != version]
        self._after, self._writes = self.side.small_note(), self.side.writes
        changed = () if holds else before.snapshots
        self._set = frozenset((id(one.holder), key) for one in changed for key in one.changes())
        held = before if holds else Held(self._func)
        tensors = held.tensors
        constants = [*(x for x in (*tensors, *self._frozen) if not x.requires_grad), *unused]
        self._constants = Constants(filter(is_plain, constants), held.arrays)
        held.let_go([x for x in tensors if x.grad_fn is not None and not is_one_of(x, params)], keep_values=named)
        self._held = held
        return [x for x in tensors if id(x) not in known and not x.requires_grad and is_differentiable(x)]

    def keeps_constants(self, before: Held, evaluate: Callable[[], Any]) -> bool:
        """Whether what func, as it was ``before``, computes and keeps in an evaluation has no history with a graph."""
        known = set(map(id, before.tensors))
        with before.as_it_was(self.lent), torch.enable_grad(), uncompiled():
            evaluate()
            new = [x for x in Held(self._func, self.side.followed).tensors if id(x) not in known]
            if not any(x.requires_grad for x in new):
                return bool(new)
            evaluate()
            still = set(map(id, Held(self._func, self.side.followed).tensors))
        # What each evaluation puts in the place of another is not kept for it.
        return not any(x.requires_grad for x in [x for x in new if id(x) in still] or new)

    def let_go(self) -> None:
        """After the last backward pass, what func referred to is not held."""
        if self._held is not None:
            self._held.clear()
        self._held, self._written, self._drawn, self.first, self._after = None, [], [], None, None
        self._constants = Constants((), ())

    @contextmanager
    def as_solved(self) -> Iterator[None]:
        """A block in which func has the tensors that it had in the solve, and what else it referred to after it."""
        held = (*self._held.snapshots, *self._held.values) if self._held else ()
        lengths, queues = (self._held.lengths, self._held.queues) if self._held else ((), ())
        grown = [(x, one.size) for one in lengths if (x := one.container) is not None]
        before = given_back([*self.lent, *held], self._set)
        with before, cut(grown), as_they_were(queues), self._constants.given_back():
            yield


class Untouched:
    """func before it is evaluated: what it ``held``, the tensors of its modules, and a ``note`` of what it changes.

    ``gained``: what it has come to hold since.
    """

    def __init__(self, surroundings: Surroundings, func: Any):
        self._func, self.held, self.note = func, Held(func), surroundings.side.note()
        self.side, self._lent = surroundings.side, surroundings.lent
        self._take_note(self.side.buffers)

    def _take_note(self, buffers: Sequence[Tensor]) -> None:
        of_side = set(map(id, self.side.buffers))
        tensors = [x for x in self.held.tensors if id(x) not in of_side]
        self._constants = Constants((x for x in tensors if is_plain(x) and not x.requires_grad), self.held.arrays)
        self.gained = Gained([*tensors, *buffers], self.held, self._lent)

    def after_look(self, held: Held) -> Untouched:
        """The same after an evaluation, but for what func refers to now, which is ``held``.

        Buffers that the evaluation wrote to are no gain of others.
        """
        now, written = copy.copy(self), self.gained.written
        now.held = held
        now._take_note([x for x in self.side.buffers if not is_one_of(x, written)])
        return now

    def let_go(self) -> None:
        """Hold nothing of it but what others hold."""
        self.note, self._constants, self.gained = (), Constants((), ()), Gained((), self.held)

    @property
    def holds(self) -> bool:
        """Whether func refers to the same, and its modules have the same tensors; buffers may have been written to."""
        of_side = all(is_one_of(x, self.side.buffers) for x in self.gained.written)
        return of_side and self.held.holds and all(one.holds for one in self._lent)

    def follow(self, after: Note) -> Note:
        """Have the side state follow generators that an evaluation drew from; its state ``after`` that, with theirs."""
        drawn = self.held.drawn
        if not drawn:
            return after
        self.side.followed = [one.generator for one in drawn]
        self.held.leave(self.side.followed)
        count, now = len(self.side.own), [draws_of(one.generator) for one in drawn]
        self.note = (*self.note[:count], *(one.coded for one in drawn), *self.note[count:])
        for one in drawn:
            one.restore()
        return (*after[:count], *(one.coded for one in now), *after[count:])

    @property
    def held_now(self) -> Held:
        """What func refers to now."""
        return Held(self._func, self.side.followed)

    @contextmanager
    def kept_now(self) -> Iterator[None]:
        """A block after which func refers to the same as before it, and tensors of no history hold the same."""
        now = self.after_look(self.held_now)
        with now.held.as_it_was(), drawn_again(self.held.queues):
            try:
                yield
            finally:
                now._constants.restore()

    def made_one_of(self, tensors: Iterable[Tensor], held: Held) -> bool:
        """Whether func, which refers to what is ``held`` now, has made one of these leaves."""
        before = {id(x) for x in (*self.held.tensors, *(x for one in self._lent for x in one.values.values()))}
        own = (x for module in modules_of(self._func) for x in module.parameters())
        now = {id(x) for x in (*held.tensors, *own)}
        return any(x.is_leaf and id(x) in now - before for x in tensors)

    def restore(self) -> None:
        """Have all be as it was."""
        self.held.restore()
        self._constants.restore()
        restore(self._lent)
        for x in self.side.buffers:
            forget(x)
        self.side.set(self.note)


def _require_gradients(params: Sequence[Tensor], required: bool) -> None:
    for p in params:
        p.requires_grad_(required)
