"""A stream's own time held against this machine's: when was it, by our clock, that this was taken?

A pipeline stamps what it gives by a clock of its own (a camera's driver, a sound card's crystal)
that starts anywhere and drifts. What is late is late by transport, never early, so the smallest
difference between arrival and stamp over the last seconds is the clocks' difference plus the
shortest transport. A frame that waited for a busy CPU thus keeps the time at which it was taken.

Accuracy: the shortest transport (conversion and pipe: a few ms at 1280x960) stays in every stamp
alike and is what `delay_ms` of the station file takes off; two clocks 100 ppm apart add at most
1 ms over the 10 s that are looked back on. Until the first undelayed frame, stamps are late.
"""

from __future__ import annotations

from collections import deque

_BUCKET_NS = 1_000_000_000
_BUCKETS = 10


class StreamClock:
    """Follows one stream. Times in are the stream's and the monotonic clock's, in nanoseconds."""

    def __init__(self) -> None:
        self.offset_ns = 0  # the monotonic clock's time minus the stream's
        self._least: deque[tuple[int, int]] = deque()  # (bucket, least difference seen in it)
        self._last_ns: int | None = None

    def see(self, stream_ns: int, arrived_ns: int) -> int:
        """Take note that what is stamped `stream_ns` is here now; return its monotonic time."""
        if self._last_ns is not None and stream_ns <= self._last_ns:
            self._least.clear()  # the stream's clock was set back, or stands still
        self._last_ns = stream_ns
        bucket, difference = arrived_ns // _BUCKET_NS, arrived_ns - stream_ns
        if self._least and self._least[-1][0] == bucket:
            self._least[-1] = (bucket, min(self._least[-1][1], difference))
        else:
            self._least.append((bucket, difference))
        while self._least[0][0] <= bucket - _BUCKETS:
            self._least.popleft()
        self.offset_ns = min(least for _, least in self._least)
        return stream_ns + self.offset_ns
