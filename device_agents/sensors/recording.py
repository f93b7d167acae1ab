"""A recording in the place of the sensors: the window that lies nearest to a moment."""

from __future__ import annotations

from collections.abc import Sequence

from device_agents.cameras.recording import Schedule, what_is_wrong
from device_agents.parts import Reading
from edge.errors import InputError
from edge.recording.format import Recording, SampleRow, read_readings
from edge.sample import Window


class RecordingSensors:
    """Gives windows of `rows`, stamped by the same schedule as the recording's frames."""

    def __init__(self, recording: Recording, rows: Sequence[SampleRow], schedule: Schedule) -> None:
        self._recording = recording
        self._rows = rows
        self._schedule = schedule

    def nearest(self, moment_ns: int) -> Reading:
        """Return the window whose middle lies nearest to `moment_ns` (Unix time).

        A sample without a sensor file leaves its place in time empty, as a dropout does. Whether
        the window is near enough is for `pairing` to say.
        """
        channels = self._recording.header.channels
        period_ns = self._schedule.period_ms * 1e6
        index = max(0, round((moment_ns - self._schedule.start_ns) / period_ns))
        row = self._rows[index % len(self._rows)]
        if row.sensor is None or not channels:
            return Reading(None)
        try:
            values = read_readings(self._recording.path_of(row.sensor), channels)
        except InputError as error:
            return Reading(None, f"sensor window unreadable: {what_is_wrong(error, row.sensor)}")
        return Reading(Window(values, channels, self._schedule.due_ns(index)))
