"""A recording in the place of a camera: its frames, one after another, at the line's pace.

The rule when inspection cannot keep the pace: no frame is skipped. A frame that falls due while
the loop is busy is played late, and how late is told with it; the schedule stays where it was, so
a short stall is caught up.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from threading import Event

from edge.errors import InputError
from edge.recording.format import Recording, SampleRow, read_pixels
from edge.sample import Frame


@dataclass(frozen=True)
class Shot:
    """One triggered part as the camera saw it. `frame` is None when it could not be read."""

    sample_id: str
    part_id: str
    captured_at: str | None  # ISO 8601 UTC, for people; pairing uses the frame's own time
    frame: Frame | None
    fault: str = ""  # why there is no frame
    late_ms: float = 0.0  # how long after its time the frame was played


@dataclass(frozen=True)
class Schedule:
    """When each sample of a recording is due: the clock that its frames and windows share."""

    start_ns: int  # Unix time of the first sample
    parts_per_second: float

    def due_ns(self, index: int) -> int:
        """Unix time at which sample `index` (from 0) is due."""
        return self.start_ns + round(index * 1e9 / self.parts_per_second)

    @property
    def period_ms(self) -> float:
        """Time between two parts."""
        return 1e3 / self.parts_per_second


class RecordingCamera:
    """Plays the frames of `rows`, in order, each at its due time (`paced`) or at once."""

    def __init__(
        self,
        recording: Recording,
        rows: Sequence[SampleRow],
        schedule: Schedule,
        *,
        paced: bool,
        repeat: bool = False,
    ) -> None:
        self._recording = recording
        self._rows = rows
        self._schedule = schedule
        self._paced = paced
        self._repeat = repeat

    def shots(self, stop: Event) -> Iterator[Shot]:
        """Yield shots until the recording ends or `stop` is set."""
        index = 0
        # The schedule starts when the first frame is asked for. Waiting is by the monotonic
        # clock: a jump of the wall clock must not stop the line.
        started_s = time.monotonic()
        while not stop.is_set() and (self._repeat or index < len(self._rows)):
            late_ms = 0.0
            if self._paced:
                due_s = started_s + index / self._schedule.parts_per_second
                if stop.wait(max(0.0, due_s - time.monotonic())):
                    return
                late_ms = (time.monotonic() - due_s) * 1e3
            yield self._shot(index, late_ms)
            index += 1

    def _shot(self, index: int, late_ms: float) -> Shot:
        row = self._rows[index % len(self._rows)]
        due_ns = self._schedule.due_ns(index)
        captured_at = iso_of(due_ns) if self._paced else row.captured_at
        try:
            frame = Frame(read_pixels(self._recording.path_of(row.image)), due_ns)
        except InputError as error:
            fault = f"frame unreadable: {what_is_wrong(error, row.image)}"
            return Shot(row.sample_id, row.part_id, captured_at, None, fault, late_ms)
        return Shot(row.sample_id, row.part_id, captured_at, frame, "", late_ms)


def what_is_wrong(error: InputError, file: str) -> str:
    """Say in words what a recording's reader found in `file`: it calls a missing one "nothing"."""
    return f"the file {file} is missing" if error.found == "nothing" else error.found


def iso_of(unix_ns: int) -> str:
    """Write Unix nanoseconds as ISO 8601 UTC with microseconds."""
    seconds, rest_ns = divmod(unix_ns, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, tz=timezone.utc)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest_ns // 1000:06d}Z"
