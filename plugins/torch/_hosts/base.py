"""What a host must give for its solves to be replayed: a third host would be another such file."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from steptape._errors import UnsupportedError
from steptape.torch._autograd.graph import Call, Parameters
from steptape.torch._autograd.looks import Traits
from steptape.torch._autograd.stored import Apart
from steptape.torch._autograd.surroundings import Surroundings, Untouched
from steptape.torch._hosts.tableau import Tableau
from steptape.torch._tape.checkpoints import Keep
from steptape.torch._tape.graphs import Graphs
from steptape.torch._tape.tape import State, Tape


def check_kind(y: Tensor, y0: Tensor, t: Tensor) -> None:
    """Raise if a state has come to another dtype or shape than that of y0, as by what broadcasts."""
    if y.dtype != y0.dtype or y.shape != y0.shape:
        raise UnsupportedError(
            f"odeint_adjoint(..., adjoint_method='aca'): the state y0 ({y0.dtype}, shape {tuple(y0.shape)}) turned "
            "into another dtype or shape on the way. Return the dtype and shape of y from func; where both are "
            f"scalars, give y0 at least the precision of t ({t.dtype})."
        )


class Timeline(NamedTuple):
    """The times of a solve, differentiable in the inputs they move with.

    ``stages``: (N, s). ``sizes``: (N,). For each output after the first: its time in ``outputs``, the ``spans`` of time
    from the start to the end of its step, which may be another number than the step's size, and its ``positions`` in
    [0, 1] there.
    """

    stages: Tensor
    sizes: Tensor
    outputs: Tensor
    spans: Tensor
    positions: Tensor

    @classmethod
    def empty(cls, like: Tensor) -> Timeline:
        """No times: of no steps, or of steps that move with no input."""
        return cls(*[like.new_zeros(0)] * 5)

    @property
    def moves(self) -> bool:
        """Whether any time depends on an input that requires a gradient."""
        return any(x.requires_grad for x in self)


class HostSteps(abc.ABC):
    """The steps of a tape as the host takes them, as part of the caller's graph if there is one."""

    @abc.abstractmethod
    def times(self, n: int, outputs: slice) -> list[Tensor]:
        """What step n and the outputs inside it are placed by and may have a gradient in."""

    @abc.abstractmethod
    def take(self, n: int, state: Sequence[Tensor], times: Sequence[Tensor], outputs: slice) -> tuple[State, State]:
        """The state at the end of step n, and y at each of the outputs inside it."""

    def inside(self, n: int, y0: Tensor, y1: Tensor, outputs: slice) -> State:
        """y at each of the outputs inside step n, where that takes its ends alone."""
        raise NotImplementedError

    @abc.abstractmethod
    def place(self, cotangents: Timeline, n: int, outputs: slice, in_times: Sequence[Tensor]) -> None:
        """Put the cotangents of ``times`` where they belong in those of the timeline."""


class Before(NamedTuple):
    """What is known of func before a solve: its ``surroundings``, and how it is ``untouched`` by the solve.

    And of the parameters those that the first evaluation used, and those that it computed and ``kept`` for the others,
    and the ``traits`` of that. ``stores``: whether func stores what it computes for someone else. ``apart``: what has
    evaluations build graphs of their own, for what they may store, if anything does.
    """

    surroundings: Surroundings
    untouched: Untouched
    used_first: Sequence[Tensor]
    kept: Sequence[Tensor]
    traits: Traits
    stores: bool
    apart: Apart | None


class Solve(abc.ABC):
    """One call of a host's function in its normal form, without the tensors that may need gradients.

    These are given in one order: y0, ``given`` of them in all, and then the parameters. ``user_func``: func as the user
    passed it. ``before``: where a gradient is asked for. ``back``: what makes the backward pass of a tape; None: its
    replay. ``method``: the name of the solver. ``begins``: whether its first evaluation may be one taken before.
    """

    call: Call
    keep: Keep
    user_func: Any
    method: str
    back: Any = None
    given: int
    # Tensors of the call besides those it is given, which are the user's own.
    others: tuple[Tensor, ...] = ()
    before: Before | None = None
    begins = False
    # Whether times are among what it is given.
    takes_times = False
    # How many of the results, the last ones, have no gradient; the others are the solution and its state at the end.
    constants: int

    @abc.abstractmethod
    def integrate(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Run the host's solver as it is: the solution, (len(t), *y0.shape), and what else it returns."""

    @abc.abstractmethod
    def record(
        self, given: Sequence[Tensor], surroundings: Surroundings, graphs: Graphs | None = None
    ) -> tuple[tuple[Tensor, ...], Tape]:
        """The same, and the tape of its accepted steps; ``graphs``: what is to keep those of the steps."""

    @abc.abstractmethod
    def evaluated(self, n: int, *given: Tensor) -> Any:
        """What the solve evaluates first (n = 0), next (1), or at the end (-1), for the given state.

        As part of the caller's graph.
        """

    @property
    def grid(self) -> Callable[..., Any] | None:
        """What lays the grid of a solve, where the caller says so: a function of 0 and what it is given."""
        return None

    def beginning_with(self, first: Callable[..., Tensor]) -> Solve:
        """The same solve, whose first evaluation is ``first(side, evaluate, y)``, if it ``begins`` so."""
        return self

    @abc.abstractmethod
    def around(self, enclose: Callable[[Callable[[], Any]], Any], first: bool = False) -> Solve:
        """The same solve, each evaluation of which is what ``enclose(evaluate)`` returns.

        ``first``: what encloses them passes on all but the first one as they are, and need not be asked about them.
        """

    def apart(self, inputs: Sequence[Tensor]) -> tuple[Solve, Apart]:
        """The same solve, whose evaluations build graphs of their own, of which what func stores is a part."""
        in_time = self.takes_times and any(x.requires_grad for x in inputs[1 : self.given])
        enclose: Any = Apart(self.call, inputs, in_time)
        return self.around(enclose), enclose

    def storing(self, inputs: Sequence[Tensor]) -> Solve:
        """The same solve from ``inputs``, of a func that stores what it computes for someone else, if not at first."""
        before = self.before
        assert before is not None
        solve: Any
        solve, apart = (self, before.apart) if before.apart else self.apart(inputs)
        return dataclasses.replace(solve, before=before._replace(stores=True, apart=apart))

    @property
    def calls_back(self) -> bool:
        """Whether the host calls functions of the user's besides, with states."""
        return False

    @property
    def in_options(self) -> list[Tensor]:
        """The tensors among its options that it is differentiable in."""
        return []

    @abc.abstractmethod
    def start(self, tape: Tape, given: Sequence[Tensor], surroundings: Surroundings) -> tuple[State, Timeline]:
        """The state that the solve starts from, and its times, as functions of what it is given."""

    @property
    @abc.abstractmethod
    def tableau(self) -> Tableau | None:
        """By which a step is taken again, stage by stage; None: as a whole, by the host."""

    @property
    @abc.abstractmethod
    def vector_field(self) -> Any:
        """func as it is evaluated when a step is taken again."""

    @property
    def bare_field(self) -> Any:
        """The same without what encloses its evaluations."""
        return self.vector_field

    @abc.abstractmethod
    def host_steps(
        self,
        tape: Tape,
        timeline: Timeline,
        given: Sequence[Tensor],
        parameters: Parameters,
        surroundings: Surroundings,
    ) -> HostSteps:
        """The steps of a tape as the host takes them."""
