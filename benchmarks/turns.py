"""Which of the interleaved rounds a slow way takes part in."""

from __future__ import annotations


def turns(seconds: float, rounds: int, budget: float, least: int) -> set[int]:
    """As many of the ``rounds`` as take ``budget`` seconds, at least ``least``, evenly spread.

    A machine is slow for a while at times: in the first rounds alone, a slow way would have another share of that than
    the way it is compared with.
    """
    count = min(rounds, max(least, int(budget / seconds)))
    return {(2 * i + 1) * rounds // (2 * count) for i in range(count)}
