"""The tape of a solve: the scalars of every accepted step, and the states that the checkpoint plan keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from steptape.torch._autograd.graph import tensors_of
from steptape.torch._autograd.side import Note

# Where a step starts: y, and what it cannot compute from y, such as the slopes of earlier steps, the latest first.
State = tuple[Tensor, ...]
T = TypeVar("T", bound="Tape")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tape:
    """N accepted steps.

    ``length``: N. ``states``: those that are kept, by the step they start, in at most ``slots`` slots (None: no limit).
    ``step_of_output``: for each output after the first, the step it lies in. ``fingerprints``: samples of the state at
    which the last step starts, and of the last output. ``rejected``: how many tries there were besides. ``notes``: what
    evaluations change besides, at each step or query; empty if the solve changed nothing.
    """

    WATCHED: ClassVar[tuple[str, ...]] = ("states", "fingerprints")

    length: int
    states: dict[int, State]
    slots: int | None
    step_of_output: Sequence[int]
    fingerprints: Tensor
    rejected: int
    notes: Sequence[Any]

    @property
    def made(self: T) -> T:
        """Itself."""
        return self

    @property
    def changes(self) -> bool:
        """Whether evaluations change anything besides."""
        return bool(self.notes)

    @property
    def states_kept(self) -> int:
        """How many states are held, with those of the dense output."""
        return len(self.states) + sum(map(len, getattr(self, "interpolants", ())))

    def held(self) -> list[Tensor]:
        """All tensors on the tape, each once."""
        return list(
            {id(x): x for x in tensors_of([getattr(self, field.name) for field in dataclasses.fields(self)])}.values()
        )

    def emptied(self: T) -> tuple[T, list[Tensor]]:
        """The tape with numbers in place of the tensors that autograd must watch over, and these, each once."""
        places: dict[int, int] = {}
        tensors: list[Tensor] = []

        def number(x: Tensor) -> int:
            if id(x) not in places:
                places[id(x)] = len(tensors)
                tensors.append(x)
            return places[id(x)]

        return self._with(lambda tree: _mapped(Tensor, number, tree)), tensors

    def refilled(self: T, tensors: Sequence[Tensor]) -> T:
        """An emptied tape with its tensors again."""
        return self._with(lambda tree: _mapped(int, tensors.__getitem__, tree))

    def _with(self: T, change: Callable[[Any], Any]) -> T:
        return dataclasses.replace(self, **{name: change(getattr(self, name)) for name in self.WATCHED})


@dataclasses.dataclass(frozen=True, kw_only=True)
class OdeTape(Tape):
    """Steps in the host's increasing time, of which the notes are those before each step's first evaluations.

    ``nodes``: the N + 1 ends of the steps. ``sizes``: h_n, N. ``times``: of the evaluations for each step, (N, s), but
    empty where the host's own step finds them again. ``outputs``: the times of the outputs after the first.
    ``evaluates_first_stage``: whether a step does, or takes over the last stage of the step before. ``moves_with``:
    what a node moves with, t[0] (0) or entry i of the points (i + 1). ``settled``: whether the first evaluation alone
    changed anything besides. ``interpolants``: where the dense output was asked for, that of each step, (5, numel): y
    by powers of the relative place in the step.
    """

    WATCHED = (*Tape.WATCHED, "nodes", "sizes", "times", "outputs", "interpolants")

    nodes: Tensor
    sizes: Tensor
    times: Tensor
    outputs: Tensor
    evaluates_first_stage: Sequence[bool]
    moves_with: Sequence[int]
    settled: bool
    interpolants: Sequence[Tensor]


class SdeStep(NamedTuple):
    """An accepted step: the times it goes through, two or, where it is the two halves of a try, three.

    ``query``: the first of its queries of the Brownian object, by their order in the solve.
    """

    times: tuple[Tensor, ...]
    query: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SdeTape(Tape):
    """Steps of an SDE's solve, of which the notes are those at each query of the Brownian object.

    ``ts``: the times of the outputs, of which the steps' may be views. ``answers``: of each query the increment and the
    Lévy areas, or a few entries of each. ``note``: what evaluations change besides, as the solve began, None if they
    did not. ``unnoted``: whether they changed something of which there are no notes.
    """

    WATCHED = (*Tape.WATCHED, "ts", "answers")

    ts: Tensor
    steps: Sequence[SdeStep]
    answers: Sequence[tuple[Tensor, ...]]
    note: Note | None
    unnoted: bool


class Later:
    """The tape of a solve whose graph is kept: made where it is asked for after all.

    ``make``: how. ``changes``: whether evaluations change anything besides. ``known``: what is known of it before.
    """

    def __init__(self, length: int, make: Callable[[], Tape], changes: bool = False, **known: Any):
        self.length, self.changes, self._make, self._known = length, changes, make, known
        self._made: Any = None

    @property
    def made(self) -> Any:
        """The tape."""
        self._made = self._made or self._make()
        return self._made

    def __getattr__(self, name: str) -> Any:
        return self._known[name] if self._made is None and name in self._known else getattr(self.made, name)

    def emptied(self) -> tuple[Later, list[Tensor]]:
        """Itself: whoever makes it sees whether something has been changed in place."""
        return self, []

    def refilled(self, tensors: Sequence[Tensor]) -> Later:
        """Itself."""
        return self


def _mapped(kind: type, change: Callable[[Any], Any], tree: Any) -> Any:
    """A tree with its leaves of a kind changed; the keys of dictionaries are no leaves."""
    if isinstance(tree, kind):
        return change(tree)
    if isinstance(tree, dict):
        return {key: _mapped(kind, change, part) for key, part in tree.items()}
    return tuple([change(part) if isinstance(part, kind) else _mapped(kind, change, part) for part in tree])


_ENTRIES = 64


def sample(y: Tensor) -> Tensor:
    """A few entries of a state, to know it by."""
    flat = y.detach().reshape(-1)
    return flat[:: max(1, len(flat) // _ENTRIES)][:_ENTRIES].clone()


def fingerprints(last: State, end: Tensor) -> Tensor:
    """Of the state at which the last step starts, and of the last output; none without steps."""
    return torch.stack([sample(last[0]), sample(end)]) if last else end.new_zeros(0)
