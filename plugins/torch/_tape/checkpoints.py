"""Which states a tape keeps and where, and the others taken again: a plan of a few states for a whole solve.

Source: the plan is ``steptape._plan``, after Griewank (1992) and Stumm and Walther (2010).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from steptape._errors import OptionError
from steptape._plan import Keeper, reversal
from steptape.torch._tape.graphs import Graphs
from steptape.torch._tape.ledger import Token
from steptape.torch._tape.tape import State, Tape, sample
from steptape.torch._tape.transfer import fetched, moved


@dataclasses.dataclass(frozen=True)
class Keep:
    """``checkpoints``: at most so many states (None: all); ``device``: where (None: where they are); ``graph``.

    ``interpolants``: that of every step as well. ``lean``: the solve may leave out what no one looks at. ``memory``:
    states alone, graphs as well, or what fits into so many bytes. ``counts``: count what graphs save. ``compile``: how
    the steps of a replay are compiled, by the arguments of ``torch.compile``; None: not at all.
    """

    checkpoints: int | None = None
    device: torch.device | None = None
    graph: Literal["step", "stage"] = "step"
    interpolants: bool = False
    lean: bool = True
    memory: Literal["states", "graphs"] | int = "states"
    counts: bool = False
    compile: dict[str, Any] | None = None

    def for_dense_output(self) -> Keep:
        """The same where steps are not replayed but their interpolants read: all of them, unless states are few."""
        return self if self.checkpoints else dataclasses.replace(self, checkpoints=1, interpolants=True)


class KeptStates:
    """The ``states`` that are kept, by the step they start, as steps are accepted one after the other.

    ``last``: that of the last step, kept or not; empty before the first.
    """

    def __init__(self, keep: Keep, graphs: Graphs | None = None):
        self._device, self._graphs = keep.device, graphs
        self._ledger = graphs.ledger if graphs else None
        self._keeper = Keeper(keep.checkpoints)
        self.states: dict[int, State] = {}
        self.last: State = ()
        self._tokens: dict[int, list[Token]] = {}

    def offer(self, step: int, state: State) -> None:
        """Keep the state at which a step starts, and let go of another if one must."""
        self.last = state
        self.states[step] = moved(state, None if step == 0 else self._device)
        if self._ledger is not None:
            if step == 0:
                # The fingerprints, and the time at which the solve ends.
                self._ledger.spend(2 * sample(state[0]).nbytes + 64)
            self._tokens[step] = [self._ledger.token(x) for x in state]
        self._drop(self._keeper.offer(step))
        self._fit()

    def count(self, tensors: Iterable[Tensor]) -> None:
        """Count what else is held of the solve."""
        if self._ledger is not None:
            for x in tensors:
                self._ledger.add(x)
            self._fit()

    def spend(self, size: int) -> None:
        """Count so many bytes of other numbers."""
        if self._ledger is not None:
            self._ledger.spend(size)
            self._fit()

    @property
    def slots(self) -> int | None:
        """How many states are kept at most; None: all."""
        return self._keeper.slots

    def _drop(self, step: int | None) -> None:
        if step is not None:
            del self.states[step]
            self._tokens.pop(step, None)

    def _fit(self) -> None:
        """Let go of graphs, and then of states, as far as there is no room for them."""
        ledger, graphs = self._ledger, self._graphs
        if ledger is None or graphs is None:
            return
        while not ledger.has_room(0) and graphs.let_go():
            pass
        while not ledger.has_room(0) and len(self.states) > 1:
            self._drop(self._keeper.shrink())
        if not ledger.has_room(0):
            raise OptionError(
                f"odeint_adjoint(..., adjoint_options={{'memory': {ledger.limit}}}): what there is of "
                f"each step besides its state takes more than these {ledger.limit} bytes alone. Give a larger size."
            )


def states_backward(
    tape: Tape, device: torch.device, advance: Callable[[int, State], State]
) -> Iterator[tuple[int, State]]:
    """All steps of a tape, the last one first, each with the state it starts from, on ``device``.

    ``advance(n, state)``: the state at the end of step n, for those that are not kept.
    """
    if len(tape.states) == tape.length:
        yield from fetched(tape.states, reversed(range(tape.length)), device)
        return
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
