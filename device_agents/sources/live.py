"""A live source: a camera's frames, each with the sensor readings around its moment.

Half of a frame's window lies in its future. The source waits for it, within a bound, so a frame
comes half a window late (40 ms for 2048 readings at 25.6 kHz) and the ones behind it wait in turn:
the rate is not touched. Pairing is by the monotonic clock; Unix time is put on at the end, so a
jump of the wall clock cannot part a frame from its window.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from threading import Event

from device_agents.cameras.gstreamer import GstFrames, LiveFrame, ending
from device_agents.cameras.v4l2 import ENVIRONMENT, v4l2_words
from device_agents.pairing.pair import tolerance_for
from device_agents.parts import Reading, Shot, iso_of
from device_agents.sensors.gstreamer import GstReadings
from device_agents.station import Source, table_of
from device_agents.streams.pipeline import Launch, words_of
from edge.errors import InputError
from edge.model_spec import ModelSpec
from edge.prepare import channels_text
from edge.sample import Frame, Window

_READINGS_WAIT_S = 0.25  # how much longer than half a window the readings may be under way
_FIRST_READINGS_S = 5.0  # how long frames are held back for a sensor that starts after the camera
_BEHIND_S = 0.1  # how far behind their frame readings are at most in ordinary times
_ROOM = 4  # frames that may wait to be taken, besides those that wait for their window
_ROOM_LIMIT = 64
_RATE_GUESS = 30.0  # frames per second, for the room alone, where no rate is stated
_SILENT_S = 10.0
_TOLERANCE_MS = 10.0  # where no rate is stated


class LiveSource:
    """A V4L2 camera or a GStreamer pipeline with its sensors: a `PartSource`.

    Each call of `parts` starts the pipelines anew and ends them when it is left.
    """

    def __init__(self, name: str, source: Source, spec: ModelSpec) -> None:
        self.name = name
        self.parts_per_second = source.frames_per_second
        # The source itself gives up after `stalled_after_s`; this is for when it hangs.
        self.silent_after_s = max(_SILENT_S, 2 * source.stalled_after_s)
        table = table_of(name)
        if self.parts_per_second is None:
            self.tolerance_ms = source.tolerance_ms or _TOLERANCE_MS
        else:
            period_ms = 1e3 / self.parts_per_second
            self.tolerance_ms = tolerance_for(period_ms, source.tolerance_ms, table)
        self._source = source
        self._sensor = spec.sensor
        self._half_window_s = 0.0
        if spec.sensor is not None:
            self._half_window_s = spec.sensor.samples / spec.sensor.channels[0].rate_hz / 2
        self._where = f"{table}.{'v4l2' if source.v4l2 is not None else 'gstreamer'}"
        _refuse_misfit(f"{table}.sensor_gstreamer", source, spec)
        self._readings_of(f"{table}.sensor_gstreamer")  # refuses what cannot be, before any start
        self._table = table

    def parts(self, stop: Event) -> Iterator[tuple[Shot, Reading]]:
        """Yield each frame's shot with the readings around it, until `stop` is set.

        Raises MachineError when a pipeline fails, ends, or gives nothing for too long.
        """
        with contextlib.ExitStack() as running:
            readings = self._readings_of(f"{self._table}.sensor_gstreamer")
            if readings is not None:
                running.enter_context(readings)
            frames = running.enter_context(self._frames())
            starting = readings is not None and readings.wait_for_first(_FIRST_READINGS_S)
            while (frame := frames.next(stop)) is not None:
                # A camera is often there before its sensor. Frames from before the first reading
                # belong to the start, and no part was judged by them.
                starting = starting and not self._is_covered(frame, readings)
                if not starting:
                    yield self._part_of(frame, readings)

    def _is_covered(self, frame: LiveFrame, readings: GstReadings | None) -> bool:
        if readings is None or self._sensor is None:
            return True
        captured_ns = frame.captured_ns - round(self._source.delay_ms * 1e6)
        return readings.had_begun(captured_ns, self._sensor.samples)

    def _part_of(self, frame: LiveFrame, readings: GstReadings | None) -> tuple[Shot, Reading]:
        captured_ns = frame.captured_ns - round(self._source.delay_ms * 1e6)
        reading = Reading(None)
        if readings is not None:
            assert self._sensor is not None
            reading = readings.around(captured_ns, self._sensor.samples, _READINGS_WAIT_S)
            reading = replace(reading, gaps_before=readings.ring.take_gaps())
        unix_ns = time.time_ns() - time.monotonic_ns()
        shot = Shot(
            sample_id=f"{self.name}-{unix_ns + captured_ns}",
            part_id="",  # nobody said which part it is
            captured_at=iso_of(unix_ns + captured_ns),
            frame=Frame(frame.pixels, unix_ns + captured_ns),
            late_ms=frame.late_ms,
            source=self.name,
            triggered=self._source.triggered,
            lost_before=frame.lost_before,
            # The part is there when its readings are: half a window later than its frame.
            in_memory_s=frame.in_memory_ns / 1e9 if readings is None else time.monotonic(),
        )
        if (window := reading.window) is not None:
            moved = Window(window.values, window.channels, window.captured_at_ns + unix_ns)
            reading = replace(reading, window=moved)
        return shot, reading

    def _frames(self) -> GstFrames:
        source = self._source
        if source.v4l2 is not None:
            launch = Launch(self._where, v4l2_words(self._where, source), ENVIRONMENT)
        else:
            words = words_of(source.gstreamer or "", self._where)
            words += ending(source.width, source.height, source.frames_per_second)
            launch = Launch(self._where, words)
        behind_s = self._half_window_s + _BEHIND_S if source.sensor_gstreamer else 0.0
        waiting = math.ceil(behind_s * (self.parts_per_second or _RATE_GUESS))
        return GstFrames(
            launch,
            room=min(_ROOM + waiting, _ROOM_LIMIT),
            free_running=not source.triggered,
            stalled_after_s=source.stalled_after_s,
        )

    def _readings_of(self, where: str) -> GstReadings | None:
        text = self._source.sensor_gstreamer
        if text is None or self._sensor is None:
            return None
        return GstReadings(
            where,
            text,
            self._sensor.channels,
            scale=self._source.sensor_scale,
            stalled_after_s=self._source.stalled_after_s,
        )


def _refuse_misfit(where: str, source: Source, spec: ModelSpec) -> None:
    """Raise InputError where model and source do not agree on there being sensors.

    A model with sensors is refused a source without, as it is refused such a recording: every part
    would be judged by image alone, and nothing would say that half of the model is idle.
    """
    if (spec.sensor is None) == (source.sensor_gstreamer is None):
        return
    if spec.sensor is None:
        raise InputError(
            where=where,
            expected="no sensor: the model looks at images alone",
            found=f"'{source.sensor_gstreamer}'",
            do=f"Remove {where}, or use a bundle that was trained with sensors.",
        )
    raise InputError(
        where=where,
        expected="the model's channels, " + channels_text(spec.sensor.channels),
        found="no pipeline for sensors",
        do=f'Add {where}, such as "alsasrc device=hw:1", or use a bundle without sensors.',
    )
