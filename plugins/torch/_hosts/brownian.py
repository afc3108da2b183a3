"""The Brownian increments of a solve: a replay is given the very ones.

They are taped: a BrownianInterval takes at least as long for a query it has answered before as for a new one, which is
about as long as the step of a small network, and an increment is as a rule no larger than a state. Under a limit on the
states, where memory is what counts, the Brownian object is asked again, and its answers are held against a few entries
of the first ones.

Every step of the host begins with its query, so that is also where a replay sets the side state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steptape._errors import GradientError, UnsupportedError, final
from steptape.torch._autograd.side import Note, SideState
from steptape.torch._tape.transfer import moved

_ENTRIES = 8


class NotingBrownian:
    """The user's Brownian object in the solve, noting what it answers.

    ``answers``: of all queries the increment and the Lévy areas it asked for, or a few entries of each where they are
    not ``taped``; the latest as they were answered. ``notes``: of the side state at each, after the answer if that is
    taped, else before, for the object to draw from. ``looks``: after how many queries the side state is no longer
    looked at if it has not changed until then. ``device``: where answers are kept; None: where they are.
    """

    def __init__(
        self,
        bm: Any,
        side: SideState,
        taped: bool,
        looks: float = math.inf,
        device: torch.device | None = None,
    ):
        self._bm, self._side, self._taped = bm, side, taped
        self._looks, self._device = looks, device
        self.answers: list[Any] = []
        self.notes: list[Note] = []
        # Of the latest answers.
        self._versions: list[Any] = []
        self._first = self._note = side.note()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bm, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        taped = self._taped
        if not taped:
            self._look()
        if torch.is_grad_enabled():
            answer = self._bm(*args, **kwargs)
        else:
            with torch.enable_grad():
                answer = self._bm(*args, **kwargs)
        if taped and self._looks > 0:
            self._look()
        self.answers.append(answer)
        self._versions.append(answer._version if isinstance(answer, Tensor) else _versions(answer))
        self.notes.append(self._note)
        return answer

    def _look(self) -> None:
        # Where nothing changes, one note serves all steps.
        self._note = self._side.note_after(self._note)
        self._looks = self._looks - 1 if self._note is self._first else math.inf

    @property
    def looks(self) -> bool:
        """Whether all notes have been taken."""
        return self._looks > 0

    def forget(self, first: int, last: int | None = None) -> None:
        """Some of the latest answers, to what a solve asked in vain."""
        settled = len(self.answers) - len(self._versions)
        del self._versions[first - settled : None if last is None else last - settled]
        del self.answers[first:last], self.notes[first:last]

    def check(self, first: int = 0) -> None:
        """Raise if one of the latest answers is nothing to be given to a replay, once no step uses it any more.

        Of those from the ``first`` on.
        """
        settled = len(self.answers) - len(self._versions)
        first = max(first, settled)
        latest, versions = self.answers[first:], self._versions[first - settled :]
        if any(x.requires_grad for x in latest if isinstance(x, Tensor)) or any(
            x.requires_grad for xs in latest if not isinstance(xs, Tensor) for x in xs
        ):
            raise UnsupportedError(
                "sdeint_adjoint(..., bm=bm, adjoint_method='aca'): its increments require a gradient, which the "
                "replay would lose. Make it of detached tensors, or differentiate with torchsde.sdeint."
            )
        if [x._version if isinstance(x, Tensor) else _versions(x) for x in latest] != versions:
            raise final(
                UnsupportedError(
                    "sdeint_adjoint(sde, ..., adjoint_method='aca'): sde changed a Brownian increment in place, so "
                    "the replay could not give it the same. Make a new tensor of it instead."
                )
            )

    def settle(self) -> None:
        """Keep of the latest answers what there is to keep."""
        self.check()
        for n in range(len(self.answers) - len(self._versions), len(self.answers)):
            tensors = _tensors(self.answers[n])
            self.answers[n] = moved(tensors, self._device) if self._taped else tuple(map(_sample, tensors))
        self._versions = []


class StillBrownian:
    """One that does not move, and leaves the user's ``bm`` and the random numbers as they are."""

    def __init__(self, bm: Any):
        self._bm = bm

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bm, name)

    def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
        shape, kind = tuple(self._bm.shape), {"dtype": self._bm.dtype, "device": self._bm.device}
        answer = [torch.zeros(shape, **kind)]
        answer += [torch.zeros(shape, **kind)] if return_U else []
        answer += [torch.zeros((*shape, shape[-1]), **kind)] if return_A else []
        return tuple(answer) if len(answer) > 1 else answer[0]


class ReplayingBrownian:
    """The Brownian object of a replay: it answers as in the solve, once ``rewind`` has said which query comes next.

    ``answers``, ``notes``: of all queries of the solve; no notes if it changed nothing. ``taped``: whether the answers
    are whole; ``device``: where they are to go.
    """

    def __init__(
        self,
        bm: Any,
        side: SideState,
        answers: Sequence[tuple[Tensor, ...]],
        notes: Sequence[Note],
        taped: bool,
        device: torch.device,
    ):
        self._bm, self._side, self._answers, self._notes = bm, side, answers, notes
        self._taped, self._device = taped, device
        self._next = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bm, name)

    def rewind(self, query: int) -> None:
        """Be ready for this query."""
        self._next = query

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        query, self._next = self._next, self._next + 1
        if self._notes:
            self._side.set(self._notes[query])
        noted = self._answers[query]
        if self._taped:
            tensors = moved(noted, self._device)
            return tensors if len(tensors) > 1 else tensors[0]
        answer = self._bm(*args, **kwargs)
        for x, entries in zip(_tensors(answer), noted, strict=True):
            if not torch.allclose(_sample(x), entries, rtol=0, atol=0, equal_nan=True):
                raise GradientError(
                    "sdeint_adjoint(..., bm=bm, adjoint_method='aca', adjoint_options={'checkpoints': ...}): the "
                    "Brownian object answered the same query otherwise than in the forward pass, so the replay would "
                    "give the gradient of another path. Leave out 'checkpoints', which tapes the increments, or pass "
                    "an object that repeats itself, such as torchsde.BrownianInterval."
                )
        return answer


def _tensors(answer: Any) -> tuple[Tensor, ...]:
    return answer if isinstance(answer, tuple) else (answer,)


def _versions(tensors: Sequence[Tensor]) -> list[int]:
    return [x._version for x in tensors]


def _sample(x: Tensor) -> Tensor:
    """A few entries of an increment, which no other increment has."""
    flat = x.detach().reshape(-1)
    return flat[:: max(1, len(flat) // _ENTRIES)][:_ENTRIES].clone()
