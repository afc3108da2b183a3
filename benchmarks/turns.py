"""Interleaved rounds of several ways, in which a slow one takes part less often."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping


def medians(
    runs: Mapping[str, Callable[[int], float]], seconds: Mapping[str, float], rounds: int, budget: float, least: int
) -> dict[str, float]:
    """The median seconds of each way of which ``seconds`` tells about how long it takes; ``runs`` get the round."""
    takes_part = {way: turns(found, rounds, budget, least) for way, found in seconds.items()}
    times: dict[str, list[float]] = {way: [] for way in seconds}
    for n in range(rounds):
        for way, found in times.items():
            if n in takes_part[way]:
                found.append(runs[way](n))
    return {way: statistics.median(found) for way, found in times.items() if found}


def turns(seconds: float, rounds: int, budget: float, least: int) -> set[int]:
    """As many of the ``rounds`` as take ``budget`` seconds, at least ``least``, evenly spread.

    A machine is slow for a while at times: in the first rounds alone, a slow way would have another share of that than
    the way it is compared with.
    """
    count = min(rounds, max(least, int(budget / seconds)))
    return {(2 * i + 1) * rounds // (2 * count) for i in range(count)}
