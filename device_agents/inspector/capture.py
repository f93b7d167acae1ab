"""One source in a thread of its own: its parts go into the queue, its failures are outlived.

A source that fails (a camera unplugged) is opened again after a pause that grows; the other
sources go on meanwhile, and Health names the one that is missing.
"""

from __future__ import annotations

import logging
import random
import time

from device_agents.inspector.counts import Counts
from device_agents.inspector.frame_queue import FrameQueue, Part
from device_agents.inspector.pulse import Pulse
from device_agents.parts import PartSource
from edge.errors import EdgeError

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0

log = logging.getLogger("inspector")


class Capture:
    """Runs one source; `run` is the thread's whole life."""

    def __init__(self, source: PartSource, queue: FrameQueue, counts: Counts, pulse: Pulse) -> None:
        self.source = source
        self.ended = False
        self.begun = False  # it has given a part
        self.fault = ""  # why it gives nothing now
        self._queue = queue
        self._counts = counts
        self._pulse = pulse
        self._pause_s = _FIRST_PAUSE_S
        self._moved_s = time.monotonic()  # of the last part, or the start
        self._period_s = 1 / source.parts_per_second if source.parts_per_second else None

    def run(self) -> None:
        """Play the source until it ends or the loop stops."""
        stop = self._pulse.stop
        while not stop.is_set() and not self._played():
            stop.wait(self._pause_s * random.uniform(0.8, 1.2))  # noqa: S311  no secret
            self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
        self.ended = True

    def state(self, now_s: float) -> str:
        """Say in words how the source is: "playing", "ended", or what is wrong with it."""
        if self.ended and not self.fault:
            return "ended"
        if self.fault:
            return self.fault
        silent_s = now_s - self._moved_s
        if silent_s > self.source.silent_after_s:
            return f"gave nothing for {silent_s:.0f} s"
        return "playing"

    def is_well(self, now_s: float) -> bool:
        """Tell whether the source plays, or came to its end as it should."""
        return self.state(now_s) in ("playing", "ended")

    def _played(self) -> bool:
        """Play to the end; False where the source failed on the way."""
        try:
            for shot, reading in self.source.parts(self._pulse.stop):
                period_ms = None if self._period_s is None else self._period_s * 1e3
                self._counts.count("frames_lost", shot.lost_before)
                self._counts.count("sensor_gaps", reading.gaps_before)
                self._queue.put(Part(shot, reading, self.source.tolerance_ms, period_ms))
                self._moved_s, self.begun = time.monotonic(), True
                if self.fault:
                    log.info("source %s plays again", self.source.name)
                    self.fault, self._pause_s = "", _FIRST_PAUSE_S
        except EdgeError as error:
            self._failed(str(error))
            return False
        except Exception as error:  # a driver's own error must not end the other sources
            log.exception("source %s", self.source.name)
            self._failed(f"{type(error).__name__}: {error}")
            return False
        self.fault = ""
        return True

    def _failed(self, why: str) -> None:
        self._counts.count("source_failures")
        if why != self.fault:
            log.warning("source %s failed: %s", self.source.name, why)
        self.fault = why
