"""Which states a tape keeps and where, and the others taken again: a plan of a few states for a whole solve.

Source: the plan is ``steptape._plan``, after Griewank (1992) and Stumm and Walther (2010).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Literal

import torch

from steptape._plan import Keeper, reversal
from steptape.torch._tape.tape import State, Tape


@dataclasses.dataclass(frozen=True)
class Keep:
    """``checkpoints``: at most so many states (None: all); ``device``: where (None: where they are); ``graph``.

    ``interpolants``: that of every step as well. ``lean``: the solve may leave out what no one looks at.
    """

    checkpoints: int | None = None
    device: torch.device | None = None
    graph: Literal["step", "stage"] = "step"
    interpolants: bool = False
    lean: bool = True

    def for_dense_output(self) -> Keep:
        """The same where steps are not replayed but their interpolants read: all of them, unless states are few."""
        return self if self.checkpoints else dataclasses.replace(self, checkpoints=1, interpolants=True)


class KeptStates:
    """The ``states`` that are kept, by the step they start, as steps are accepted one after the other.

    ``last``: that of the last step, kept or not; empty before the first.
    """

    def __init__(self, keep: Keep):
        self._device = keep.device
        self._keeper = Keeper(keep.checkpoints)
        self.states: dict[int, State] = {}
        self.last: State = ()

    def offer(self, step: int, state: State) -> None:
        """Keep the state at which a step starts, and let go of another if one must."""
        self.last = state
        self.states[step] = moved(state, None if step == 0 else self._device)
        dropped = self._keeper.offer(step)
        if dropped is not None:
            del self.states[dropped]


def moved(state: State, device: torch.device | None) -> State:
    """A state on a device, itself if it is there."""
    return state if device is None else tuple(x.to(device) for x in state)


def states_backward(
    tape: Tape, device: torch.device, advance: Callable[[int, State], State]
) -> Iterator[tuple[int, State]]:
    """All steps of a tape, the last one first, each with the state it starts from, on ``device``.

    ``advance(n, state)``: the state at the end of step n, for those that are not kept.
    """
    states = dict(tape.states)
    for move, n in reversal(list(states), tape.length, tape.slots):
        if move == "load":
            state = moved(states[n], device)
        elif move == "advance":
            state = advance(n, state)
        elif move == "keep":
            states[n] = state
        elif move == "drop":
            del states[n]
        else:
            yield n, state
