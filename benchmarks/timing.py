"""Time of several ways to one thing: processor time, in interleaved rounds of all of them.

A single run is off by a third at times where others share the machine, and a ratio of two by more. Rounds help where
that lasts seconds, for all ways fall into it; a second pass helps where it lasts minutes (see ``benchmarks.envelope``):
within 15 % of each other were 83 % of the ratios in PyTorch of two runs with few rounds, 86 to 93 % with many, and 93
to 97 % with the mean of two passes.
"""

import contextlib
import dataclasses
import functools
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from benchmarks.envelope import Row

# Seconds by the number of the round; round 0 warms up.
Times = dict[int, float]


@dataclasses.dataclass(frozen=True)
class Rounds:
    """How often a way is run.

    ``most``: the rounds of all ways. ``budget``: the seconds that a way may take for all of them, of which a slow one
    takes part in fewer, but in ``least``. ``alone``: where the warm-up takes as long, it is the way's only run.
    """

    most: int
    budget: float = math.inf
    least: int = 3
    alone: float = math.inf


def race(
    runs: Mapping[str, Callable[[], float]], rounds: Rounds, first: Mapping[str, float] | None = None
) -> dict[str, Times]:
    """The seconds of each way, a run of which returns them; ``first``: those of a warm-up that is already done."""
    first = {way: run() for way, run in runs.items()} if first is None else first
    times = {way: {0: seconds} if seconds >= rounds.alone else {} for way, seconds in first.items()}
    takes_part = {way: turns(first[way], rounds) for way, found in times.items() if not found}
    for n in range(1, rounds.most + 1):
        for way, chosen in takes_part.items():
            if n in chosen:
                times[way][n] = runs[way]()
    return times


def turns(seconds: float, rounds: Rounds) -> set[int]:
    """The rounds of a way that takes so long: as many as it may take, evenly spread.

    A machine is slow for a while at times: in the first rounds alone, a slow way would have another share of that than
    the way it is compared with.
    """
    affordable = rounds.budget / seconds if seconds > 0 else math.inf
    count = int(min(rounds.most, max(rounds.least, affordable)))
    return {(2 * i + 1) * rounds.most // (2 * count) + 1 for i in range(count)}


def median(times: Times) -> float:
    return statistics.median(times.values())


def ratios(slow: Times, fast: Times) -> list[float]:
    """One way's time over another's in each round that both took part in, from the least to the most."""
    common = slow.keys() & fast.keys()
    return sorted(slow[n] / fast[n] for n in common) or [median(slow) / median(fast)]


def ratio(slow: Times, fast: Times) -> float:
    return statistics.median(ratios(slow, fast))


def rows(runs: Mapping[str, Callable[[], Row]], rounds: Rounds) -> tuple[dict[str, Row], dict[str, Times]]:
    """What a run of each way returns, with its median seconds; or why there is none. And the seconds of all rounds."""
    found: dict[str, Row] = {}
    for way, run in runs.items():
        try:
            row = run()
            # What a first run sets up for good, and what the way before it left behind, is not its own.
            found[way] = {"way": way, **(run() if row["seconds"] < rounds.alone else row)}
        except Exception as error:
            words = " ".join(str(error).split())[:90]
            found[way] = {"way": way, "without": f"failed: {type(error).__name__}: {words}"}
    first = {way: row["seconds"] for way, row in found.items() if "seconds" in row}
    times = race({way: functools.partial(_seconds, runs[way]) for way in first}, rounds, first)
    for way, each in times.items():
        found[way]["seconds"] = median(each)
    return found, times


def _seconds(run: Callable[[], Row]) -> float:
    return run()["seconds"]


def now(device: Any) -> float:
    """Processor seconds; of what is on a GPU, which is waited for, those of the clock."""
    if device.type != "cuda":
        return time.process_time()
    import torch

    torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(run: Callable[..., object], *given: object) -> float:
    """The processor seconds that a call takes, what lay about before it collected."""
    gc.collect()
    start = time.process_time()
    run(*given)
    return time.process_time() - start


@contextlib.contextmanager
def lap(seconds: list[float]) -> Iterator[None]:
    """Append the processor seconds that the block takes."""
    start = time.process_time()
    yield
    seconds.append(time.process_time() - start)
