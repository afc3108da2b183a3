"""What was aimed at, next to what was measured. Nothing is asserted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from benchmarks.fields import SMALL
from benchmarks.measure import Speed
from benchmarks.memory import Memory
from benchmarks.peers import HOST_ADJOINT, OURS

_CHECKPOINTS, _STAGE = f"{OURS}, checkpoints=8", f'{OURS}, graph="stage"'
_ADJOINTS = ("zuko", "torchode, joint backsolve", "torchode, backsolve", "torchdyn, adjoint")
_AUTOGRADS = ("torchode, autograd", "torchdyn, autograd")
_RANDOM = ", random weights"
_OVER_HOST = {"small": 0.85, "large": 1.1, "100 outputs": 1.05}
_OVER_HOST_ADJOINT = {"small": 3.5, "large": 3, "100 outputs": 12, "50,000 parameters": 5}


@dataclasses.dataclass(frozen=True)
class Target:
    """One aim: ``measured`` should be at most, or at least, ``bound``."""

    what: str
    measured: float
    bound: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether it is."""
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound


def targets(speeds: Sequence[Speed], memories: Sequence[Memory]) -> list[Target]:
    """All targets whose methods were measured."""
    speed = {(row.setup, row.method): row for row in speeds if not row.without}
    memory = {(row.setup, row.method): row for row in memories if not row.without}
    return [*_of_speed(speed), *_of_memory(memory)]


def _of_speed(rows: dict[tuple[str, str], Speed]) -> Iterator[Target]:
    for setup, method in rows:
        if method != OURS:
            continue
        ours, kind = rows[setup, OURS].ratio, setup.removesuffix(_RANDOM)
        times = {name: row.ratio / ours for (s, name), row in rows.items() if s == setup}
        if kind in _OVER_HOST_ADJOINT and HOST_ADJOINT in times:
            aim = _OVER_HOST_ADJOINT[kind]
            yield Target(f"{setup}: times faster than {HOST_ADJOINT}", times[HOST_ADJOINT], aim, at_least=True)
        if kind not in _OVER_HOST:
            continue
        yield Target(f"{setup}: time over odeint's", ours, _OVER_HOST[kind])
        for peer in (name for name in _ADJOINTS if name in times):
            yield Target(f"{setup}: times faster than {peer}", times[peer], 1, at_least=True)
        for peer in (name for name in _AUTOGRADS if name in times):
            yield Target(f"{setup}: time over {peer}", 1 / times[peer], 1.3)


def _of_memory(rows: dict[tuple[str, str], Memory]) -> Iterator[Target]:
    for (setup, method), row in rows.items():
        states = row.held / row.state
        outputs = 100 if "outputs" in setup else SMALL.outputs
        if method == OURS:
            yield Target(f"{setup}: states held", states, row.accepted + outputs + 2)
            for peer in _AUTOGRADS:
                if (setup, peer) in rows:
                    yield Target(f"{setup}: bytes held over {peer}", row.held / rows[setup, peer].held, 0.1)
        if method == _CHECKPOINTS:
            yield Target(f"{setup}: states held, checkpoints=8", states, 8 + outputs + 2)
        if method == _STAGE:
            yield Target(f'{setup}: backward peak in evaluations, graph="stage"', row.backward / row.evaluation, 1)
    for setup in dict.fromkeys(setup for setup, _ in rows):
        least = min((row.rss for (s, method), row in rows.items() if s == setup and method.startswith(OURS)), default=0)
        others = [row.rss for (s, method), row in rows.items() if s == setup and not method.startswith(OURS)]
        if least and others:
            yield Target(f"{setup}: least peak memory over the least of all others", least / min(others), 1)
