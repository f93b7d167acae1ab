"""Sensor readings from a GStreamer pipeline that gives audio, such as `alsasrc device=hw:1`.

Full scale times `sensor_scale` is the physical unit. The pipeline must give as many channels as
the model has: they are never mixed. Where it has another rate, GStreamer resamples.
"""

from __future__ import annotations

import time

import numpy as np

from device_agents.parts import Reading
from device_agents.sensors.ring import SensorRing
from device_agents.streams.matroska import BrokenStream, MatroskaStream, Track
from device_agents.streams.pipeline import Launch, words_of
from device_agents.streams.pipeline_reader import PipelineReader
from device_agents.streams.stream_clock import StreamClock
from edge.errors import InputError
from edge.sample import Channel

_EXPECTED = "sensor readings from the pipeline"
_CODEC = "A_PCM/FLOAT/IEEE"
_RING_S = 10.0
_BLOCK_LIMIT_BYTES = 64 << 20


class GstReadings(PipelineReader):
    """One sensor pipeline and the ring that it fills."""

    def __init__(
        self,
        where: str,
        text: str,
        channels: tuple[Channel, ...],
        *,
        scale: tuple[float, ...] | None,
        stalled_after_s: float,
    ) -> None:
        rates = {channel.rate_hz for channel in channels}
        if len(rates) != 1 or not min(rates).is_integer():
            raise InputError(
                where=where,
                expected="a model whose channels share one whole rate, as those of a sound card do",
                found=", ".join(f"{channel.name} {channel.rate_hz:g} Hz" for channel in channels),
                do="Leave the pipeline out, or train on channels that were recorded together.",
            )
        if scale is not None and len(scale) != len(channels):
            raise InputError(
                where=where.replace("sensor_gstreamer", "sensor_scale"),
                expected=f"one figure for each of the model's {len(channels)} channels",
                found=str(len(scale)),
                do="Give them in the order " + ", ".join(channel.name for channel in channels),
            )
        words = [*words_of(text, where), *_ending(len(channels), int(min(rates)))]
        super().__init__(Launch(where, words), expected=_EXPECTED, stalled_after_s=stalled_after_s)
        self._scale = np.asarray(scale or (1.0,) * len(channels), np.float32)
        self._rate_hz = min(rates)
        self._clock = StreamClock()
        self.ring = SensorRing(channels, _RING_S)

    def around(self, moment_ns: int, samples: int, wait_s: float) -> Reading:
        """Return the window around a moment of the monotonic clock; its time is by that clock.

        Half of the window lies after the moment: it is waited for, and `wait_s` longer at most.
        Raises MachineError when the pipeline has failed.
        """
        half_ns = round(samples * 5e8 / self._rate_hz)
        late_ns = time.monotonic_ns() - moment_ns
        timeout_s = max(0.0, (half_ns - late_ns) / 1e9) + wait_s
        # The window is laid on whole readings: its end may lie one later than its half.
        until_ns = self._stream_ns(moment_ns) + half_ns + round(1e9 / self._rate_hz)
        self.ring.wait_for(until_ns, timeout_s)
        self._raise_failure()
        reading = self.ring.around(self._stream_ns(moment_ns), samples)
        if reading.window is None:
            return reading
        window = reading.window
        middle_ns = window.captured_at_ns + self._clock.offset_ns
        return Reading(type(window)(window.values, window.channels, middle_ns))

    def had_begun(self, moment_ns: int, samples: int) -> bool:
        """Tell whether readings had begun when the window around the moment did."""
        begin_ns = self.ring.begin_ns
        half_ns = round(samples * 5e8 / self._rate_hz)
        return begin_ns is not None and self._stream_ns(moment_ns) - half_ns >= begin_ns

    def wait_for_first(self, timeout_s: float) -> bool:
        """Wait until readings come. Raises MachineError when the pipeline has failed."""
        deadline_s = time.monotonic() + timeout_s
        while not self.ring.wait_for(-(2**62), min(0.1, timeout_s)):
            self._raise_failure()
            if time.monotonic() > deadline_s:
                return False
        return True

    def _stream_ns(self, moment_ns: int) -> int:
        return moment_ns - self._clock.offset_ns

    def _refuse_other(self, track: Track) -> None:
        wanted = (_CODEC, len(self._scale), self._rate_hz)
        if (track.codec, track.channels, track.rate_hz) != wanted:
            raise BrokenStream(f"{track.codec}, {track.channels} channels, {track.rate_hz:g} Hz")

    def _take_block(self, stream: MatroskaStream, track: Track) -> None:
        stream_ns, size = stream.next_block()
        if size % (4 * len(self._scale)) or size > _BLOCK_LIMIT_BYTES:
            raise BrokenStream(f"a block of {size} bytes for {len(self._scale)} channels")
        values_NC = np.empty((size // 4 // len(self._scale), len(self._scale)), "<f4")
        stream.read_into(values_NC.data.cast("B"))
        self._heard_ns = time.monotonic_ns()
        # A block is here when its last reading was taken: that is the moment to compare.
        self._clock.see(stream_ns + round(len(values_NC) * 1e9 / self._rate_hz), self._heard_ns)
        values_NC *= self._scale
        self.ring.write(values_NC, stream_ns)


def _ending(channels: int, rate_hz: int) -> list[str]:
    # Before audioconvert, which would mix: a source with another number of channels is refused.
    count = f"caps=audio/x-raw,channels={channels}"
    form = f"caps=audio/x-raw,format=F32LE,layout=interleaved,rate={rate_hz},channels={channels}"
    return [
        *("!", "capsfilter", count, "!", "audioconvert"),
        *("!", "audioresample", "!", "capsfilter", form),
    ]
