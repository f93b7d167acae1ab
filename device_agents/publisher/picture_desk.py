"""The pictures that are to go out: read, encoded and made to fit in a thread of its own.

The publisher's loop never waits for it. It takes one finished message at a time, and only when
the inspections leave room.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Protocol

from device_agents.publisher.commands import Refused, Waiting
from device_agents.publisher.pictures import Pixels, picture_message
from edge.messages import Command, Picture
from edge.topics import StationId

_SHOWN: tuple[Literal["image", "heat_map"], ...] = ("image", "heat_map")
MOST_BY_RULE = 100  # inspections that wait for their picture; a further one pushes out the oldest
_WRITTEN_WITHIN_S = 5.0  # the inspector writes pictures outside its loop: a record may be faster
_LOOK_AGAIN_S = 0.5

log = logging.getLogger("publisher")


class Kept(Protocol):
    """What was kept of one inspection, as far as it is sent."""

    @property
    def pixels(self) -> Pixels | None:
        """[height, width, 3] RGB, uint8."""

    @property
    def heat_map(self) -> Pixels | None:
        """[height, width] of 0..1, float32; None where the model gave none."""


ReadKept = Callable[[str], "Kept | None"]  # from an inspection id; may raise for a broken file


@dataclass(frozen=True)
class _ByRule:
    """A failed part whose picture goes out unasked."""

    inspection_id: str
    give_up_s: float
    due_s: float


class PictureDesk:
    """Answers commands in order, then sends what the rule asks for. Owns one thread."""

    def __init__(self, station: StationId, read: ReadKept, count: Callable[[str], None]) -> None:
        self._station = station
        self._read = read  # called in the thread only
        self._count = count
        self._waiting = Waiting()
        self._by_rule: deque[_ByRule] = deque()
        self._ready: deque[bytes] = deque()
        self._thread = ThreadPoolExecutor(1, "pictures")
        self._work: Future[list[bytes]] | None = None
        self._working_on: Command | _ByRule | None = None

    def ask(self, command: Command) -> Refused | None:
        """Take a command in, or say that too many wait."""
        return self._waiting.add(command)

    def send_unasked(self, inspection_id: str) -> None:
        """Have the pictures of this inspection sent by rule."""
        if len(self._by_rule) >= MOST_BY_RULE:
            self._by_rule.popleft()
            self._count("pictures_dropped")
        now_s = time.monotonic()
        self._by_rule.append(_ByRule(inspection_id, now_s + _WRITTEN_WITHIN_S, now_s))

    def next_message(self, most_bytes: int) -> bytes | None:
        """Return a finished `Picture` message, and put the thread to work on the next one."""
        if self._work is not None and self._work.done():
            self._collect(self._work)
        if not self._ready and self._work is None:
            self._working_on = self._waiting.next() or self._next_by_rule()
            if self._working_on is not None:
                self._work = self._thread.submit(self._messages, self._working_on, most_bytes)
        return self._ready.popleft() if self._ready else None

    def close(self) -> None:
        """Leave the rest: what was asked for is asked for again."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _next_by_rule(self) -> _ByRule | None:
        if self._by_rule and self._by_rule[0].due_s <= time.monotonic():
            return self._by_rule.popleft()
        return None

    def _collect(self, work: Future[list[bytes]]) -> None:
        asked, self._work = self._working_on, None
        try:
            messages = work.result()
        except Exception:  # a broken file or picture must not end the way to the broker
            self._count("pictures_failed")
            log.exception("the pictures for %s could not be made", asked)
            return
        if isinstance(asked, Command):
            self._count("commands_answered")
        elif asked is not None and not messages:
            self._look_again(asked)
        self._ready.extend(messages)

    def _look_again(self, asked: _ByRule) -> None:
        now_s = time.monotonic()
        if now_s > asked.give_up_s:
            self._count("pictures_missing")
            return
        again = _ByRule(asked.inspection_id, asked.give_up_s, now_s + _LOOK_AGAIN_S)
        self._by_rule.appendleft(again)

    def _messages(self, asked: Command | _ByRule, most_bytes: int) -> list[bytes]:
        """Make the messages; in the thread. Nothing for a rule whose picture is not there yet."""
        part = self._read(asked.inspection_id)
        if isinstance(asked, Command):
            # Each at most once, in a stated order, however often it was named.
            wanted = [shows for shows in _SHOWN if shows in asked.want]
            request_id = asked.request_id
        elif part is None:
            return []
        else:
            wanted = [shows for shows in _SHOWN if _values_of(part, shows) is not None]
            request_id = ""
        return [
            picture_message(
                Picture(
                    station=self._station,
                    inspection_id=asked.inspection_id,
                    shows=shows,
                    request_id=request_id,
                ),
                _values_of(part, shows),
                most_bytes,
            )
            for shows in wanted
        ]


def _values_of(part: Kept | None, shows: Literal["image", "heat_map"]) -> Pixels | None:
    if part is None:
        return None
    return part.pixels if shows == "image" else part.heat_map
