"""The last seconds of sensor readings in fixed memory: one thread writes, others cut windows.

Readings come in blocks, each with the time of its first reading. Where a block does not begin
where the one before it ended, readings are missing (a dropout): the place is kept in mind, and a
window across it is refused, for a model would see a jump that no machine made.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from threading import Condition

import numpy as np
from numpy.typing import NDArray

from device_agents.parts import Reading
from edge.sample import Channel, Window

GAP_NS = 5_000_000  # a sound card's lost period is longer, the jitter of a block's time shorter


class SensorRing:
    """Readings of `channels`, all of one rate. Times are of any one clock, in nanoseconds."""

    def __init__(self, channels: tuple[Channel, ...], seconds: float) -> None:
        assert len({channel.rate_hz for channel in channels}) == 1, "one clock, one rate"
        self._channels = channels
        self._rate_hz = channels[0].rate_hz
        self._room = max(1, math.ceil(seconds * self._rate_hz))
        self._values = np.zeros((len(channels), self._room), np.float32)
        self._written = 0  # readings since the start; reading n lies at n modulo the room
        self._first = 0  # the first reading of this life
        self._blocks: deque[tuple[int, int]] = deque()  # (time in ns, number) of first readings
        self._gaps: deque[tuple[int, int]] = deque()  # (number of the reading after it, length)
        self._changed = Condition()
        self._gaps_untold = 0

    @property
    def end_ns(self) -> int | None:
        """The time up to which readings are there; None while there is none."""
        with self._changed:
            return self._end_ns()

    @property
    def begin_ns(self) -> int | None:
        """The time from which readings are known, about a block early; None while there is none."""
        with self._changed:
            return self._blocks[0][0] if self._blocks else None

    def take_gaps(self) -> int:
        """Return how many dropouts there were since the last call."""
        with self._changed:
            gaps, self._gaps_untold = self._gaps_untold, 0
            return gaps

    def write(self, values: NDArray[np.float32], at_ns: int) -> None:
        """Add one block, [N, C] in physical units; `at_ns` is the time of its first reading."""
        assert values.ndim == 2
        assert values.shape[1] == len(self._channels)
        if not len(values):
            return
        with self._changed:
            self._note_gap(at_ns)
            if self._blocks:
                at_ns = max(at_ns, self._blocks[-1][0] + 1)  # jitter must not undo the order
            self._blocks.append((at_ns, self._written))
            kept = values[-self._room :]
            begin = self._written + len(values) - len(kept)
            place = begin % self._room
            head = min(len(kept), self._room - place)
            self._values[:, place : place + head] = kept[:head].T
            self._values[:, : len(kept) - head] = kept[head:].T
            self._written += len(values)
            self._forget()
            self._changed.notify_all()

    def wait_for(self, moment_ns: int, timeout_s: float) -> bool:
        """Wait until readings up to `moment_ns` are there; False when they did not come."""
        with self._changed:
            return self._changed.wait_for(
                lambda: (self._end_ns() or -math.inf) >= moment_ns, timeout_s
            )

    def around(self, moment_ns: int, samples: int) -> Reading:
        """Return the window of `samples` readings whose middle lies nearest to `moment_ns`."""
        with self._changed:
            if not self._blocks:
                return Reading(None, "no sensor reading has come yet", "stale_window")
            at_ns, number = self._block_at(moment_ns)
            if number is None:
                return Reading(None, "the moment lies in a dropout of the sensor", "window_gap")
            begin = number + round((moment_ns - at_ns) * self._rate_hz / 1e9 - samples / 2)
            end = begin + samples
            fault = self._fault_of(number, begin, end)
            if fault is not None:
                return fault
            middle_ns = at_ns + round((begin + samples / 2 - number) * 1e9 / self._rate_hz)
            places = np.arange(begin, end) % self._room
            return Reading(Window(self._values[:, places], self._channels, middle_ns))

    def _fault_of(self, dated: int, begin: int, end: int) -> Reading | None:
        """Say what is missing of a window whose times were counted from reading `dated`."""
        for number, length_ns in self._gaps:
            # Also where the window lies wholly behind the gap, but was counted from before it.
            if min(begin, dated) < number < end:
                why = f"{length_ns / 1e6:.1f} ms of sensor readings are missing inside the window"
                return Reading(None, why, "window_gap")
        if end > self._written:
            missing_ms = (end - self._written) * 1e3 / self._rate_hz
            why = f"the last {missing_ms:.1f} ms of the window's readings have not come"
            return Reading(None, why, "stale_window")
        oldest = max(self._first, self._written - self._room)
        if begin < oldest:
            missing_ms = (oldest - begin) * 1e3 / self._rate_hz
            why = f"the first {missing_ms:.1f} ms of the window's readings are not there (any more)"
            return Reading(None, why, "window_gone")
        return None

    def _block_at(self, moment_ns: int) -> tuple[int, int | None]:
        """Return time and number of the last block that begins by then, else of the first.

        No number where the moment lies in a dropout.
        """
        after = bisect_right(self._blocks, moment_ns, key=lambda block: block[0])
        at_ns, number = self._blocks[max(0, after - 1)]
        if after < len(self._blocks):
            following = self._blocks[after][1]
            ends_ns = at_ns + round((following - number) * 1e9 / self._rate_hz)
            if moment_ns > ends_ns + GAP_NS:
                return moment_ns, None
        return at_ns, number

    def _note_gap(self, at_ns: int) -> None:
        """Compare a block's time with where the one before it ended."""
        end_ns = self._end_ns()
        if end_ns is None or abs(at_ns - end_ns) <= GAP_NS:
            return
        self._gaps_untold += 1
        if at_ns > end_ns:
            self._gaps.append((self._written, at_ns - end_ns))
            return
        self._blocks.clear()  # the clock was set back: what is there has no known time any more
        self._gaps.clear()
        self._first = self._written

    def _end_ns(self) -> int | None:
        if not self._blocks:
            return None
        at_ns, number = self._blocks[-1]
        return at_ns + round((self._written - number) * 1e9 / self._rate_hz)

    def _forget(self) -> None:
        """Drop what is known of readings that were overwritten."""
        oldest = self._written - self._room
        while len(self._blocks) > 1 and self._blocks[1][1] <= oldest:
            self._blocks.popleft()
        while self._gaps and self._gaps[0][0] <= oldest:
            self._gaps.popleft()
