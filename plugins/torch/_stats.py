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
from steptape.torch._autograd.surroundings import Surroundings
from steptape.torch._hosts.base import Solve
from steptape.torch._replay.function import run
from steptape.torch._tape.graphs import Graphs
from steptape.torch._tape.tape import Tape


@dataclasses.dataclass
class SolveStats:
    """One solve and its backward passes; several backward passes, over a retained graph, add up.

    ``method``: the solver. ``accepted_steps``, ``rejected_steps``: its tries. ``evaluations_forward``,
    ``evaluations_backward``: calls of func, or of an sde's methods (f, g, g_prod, ...), each of which counts as one.
    ``states_kept``: the states on the tape, that of ``y0`` included, and five for each step's dense output.
    ``bytes_held``: what the tape and kept graphs hold from the forward to the backward pass, beyond the inputs and the
    solution; 0 where no gradient is asked for. ``seconds_forward``, ``seconds_backward``: wall time; a GPU's work is
    waited for. ``backward_passes``: how many there were so far.
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
# Called at each evaluation of a solve that is recorded: what it raises ends the pass.
ON_EVALUATION: ContextVar[Callable[[], None] | None] = ContextVar("steptape_on_evaluation", default=None)


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

    Example:
        >>> import torch
        >>> from steptape.torch import odeint_adjoint, record_solves
        >>> y0, t = torch.ones(1, requires_grad=True), torch.tensor([0.0, 1.0])
        >>> call = dict(method="rk4", adjoint_method="aca", adjoint_params=())
        >>> with record_solves() as solves:
        ...     ys = odeint_adjoint(lambda t, y: -y, y0, t, **call)
        >>> solves[0].accepted_steps, solves[0].evaluations_forward
        (1, 4)
    """
    solves = Solves()
    token = _RECORDINGS.set((*_RECORDINGS.get(), solves))
    try:
        yield solves
    finally:
        _RECORDINGS.reset(token)


def recorded(solve: Solve, *inputs: Tensor) -> tuple[Tensor, ...]:
    """What a solve returns, differentiable in its inputs, and recorded where that was asked for."""
    recordings = _RECORDINGS.get()
    if not recordings or transforms_active():
        return run(solve, *inputs)
    meter = _Meter(solve, inputs[0].device)
    results = run(meter, *inputs)
    meter.finish(results, (*inputs, *solve.others))
    for solves in recordings:
        solves.append(meter.stats)
    return results


class _Meter:
    """A solve that notes what it does."""

    def __init__(self, solve: Solve, device: torch.device):
        self.stats = SolveStats(solve.method)
        counted: Any = solve.around(self._counted)
        self._solve = dataclasses.replace(counted, keep=dataclasses.replace(solve.keep, counts=True))
        self._device = device
        self._forward = True
        self._told = ON_EVALUATION.get()
        self._held: list[Tensor] = []
        self._in_graphs: set[tuple[int, int]] = set()
        self._began = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._solve, name)

    def storing(self, inputs: Sequence[Tensor]) -> _Meter:
        """The solve taken again, whose evaluations count as well."""
        self._solve = self._solve.storing(inputs)
        return self

    def integrate(self, *given: Tensor) -> tuple[Tensor, ...]:
        """The solve where no gradient is asked for: what it tapes is not held."""
        results, _ = self.record(given, Surroundings(self._device, self._solve.user_func))
        self._held = []
        return results

    def record(
        self, given: Sequence[Tensor], surroundings: Surroundings, graphs: Graphs | None = None
    ) -> tuple[tuple[Tensor, ...], Tape]:
        """The solve's own record."""
        began = self._now()
        results, tape = self._solve.record(given, surroundings, graphs)
        stats = self.stats
        stats.seconds_forward = self._now() - began
        stats.accepted_steps, stats.rejected_steps = tape.length, tape.rejected
        stats.states_kept = tape.states_kept
        self._held = tape.held()
        self._in_graphs = graphs.ledger.storages if graphs and graphs.ledger else set()
        return results, tape

    def finish(self, results: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        """After the forward pass: weigh the tape if it is held, and wait for backward passes."""
        self._forward = False
        held, self._held = self._held, []
        solution = results[0]
        if solution.grad_fn is None or not held:
            return
        own = {_memory(x) for x in (*inputs, *results)}
        self.stats.bytes_held = sum(size for _, size in ({_memory(x) for x in held} | self._in_graphs) - own)
        solution.grad_fn.register_prehook(self._begin_backward)
        solution.grad_fn.register_hook(self._end_backward)

    def _counted(self, evaluate: Callable[[], Any]) -> Any:
        if self._told is not None:
            self._told()
        if self._forward:
            self.stats.evaluations_forward += 1
        else:
            self.stats.evaluations_backward += 1
        return evaluate()

    def _begin_backward(self, _: Any) -> None:
        self._began = self._now()

    def _end_backward(self, *_: Any) -> None:
        self.stats.seconds_backward += self._now() - self._began
        self.stats.backward_passes += 1

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


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
