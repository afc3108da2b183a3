"""The time there is, and what is said of it while it passes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from steptape._errors import OptionError


class TimeUp(Exception):
    """Raised in an evaluation of a field, to end a run for which there is no time."""


class Clock:
    """Counts down from ``limit`` seconds; says what is done on stderr, by default where that is a terminal."""

    def __init__(self, limit: float, progress: bool | None):
        if not limit > 0:
            raise OptionError(f"compare(..., time_limit={limit!r}): must be a positive number of seconds.")
        self.limit = limit
        self._start = time.monotonic(), time.process_time()
        self._end = self._start[0] + limit
        self._speaks = sys.stderr.isatty() if progress is None else progress
        self._width = 0

    @property
    def left(self) -> float:
        """The seconds left."""
        return self._end - time.monotonic()

    @property
    def busy(self) -> float:
        """The processor seconds of this program over those that have passed: above 1 with several threads."""
        wall, processor = self._start
        return (time.process_time() - processor) / max(time.monotonic() - wall, 1e-9)

    def check(self) -> None:
        """Raise where none are left."""
        if self.left < 0:
            raise TimeUp

    @contextmanager
    def at_most(self, seconds: float) -> Iterator[None]:
        """A block that has so many of the seconds left, and no more."""
        end = self._end
        self._end = min(end, time.monotonic() + seconds)
        try:
            yield
        finally:
            self._end = end

    def say(self, text: str) -> None:
        """Put a line in the place of the one before it."""
        if self._speaks:
            text = f"compare: {text}"[:100] if text else ""
            print(f"\r{text:<{self._width}}", end="\r" if not text else "", file=sys.stderr, flush=True)
            self._width = len(text)
