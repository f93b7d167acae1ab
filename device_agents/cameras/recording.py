"""A recording in the place of a camera: its frames, each with the time at which it is due."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge.errors import InputError
from edge.recording.format import Recording, SampleRow, read_pixels
from edge.sample import Frame


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
    """Reads the frames of `rows`, stamped with the time at which the schedule has them due."""

    def __init__(self, recording: Recording, rows: Sequence[SampleRow], schedule: Schedule) -> None:
        self._recording = recording
        self._rows = rows
        self._schedule = schedule

    def frame(self, index: int) -> tuple[Frame | None, str]:
        """Return frame `index` (from 0), or None and why there is none."""
        row = self._rows[index % len(self._rows)]
        try:
            pixels = read_pixels(self._recording.path_of(row.image))
        except InputError as error:
            return None, f"frame unreadable: {what_is_wrong(error, row.image)}"
        return Frame(pixels, self._schedule.due_ns(index)), ""


def what_is_wrong(error: InputError, file: str) -> str:
    """Say in words what a recording's reader found in `file`: it calls a missing one "nothing"."""
    return f"the file {file} is missing" if error.found == "nothing" else error.found
