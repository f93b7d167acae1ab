"""When each thread of the loop last moved, and what made the loop give up."""

from __future__ import annotations

import time
from threading import Event

IDLE_S = 0.25  # the longest that a thread waits for work before it says that it lives


class Pulse:
    """Each thread beats at least every `IDLE_S` and once per piece of work."""

    def __init__(self, stop: Event) -> None:
        self.stop = stop
        self.fatal: BaseException | None = None  # the first reason why the loop cannot go on
        self._gave_up_s = 0.0
        self._beats: dict[str, float] = {}

    def beat(self, thread: str) -> None:
        """Say that `thread` moved."""
        self._beats[thread] = time.monotonic()

    def end(self, thread: str) -> None:
        """Say that `thread` has done its work: nobody waits for its beat any more."""
        self._beats.pop(thread, None)

    def still(self, since_s: float) -> list[str]:
        """Return the threads that have not moved since this monotonic time."""
        return sorted(name for name, beat_s in dict(self._beats).items() if beat_s < since_s)

    def give_up(self, reason: BaseException) -> None:
        """End the loop: its sources stop, what was taken is recorded, and `reason` is raised."""
        if self.fatal is None:
            self.fatal = reason
            self._gave_up_s = time.monotonic()
        self.stop.set()

    def gave_up_before(self, moment_s: float) -> bool:
        """Tell whether the loop gave up before this monotonic time."""
        return self.fatal is not None and self._gave_up_s < moment_s
