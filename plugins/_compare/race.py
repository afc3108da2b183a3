"""Runs the ways to a gradient: each once, to see what it does, and then in rounds of all of them, for the time."""

from __future__ import annotations

import abc
import dataclasses
import gc
import math
import statistics
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from steptape._compare.clock import Clock, TimeUp
from steptape._compare.comparison import Comparison
from steptape._compare.rows import Row
from steptape._errors import OptionError

# Of timing: as many as fit into half of the time before memory is looked at, and the rest after it.
ROUNDS = 11
# Seconds for which more rounds are added to those of a way that takes less, but for one shorter than SHORTEST.
LEAST, SHORTEST = 0.1, 1e-3
# Letters of an error that are shown.
LONG = 600
# Of the time limit: what a reference may take, which is nobody's own gradient.
REFERENCE = 0.25


class Way(abc.ABC):
    """A way to the gradient of a problem, with what is known of it so far. ``cost``: the seconds of its first run.

    ``weight``: how much of that it takes to look at its memory. ``takes``: what a run takes by the clock.
    """

    cost = takes = 0.0
    weight = 1.5

    def __init__(self, name: str, call: str, is_discrete: bool):
        self.row = Row(name, call, is_discrete)

    @abc.abstractmethod
    def measure(self) -> Any:
        """Run it for the first time, note in ``row`` what it does, ``seconds`` among it; return the gradient."""

    @abc.abstractmethod
    def run(self) -> float:
        """Run it as a user would; the seconds that took."""

    @abc.abstractmethod
    def weigh(self) -> None:
        """Note what ``measure`` has not, at the price of another run."""


@dataclasses.dataclass(frozen=True)
class Judge:
    """How far a gradient is from the ``reference`` and from that of the ``discrete`` solution, where these are known.

    ``distance``: of a gradient from another one, relative to that.
    """

    distance: Callable[[Any, Any], float]
    reference: Any
    discrete: Any

    def judge(self, row: Row, gradient: Any) -> None:
        """Note both."""
        row.error = None if self.reference is None else self.distance(gradient, self.reference)
        row.difference = None if self.discrete is None else self.distance(gradient, self.discrete)


def attempted(clock: Clock, what: str, run: Callable[[], Any], share: float = 1.0) -> tuple[Any, str]:
    """What ``run`` returns, or None and why there is none. ``share``: of the time limit, which it may take."""
    clock.say(what)
    with clock.at_most(share * clock.limit):
        try:
            return run(), ""
        except Exception as error:
            # Frameworks may raise an error of their own for one in a callback.
            is_late = isinstance(error, TimeUp) or clock.left < 0
            return None, f"not within {share * clock.limit:.3g} s" if is_late else words(error)


@dataclasses.dataclass
class Oracle:
    """A gradient to hold others against. ``is_called``: in words, once it is known."""

    take: Callable[[], Any]
    is_called: Callable[[], str]
    share: float = 1.0
    gradient: Any = None

    def found(self, clock: Clock) -> str:
        """Take it; what it is, or why there is none."""
        self.gradient, why_not = attempted(clock, "what to compare with", self.take, self.share)
        return f"none: {why_not}" if why_not else self.is_called()


def compared(
    title: str,
    ways: Iterator[Way],
    oracles: tuple[Oracle, Oracle],
    distance: Callable[[Any, Any], float],
    clock: Clock,
    limit: float,
    memory: float,
    only: Sequence[str] | None,
) -> Comparison:
    """The outcome. ``oracles``: the reference, and the discrete solution's own gradient. ``only``: names of ways."""
    reference, discrete = (oracle.found(clock) for oracle in oracles)
    judge = Judge(distance, *(oracle.gradient for oracle in oracles))
    names: list[str] = []

    def asked() -> Iterator[Way]:
        for way in ways:
            names.append(way.row.way)
            if only is None or way.row.way in only:
                yield way

    rows = race(asked(), judge, clock)
    unknown = [name for name in only or () if name not in names]
    if unknown or not rows:
        what = repr(unknown[0]) if unknown else "nothing"
        raise OptionError(
            f"compare(..., ways={only!r}): {what} is none of the ways, which are here: {'; '.join(names)}."
        )
    return Comparison(title, rows, reference, discrete, limit, None if math.isinf(memory) else int(memory))


def race(ways: Iterator[Way], judge: Judge, clock: Clock) -> list[Row]:
    """The rows of all ways, which may look at those before them."""
    rows: list[Row] = []
    racers: list[Way] = []
    for way in ways:
        rows.append(way.row)
        expected = max(way.cost, statistics.median(racer.cost for racer in racers) if racers else 0.0)
        if way.row.why_not is None and clock.left < expected:
            way.row.why_not = f"skipped: it would take about {expected:.2g} s, and {max(clock.left, 0):.2g} s are left"
        if way.row.why_not is None and _measured(way, judge, clock):
            racers.append(way)
    times: dict[str, list[float]] = {way.row.way: [] for way in racers}
    _timed(racers, times, clock, 0.5)
    for way in sorted(racers, key=lambda way: not way.row.is_discrete):
        if way.weight * way.cost < clock.left:
            attempted(clock, f"{way.row.way}: memory", way.weigh)
    _timed(racers, times, clock, 1.0)
    clock.say("")
    return rows


def _measured(way: Way, judge: Judge, clock: Clock) -> bool:
    start = clock.left
    gradient, why_not = attempted(clock, way.row.way, way.measure)
    way.cost = max(way.cost, start - clock.left)
    if gradient is None:
        way.row.why_not = f"skipped: {why_not}" if why_not.startswith("not within") else f"failed: {why_not}"
        return False
    judge.judge(way.row, gradient)
    return True


def _timed(racers: list[Way], times: dict[str, list[float]], clock: Clock, share: float) -> None:
    """Add to the seconds of each way, and note the least of them. A slow way takes part in fewer rounds.

    ``share``: of the time that is left, of which each way may have as much as another.
    """
    kept = (1 - share) * clock.left
    budget = (clock.left - kept) / max(len(racers), 1)
    laps = {way: max(way.row.seconds or 0.0, way.takes, SHORTEST) for way in racers}
    turns = {
        way: min(max(ROUNDS, int(LEAST / lap)) - len(times[way.row.way]), int(budget / lap))
        for way, lap in laps.items()
    }
    if not any(turns.values()):
        return
    gc.collect()
    with _uncollected():
        for n in range(max(turns.values(), default=0)):
            clock.say(f"{clock.left:.0f} s left: time, round {n + 1}")
            for way in racers:
                if n < turns[way] and clock.left - kept > way.takes:
                    start = clock.left
                    times[way.row.way].append(way.run())
                    way.takes = start - clock.left
    for way in racers:
        if taken := times[way.row.way]:
            # What else the machine does makes a round longer, and none shorter.
            way.row.seconds, way.row.rounds = min(taken), len(taken)


@contextmanager
def _uncollected() -> Iterator[None]:
    """A block without garbage collection, which falls into one run and not another."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def words(error: BaseException) -> str:
    """The kind and the words of an error, in one line."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", LONG, placeholder=" ...")
