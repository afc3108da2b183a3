"""What a solve did: counts, memory and time of each replayed solve, for those who ask."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from steptape.compat._torch import transforms_active
from steptape.torch._autograd.caches import CacheWatch
from steptape.torch._autograd.side_state import SideState
from steptape.torch._replay.function import Replay
from steptape.torch._replay.transforms import solve_in_transforms


@dataclasses.dataclass
class SolveStats:
    """One solve and its backward passes; several backward passes, over a retained graph, add up.

    ``method``: the solver. ``accepted_steps``, ``rejected_steps``: its tries. ``evaluations_forward``,
    ``evaluations_backward``: calls of func, or of an sde's methods (f, g, g_prod, ...), each of which counts as one.
    ``states_kept``: the states on the tape, that of ``y0`` included, and five for each step's dense output.
    ``bytes_held``: what the tape holds from the forward to the backward pass, beyond the inputs and the solution; 0
    where no gradient is asked for. ``seconds_forward``, ``seconds_backward``: wall time; a GPU's work is waited for.
    ``backward_passes``: how many there were so far.
    """

    method: str
    accepted_steps: int = 0
    rejected_steps: int = 0
    evaluations_forward: int = 0
    evaluations_backward: int = 0
    states_kept: int = 0
    bytes_held: int = 0
    seconds_forward: float = 0.0
    seconds_backward: float = 0.0
    backward_passes: int = 0

    def __str__(self) -> str:
        forward = f"{self.evaluations_forward} evaluations in {_seconds(self.seconds_forward)}"
        backward = f"{self.evaluations_backward} in {_seconds(self.seconds_backward)}"
        return (
            f"{self.method}: {self.accepted_steps} steps accepted, {self.rejected_steps} rejected; {forward}, "
            f"backward {backward if self.backward_passes else 'not run'}; {self.states_kept} states kept, "
            f"{_bytes(self.bytes_held)} held"
        )


class Solves(list[SolveStats]):
    """The solves of a ``record_solves`` block, in the order they ended; printed one per line."""

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "no solves"


_RECORDINGS: ContextVar[tuple[Solves, ...]] = ContextVar("steptape_recordings", default=())


@contextmanager
def record_solves() -> Iterator[Solves]:
    """Record what each solve in the ``with`` block does: ``with record_solves() as solves: ...; print(solves)``.

    Yields:
        A list of ``SolveStats``, to which each solve that ends is added, in its order. The backward pass of a solve is
        added to the solve's own entry, wherever and whenever it runs, after the block as well.

    Blocks nest: a solve is recorded by each one around it, in one entry. Recording counts the calls of func and reads
    the clock, on a GPU at the price of waiting for its work; outside of a block a solve pays for one look-up.

    Supports:
        Solves of ODEs and SDEs with ``adjoint_method="aca"``, of ODEs with ``"quadrature"`` and with ``method="aca"``,
        with or without gradients, in the thread (or asynchronous task) that entered the block. Not the host's own
        adjoint, solves inside transforms of ``torch.func``, nor solves that end in an error.
    """
    solves = Solves()
    token = _RECORDINGS.set((*_RECORDINGS.get(), solves))
    try:
        yield solves
    finally:
        _RECORDINGS.reset(token)


def replay(solve: Any, y0: Tensor, t: Tensor, points: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
    """The solve as autograd or ``torch.func`` is to see it, recorded where that was asked for."""
    if transforms_active():
        return solve_in_transforms(solve, y0, t, points)
    inputs = (y0, t, points, *params)
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        method = "aca" if solve.back is None else "quadrature"
        watch = CacheWatch(f"odeint_adjoint(func, ..., adjoint_method={method!r}", "func")
        solve = dataclasses.replace(solve, watch=watch)
    solution, end = _recorded(_Recorded, solve, lambda solve: Replay.apply(solve, *inputs), inputs)
    return solution, end


def recorded_sde(solve: Any, run: Callable[[Any], tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """``run(solve)``: the solution of an SDE and its extra state at the end, recorded where that was asked for."""
    return _recorded(_RecordedSde, solve, run, inputs)


def _recorded(
    kind: type[_Recorded], solve: Any, run: Callable[[Any], tuple[Tensor, ...]], inputs: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    recordings = _RECORDINGS.get()
    if not recordings:
        return run(solve)
    recorded = kind(solve, inputs[0].device)
    outputs = run(recorded)
    recorded.finish(outputs, inputs)
    for solves in recordings:
        solves.append(recorded.stats)
    return outputs


class _Recorded:
    """A solve that notes what it does."""

    def __init__(self, solve: Any, device: torch.device):
        self._tally = _Tally(SolveStats(solve.method))
        self.stats = self._tally.stats
        self._solve = self._counted(solve)
        self._device = device
        self._held: list[Tensor] = []
        self._began = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._solve, name)

    def record(self, *inputs: Any) -> Any:
        """The solve's own record: the last it returns is the tape."""
        began = self._now()
        solved = self._solve.record(*inputs)
        self.stats.seconds_forward = self._now() - began
        self._read(solved[-1])
        return solved

    def finish(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        """After the forward pass: weigh the tape if it is held, and wait for backward passes."""
        self._tally.forward = False
        held, self._held = self._held, []
        solution = outputs[0]
        if solution.grad_fn is None or not held:
            return
        own = {_memory(x) for x in (*inputs, *outputs)}
        self.stats.bytes_held = sum(size for _, size in {_memory(x) for x in held} - own)
        solution.grad_fn.register_prehook(self._begin_backward)
        solution.grad_fn.register_hook(self._end_backward)

    def _counted(self, solve: Any) -> Any:
        return dataclasses.replace(solve, func=_Counted(solve.func, self._tally))

    def _read(self, tape: Any) -> None:
        self.stats.accepted_steps = len(tape.fresh)
        self.stats.states_kept = len(tape.kept) + sum(map(len, tape.pieces))
        self._held = [*tape.tensors(), *(state for notes in tape.notes for note in notes for state in note)]

    def _begin_backward(self, _: Any) -> None:
        self._began = self._now()

    def _end_backward(self, *_: Any) -> None:
        self.stats.seconds_backward += self._now() - self._began
        self.stats.backward_passes += 1

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class _RecordedSde(_Recorded):
    """The solve of an SDE that notes what it does."""

    def integrate(self, y0: Tensor, extra: Sequence[Tensor] | None) -> tuple[Tensor, Sequence[Tensor]]:
        """The solve where no gradient is asked for: what it tapes is not held."""
        solution, after, _ = self.record(y0, extra, SideState(y0.device, self._solve.user_sde))
        self._held = []
        return solution, after

    def _counted(self, solve: Any) -> Any:
        return solve.counted(self._tally.count)

    def _read(self, tape: Any) -> None:
        self.stats.accepted_steps, self.stats.rejected_steps = len(tape.steps), tape.rejected
        self.stats.states_kept = len(tape.kept)
        times = (time for step in tape.steps for time in step.times)
        self._held = [*tape.tensors(), *times, *(tape.note or ()), *(x for note in tape.notes for x in note)]


@dataclasses.dataclass
class _Tally:
    """Where a func's evaluations are counted: as of the forward pass, or of a backward pass."""

    stats: SolveStats
    forward: bool = True

    def count(self) -> None:
        if self.forward:
            self.stats.evaluations_forward += 1
        else:
            self.stats.evaluations_backward += 1


class _Counted:
    """A func in the host's normal form whose evaluations and rejected tries are counted."""

    def __init__(self, func: Any, tally: _Tally):
        self._func = func
        self._tally = tally

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        self._tally.count()
        return self._func(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._func, name)

    @property
    def base_func(self) -> _Counted:
        return _Counted(self._func.base_func, self._tally)

    def callback_reject_step(self, t: Tensor, y: Tensor, h: Tensor) -> None:
        self._tally.stats.rejected_steps += 1
        self._func.callback_reject_step(t, y, h)


def _memory(x: Tensor) -> tuple[int, int]:
    """The address and size in bytes of what a tensor keeps alive, which for a view is more than its entries."""
    storage = x.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _bytes(count: float) -> str:
    units = ["B", "KiB", "MiB", "GiB"]
    while count >= 1000 and len(units) > 1:
        count /= 1024
        del units[0]
    return f"{count:.3g} {units[0]}"
