"""A recording in the place of a line: its camera and its sensors on one clock.

The inspector and `edge replay` take their parts from here, so that what is replayed on a desk goes
the way that it goes on the device. No part is skipped: one that cannot be read in time, or that
nobody takes in time, is played late, and how late is told with it; the schedule stays where it
was, so a short stall is caught up.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

from device_agents.cameras.recording import RecordingCamera, Schedule
from device_agents.pairing.pair import misfit_of, tolerance_for, too_slow
from device_agents.parts import Reading, Shot, iso_of
from device_agents.sensors.recording import RecordingSensors
from device_agents.station import Source, table_of
from edge.errors import InputError
from edge.model_spec import ModelSpec
from edge.prepare import channels_text
from edge.recording.format import Recording

_SILENT_S = 10.0  # a recording that gives nothing for so long, and for five periods, hangs
_SILENT_PERIODS = 5


class Playback:
    """One recording, checked against the model before its first part is played."""

    def __init__(self, source: Source, spec: ModelSpec, *, paced: bool, name: str = "main") -> None:
        self.name = name
        self._recording = Recording.open(Path(source.recording or ""))
        _refuse_foreign_channels(self._recording, spec)
        recording = self._recording
        self._rows = recording.rows if source.split is None else recording.rows_in(source.split)
        if not self._rows:
            raise InputError(
                where=recording.folder,
                expected="samples to play",
                found="an empty recording",
                do="Import the originals again.",
            )
        self._paced = paced
        self._repeat = source.repeat
        self._triggered = source.triggered
        self.parts_per_second: float = source.parts_per_second or recording.header.parts_per_second
        self.period_ms = 1e3 / self.parts_per_second
        self.tolerance_ms = tolerance_for(self.period_ms, source.tolerance_ms, table_of(name))
        self.silent_after_s = max(_SILENT_S, _SILENT_PERIODS * self.period_ms / 1e3)

    def __len__(self) -> int:
        return len(self._rows)

    def parts(self, stop: Event) -> Iterator[tuple[Shot, Reading]]:
        """Yield each part's shot with what the sensors say about its moment.

        A part is read before it is due, as a camera's exposure lies before its frame.
        """
        rows, schedule = self._rows, Schedule(time.time_ns(), self.parts_per_second)
        camera = RecordingCamera(self._recording, rows, schedule)
        sensors = RecordingSensors(self._recording, rows, schedule)
        # The schedule starts when the first part is asked for. Waiting is by the monotonic
        # clock: a jump of the wall clock must not stop the line.
        started_s, index = time.monotonic(), 0
        while not stop.is_set() and (self._repeat or index < len(rows)):
            row, due_ns, late_ms = rows[index % len(rows)], schedule.due_ns(index), 0.0
            frame, fault = camera.frame(index)
            reading = Reading(None) if frame is None else sensors.nearest(due_ns)
            if self._paced:
                due_s = started_s + index / self.parts_per_second
                if stop.wait(max(0.0, due_s - time.monotonic())):
                    return
                late_ms = (time.monotonic() - due_s) * 1e3
            shot = Shot(
                row.sample_id,
                row.part_id,
                iso_of(due_ns) if self._paced else row.captured_at,
                frame,
                fault,
                late_ms,
                source=self.name,
                triggered=self._triggered,
            )
            yield shot, reading
            index += 1


def _refuse_foreign_channels(recording: Recording, spec: ModelSpec) -> None:
    """Stop before the first part where no window of the recording can be made into the model's.

    Another rate is fine, as long as it is not lower: `pairing` resamples. A recording without
    sensors is refused too: every part would be judged by image alone, and nothing would say that
    half of the model is idle. A single sample without a window is fine.
    """
    channels = recording.header.channels
    if spec.sensor is None or not (
        misfit_of(channels, spec.sensor) or too_slow(channels, spec.sensor)
    ):
        return
    raise InputError(
        where=recording.folder,
        expected="the model's channels, " + channels_text(spec.sensor.channels),
        found=channels_text(channels),
        do="Play a recording with those channels, or use a bundle trained on these.",
    )
