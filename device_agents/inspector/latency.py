"""Latencies and rates over the last minute, in a fixed room however many parts come."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np

from edge.messages import Percentiles

SECONDS = 60
# Buckets 5 % apart from 0.01 ms to over 100 s: a percentile is told at most 5 % too high.
_STEP = math.log(1.05)
_LEAST_MS = 0.01
_BUCKETS = math.ceil(math.log(1e7) / _STEP) + 1


class LastMinute:
    """A histogram for each of the last 60 seconds. One thread takes, any thread may ask."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._second = [-1] * SECONDS  # which second the place holds
        self._parts = [0] * SECONDS
        self._most_ms = [0.0] * SECONDS
        self._counts = np.zeros((SECONDS, _BUCKETS), dtype=np.int32)

    def take(self, latency_ms: float) -> None:
        """Count one part into the present second."""
        second = int(self._clock())
        place = second % SECONDS
        if self._second[place] != second:
            # Emptied before it is named: who asks meanwhile sees too little, never an old minute.
            self._counts[place] = 0
            self._parts[place], self._most_ms[place] = 0, 0.0
            self._second[place] = second
        self._counts[place, _bucket_of(latency_ms)] += 1
        self._parts[place] += 1
        self._most_ms[place] = max(self._most_ms[place], latency_ms)

    def parts_in(self, seconds: int) -> int:
        """Count the parts of the last `seconds` whole seconds (at most 59), the present one not."""
        now = int(self._clock())
        places = range(SECONDS)
        return sum(self._parts[p] for p in places if now - seconds <= self._second[p] < now)

    def percentiles(self) -> Percentiles | None:
        """Return them over the last minute, or None where no part came."""
        oldest = int(self._clock()) - SECONDS
        live = [place for place, second in enumerate(self._second) if second > oldest]
        running = np.cumsum(self._counts[live].sum(axis=0))
        parts = int(running[-1])
        if parts == 0:
            return None
        most_ms = max(self._most_ms[place] for place in live)

        def at(share: float) -> float:
            bucket = int(np.searchsorted(running, math.ceil(share * parts)))
            return round(min(_LEAST_MS * math.exp(bucket * _STEP), most_ms), 3)

        return Percentiles(at(0.50), at(0.90), at(0.99), round(most_ms, 3))


def _bucket_of(latency_ms: float) -> int:
    """The bucket whose upper edge is the first at or above the latency."""
    if latency_ms <= _LEAST_MS:
        return 0
    return min(_BUCKETS - 1, math.ceil(math.log(latency_ms / _LEAST_MS) / _STEP))
