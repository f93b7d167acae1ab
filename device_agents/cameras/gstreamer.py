"""Frames from a GStreamer pipeline: read as they come, the newest kept where nobody takes them.

What nobody took in time is dropped, the oldest first, and counted with the frame that comes after
it.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, replace
from threading import Condition, Event

import numpy as np
from numpy.typing import NDArray

from device_agents.streams.matroska import BrokenStream, MatroskaStream, Track
from device_agents.streams.pipeline import Launch
from device_agents.streams.pipeline_reader import PipelineReader
from device_agents.streams.stream_clock import StreamClock

_EXPECTED = "frames from the pipeline"
_CODEC = "V_UNCOMPRESSED"
_LOOK_S = 0.1  # how often a waiting reader looks whether it shall stop
_SIDE_LIMIT = 16_384  # pixels: no camera gives more, broken bytes do
_QUEUE = ("queue", "leaky=downstream", "max-size-buffers=2", "max-size-bytes=0", "max-size-time=0")


@dataclass(frozen=True)
class LiveFrame:
    """One frame with its times by the monotonic clock."""

    pixels: NDArray[np.uint8]  # [H, W, 3], RGB
    captured_ns: int
    in_memory_ns: int
    late_ms: float  # how much later than its neighbours it came
    lost_before: int  # frames lost since the one before it, as far as can be known


def ending(width: int | None, height: int | None, frames_per_second: float | None) -> list[str]:
    """Return the words that turn a pipeline's video into raw RGB of the wanted form.

    A rate below the pipeline's leaves frames out; a rate above it cannot be had.
    """
    caps = "caps=video/x-raw,format=RGB"
    words = ["!", *_QUEUE]
    if frames_per_second is not None:
        words += ["!", "videorate", "drop-only=true"]
        caps += f",framerate={fraction_of(frames_per_second)}"
    if width is not None or height is not None:
        words += ["!", "videoscale", "add-borders=false"]
        caps += f",width={width}" if width is not None else ""
        caps += f",height={height}" if height is not None else ""
    return [*words, "!", "videoconvert", "!", "capsfilter", caps]


def fraction_of(frames_per_second: float) -> str:
    """Write a rate as cameras do: 29.97 is 30000/1001."""
    for whole in (24, 30, 60, 120):
        if abs(frames_per_second - whole * 1000 / 1001) < 0.005:
            return f"{whole * 1000}/1001"
    return f"{round(frames_per_second * 1000)}/1000"


class GstFrames(PipelineReader):
    """One camera pipeline.

    `room` is how many frames may wait to be taken; `free_running`: frames come at the stated rate,
    so that a hole in their times is a loss.
    """

    def __init__(
        self, launch: Launch, *, room: int, free_running: bool, stalled_after_s: float
    ) -> None:
        super().__init__(launch, expected=_EXPECTED, stalled_after_s=stalled_after_s)
        self._free_running = free_running
        self._waiting: deque[LiveFrame] = deque()
        self._room = room
        self._changed = Condition()
        self._clock = StreamClock()
        self._last_stream_ns: int | None = None

    def next(self, stop: Event) -> LiveFrame | None:
        """Wait for a frame; None when `stop` is set. Raises MachineError when none will come."""
        with self._changed:
            while not stop.is_set():
                if self._waiting:
                    return self._waiting.popleft()
                self._raise_failure()
                self._changed.wait(_LOOK_S)
        return None

    def _refuse_other(self, track: Track) -> None:
        sides = (track.width, track.height)
        if track.codec != _CODEC or not 0 < min(sides) <= max(sides) <= _SIDE_LIMIT:
            raise BrokenStream(f"{track.codec or 'a stream without codec'}, {sides[0]}x{sides[1]}")

    def _take_block(self, stream: MatroskaStream, track: Track) -> None:
        frame = self._frame_from(stream, track)
        with self._changed:
            self._waiting.append(frame)
            if len(self._waiting) > self._room:
                self._lost_with(self._waiting.popleft())
            self._changed.notify()

    def _lost_with(self, dropped: LiveFrame) -> None:
        """Hand a dropped frame's count on to the one that comes next."""
        following = self._waiting[0]
        lost = following.lost_before + dropped.lost_before + 1
        self._waiting[0] = replace(following, lost_before=lost)

    def _frame_from(self, stream: MatroskaStream, track: Track) -> LiveFrame:
        stream_ns, size = stream.next_block()
        arrived_ns = time.monotonic_ns()  # its head is here; its pixels follow
        row_bytes, rest = divmod(size, track.height)
        # GStreamer pads the rows of RGB to four bytes.
        if rest or row_bytes not in (track.width * 3, -(-track.width * 3 // 4) * 4):
            raise BrokenStream(f"a frame of {size} bytes for {track.width}x{track.height} pixels")
        rows_HB = np.empty((track.height, row_bytes), np.uint8)
        stream.read_into(rows_HB.data.cast("B"))
        self._heard_ns = time.monotonic_ns()
        captured_ns = self._clock.see(stream_ns, arrived_ns)
        # A copy only where rows are padded: whoever keeps a frame may count on its layout.
        packed_HB = np.ascontiguousarray(rows_HB[:, : track.width * 3])
        pixels = packed_HB.reshape(track.height, track.width, 3)
        late_ms = (arrived_ns - captured_ns) / 1e6
        lost = self._lost_before(stream_ns, track)
        return LiveFrame(pixels, captured_ns, self._heard_ns, late_ms, lost)

    def _lost_before(self, stream_ns: int, track: Track) -> int:
        """How many frames are missing since the last one, by the rate that the stream states."""
        last_ns, self._last_stream_ns = self._last_stream_ns, stream_ns
        if last_ns is None or not track.period_ns or not self._free_running:
            return 0
        return max(0, round((stream_ns - last_ns) / track.period_ns) - 1)
