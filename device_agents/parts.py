"""The nouns of the loop: a shot, what the sensors say of its moment, and a source of both."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from threading import Event
from typing import Protocol

from edge.sample import Frame, Window


@dataclass(frozen=True)
class Shot:
    """One part, or one free-running frame. `frame` is None when it could not be read."""

    sample_id: str
    part_id: str
    captured_at: str | None  # ISO 8601 UTC, for people; pairing uses the frame's own time
    frame: Frame | None
    fault: str = ""  # why there is no frame
    late_ms: float = 0.0  # how long after its time the frame came
    source: str = "main"  # the name of the source in the station file
    triggered: bool = True  # a part asked for it, and waits for the answer
    lost_before: int = 0  # frames of this source lost since the shot before it, where it is known
    # Monotonic clock: every latency counts from here, whatever the wall clock does meanwhile.
    in_memory_s: float = field(default_factory=time.monotonic, compare=False)


@dataclass(frozen=True)
class Reading:
    """What the sensors have to say about a moment. `window` is None where there is nothing.

    The window may be longer than the model's and of another rate: `pairing` cuts and resamples.
    """

    window: Window | None
    fault: str = ""  # why there is no window, where something was wrong with it
    fault_kind: str = "window_unreadable"  # the counter's name of that fault
    gaps_before: int = 0  # dropouts of this source's sensor since the reading before it


class PartSource(Protocol):
    """One source of parts. The inspector runs each in a thread of its own."""

    name: str
    tolerance_ms: float
    silent_after_s: float  # no part for so long is a failure; the longest pause of the line

    @property
    def parts_per_second(self) -> float | None:
        """None where nobody stated a rate."""
        ...

    def parts(self, stop: Event) -> Iterator[tuple[Shot, Reading]]:
        """Yield parts until the source ends or `stop` is set.

        Raises MachineError when the source fails (a camera unplugged): the station is then not
        whole, and Health names the source.
        """
        ...


def iso_of(unix_ns: int) -> str:
    """Write Unix nanoseconds as ISO 8601 UTC with microseconds."""
    seconds, rest_ns = divmod(unix_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, tz=timezone.utc)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest_ns // 1000:06d}Z"
