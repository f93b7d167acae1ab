"""A recording in the place of a line: its camera and its sensors on one clock.

The inspector and `edge replay` take their parts from here, so that what is replayed on a desk goes
the way that it goes on the device.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

from device_agents.cameras.recording import RecordingCamera, Schedule, Shot
from device_agents.pairing import tolerance_for
from device_agents.sensors.recording import Reading, RecordingSensors
from device_agents.station import Source
from edge.errors import InputError
from edge.model_spec import ModelSpec
from edge.prepare import channels_text
from edge.recording.format import Recording


class Playback:
    """One recording, checked against the model before its first part is played."""

    def __init__(self, source: Source, spec: ModelSpec, *, paced: bool) -> None:
        self._recording = Recording.open(Path(source.recording))
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
        self.parts_per_second = source.parts_per_second or recording.header.parts_per_second
        self.period_ms = 1e3 / self.parts_per_second
        self.tolerance_ms = tolerance_for(self.period_ms, source.tolerance_ms)

    def __len__(self) -> int:
        return len(self._rows)

    def parts(self, stop: Event) -> Iterator[tuple[Shot, Reading]]:
        """Yield each part's shot with what the sensors say about its moment."""
        schedule = Schedule(time.time_ns(), self.parts_per_second)
        camera = RecordingCamera(
            self._recording, self._rows, schedule, paced=self._paced, repeat=self._repeat
        )
        sensors = RecordingSensors(self._recording, self._rows, schedule)
        for shot in camera.shots(stop):
            frame = shot.frame
            yield shot, Reading(None) if frame is None else sensors.nearest(frame.captured_at_ns)


def _refuse_foreign_channels(recording: Recording, spec: ModelSpec) -> None:
    """Stop before the first part where the recording has not the model's sensors.

    A recording without sensors is refused too: every part would be judged by image alone, and
    nothing would say that half of the model is idle. A single sample without a window is fine.
    """
    if spec.sensor is None or recording.header.channels == spec.sensor.channels:
        return
    raise InputError(
        where=recording.folder,
        expected="the model's channels, " + channels_text(spec.sensor.channels),
        found=channels_text(recording.header.channels),
        do="Play a recording with those channels, or use a bundle trained on these.",
    )
