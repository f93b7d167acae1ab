"""The real inspector on frames that lie in memory, as a camera's driver leaves them there.

    python -m tests.benchmarks.our_inspector STATION    started by `comparison`

All but the source is what `edge agent inspector` runs. The recording named by the station file is
read once at the start, so that nobody's reader of image files is measured.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

from device_agents.inspector import loop as inspector
from device_agents.parts import Reading, Shot, iso_of
from device_agents.station import Source, station_from_toml
from edge.cli.agent import log_to_stderr, stop_on_signals
from edge.model_spec import ModelSpec
from edge.recording.format import Recording
from edge.sample import Frame, Window


class InMemory:
    """A `PartSource` of a recording's samples, over and over, each at its due time."""

    def __init__(self, name: str, source: Source, _: ModelSpec, *, paced: bool) -> None:
        assert paced
        recording = Recording.open(Path(source.recording or ""))
        self._samples = [recording.read_sample(row) for row in recording.rows]
        self.name = name
        self.parts_per_second = source.parts_per_second or recording.header.parts_per_second
        self.tolerance_ms = 1e3 / self.parts_per_second / 4
        self.silent_after_s = 60.0

    def parts(self, stop: Event) -> Iterator[tuple[Shot, Reading]]:
        first_s, number = time.monotonic(), 0
        while True:
            due_s = first_s + number / self.parts_per_second
            if stop.wait(max(0.0, due_s - time.monotonic())):
                return
            sample, now_ns = self._samples[number % len(self._samples)], time.time_ns()
            late_ms = (time.monotonic() - due_s) * 1e3
            frame = Frame(sample.frame.pixels, now_ns)
            assert sample.window is not None
            window = Window(sample.window.values, sample.window.channels, now_ns)
            name = f"p{number:07d}"
            yield Shot(name, name, iso_of(now_ns), frame, "", late_ms, self.name), Reading(window)
            number += 1


if __name__ == "__main__":
    inspector.source_from = InMemory
    log_to_stderr()
    inspector.run_inspector(station_from_toml(Path(sys.argv[1])), stop_on_signals())
