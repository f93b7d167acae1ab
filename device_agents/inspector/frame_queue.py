"""The queue between capture and inference: its size, its order, and what goes when it is full.

The rule, which stands here and nowhere else:

1. Triggered parts are taken before free-running frames, and each kind oldest first.
2. Full: the oldest free-running frame goes (`dropped_free_running`).
3. Full of triggered parts alone: the oldest of them gives up its frame and becomes an `invalid`
   inspection, "the loop is behind" (`invalid_behind`), because the plant waits for an answer to
   every trigger. A free-running frame that comes then is dropped itself.
4. Those answers take no engine and wait in a room of their own, without their frames. Should even
   that be full (the disk stands still), the oldest is lost, and counted (`lost_behind`).
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field, replace
from threading import Condition

from device_agents.inspector.counts import Counts
from device_agents.parts import Reading, Shot

OVERDUE_ROOM = 1_000  # answers without a frame, of some hundred bytes each


@dataclass(frozen=True)
class Part:
    """What waits: one shot with its reading, and what its source says about time."""

    shot: Shot
    reading: Reading
    tolerance_ms: float  # frame to window
    period_ms: float | None  # between two parts; None where nobody stated a rate
    # Monotonic. A live frame has waited for its readings already: that is not the batch's wait.
    queued_s: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Taken:
    """What the inference thread got: parts to judge, and parts for which it is too late."""

    parts: list[Part]
    overdue: list[Part]  # without their frames


class FrameQueue:
    """At most `room` frames, of all sources together. `put` never waits."""

    def __init__(self, room: int, counts: Counts) -> None:
        self.room = room
        self._counts = counts
        self._triggered: deque[Part] = deque()
        self._free_running: deque[Part] = deque()
        self._overdue: deque[Part] = deque()
        self._changed = Condition()
        self._closed = False

    @property
    def depth(self) -> int:
        """Frames that wait."""
        return len(self._triggered) + len(self._free_running)

    def put(self, part: Part) -> None:
        """Add a part; where there is no room, the rule says which one goes."""
        with self._changed:
            if self._closed:  # by a source that went on after the loop had stopped
                self._counts.count("dropped_at_stop")
                return
            if self.depth >= self.room and not self._make_room(part):
                return
            (self._triggered if part.shot.triggered else self._free_running).append(part)
            self._changed.notify()

    def take(self, most: int, fill: int, deadline_s: float, idle_s: float) -> Taken | None:
        """Return up to `most` parts, none after `idle_s` without any; None: closed and empty.

        Less than `fill` of them are held back until the oldest waited here for `deadline_s`, so
        that a batch may fill. Answers to overdue parts wait for nobody.
        """
        until_s = time.monotonic() + idle_s
        with self._changed:
            if not self.depth and not self._overdue:
                if self._closed:
                    return None
                self._changed.wait(idle_s)
            while 0 < self.depth < fill and not self._overdue and not self._closed:
                now_s = time.monotonic()
                due_s = self._oldest_s() + deadline_s
                if now_s >= due_s:
                    break
                if now_s >= until_s:
                    return Taken([], [])
                self._changed.wait(min(due_s, until_s) - now_s)
            overdue = list(self._overdue)
            self._overdue.clear()
            return Taken([self._next() for _ in range(min(most, self.depth))], overdue)

    def close(self) -> None:
        """No part comes any more; what waits is still taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _make_room(self, part: Part) -> bool:
        """Let one go by the rule; False when that is the new one."""
        if self._free_running:
            self._free_running.popleft()
            self._counts.count("dropped_free_running")
        elif part.shot.triggered:
            self._give_up(self._triggered.popleft())
        else:
            self._counts.count("dropped_free_running")
            return False
        return True

    def _give_up(self, part: Part) -> None:
        if len(self._overdue) >= OVERDUE_ROOM:
            self._overdue.popleft()
            self._counts.count("lost_behind")
        self._overdue.append(
            replace(part, shot=replace(part.shot, frame=None), reading=Reading(None))
        )

    def _next(self) -> Part:
        return (self._triggered or self._free_running).popleft()

    def _oldest_s(self) -> float:
        return min(q[0].queued_s for q in (self._triggered, self._free_running) if q)
