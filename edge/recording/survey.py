"""What is in a recording: counts, sizes, ranges, and every oddity. One walk over its files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.artefact import digest_of_file
from edge.errors import InputError
from edge.recording.format import (
    UNLABELLED,
    Recording,
    SampleRow,
    nanoseconds_of,
    read_pixels,
    read_readings,
)
from edge.recording.oddities import (
    EXPECTED_SPLITS,
    Oddity,
    StuckStretches,
    odd_sizes,
    oddities_of_rows,
    oddities_of_window,
)
from edge.recording.track import Track
from edge.sample import Channel

_NO_LABEL = "unlabelled"  # what samples without a label are counted as


class ChannelRange(msgspec.Struct, frozen=True):
    """What one channel reads over all windows, in its unit; finite readings only."""

    name: str
    unit: str
    rate_hz: float
    min: float | None  # None where not one finite reading was found
    mean: float | None
    std: float | None
    max: float | None


class Survey(msgspec.Struct, frozen=True):
    """What `edge recordings show --json` prints. Counts are samples unless the name says parts."""

    name: str
    source: str
    digest: str
    samples: int
    parts: int
    classes: tuple[str, ...]
    counts: dict[str, dict[str, int]]  # split -> label ("unlabelled": none) -> samples
    image_sizes: dict[str, int]  # "640x480" (width x height) -> images
    masks: int
    windows: int
    window_readings: dict[str, int]  # T -> windows
    channels: tuple[ChannelRange, ...]
    parts_per_second: float
    captured_from: str | None
    captured_to: str | None
    oddities: tuple[Oddity, ...]


def survey_of(recording: Recording, track: Track = iter) -> Survey:
    """Read every file of `recording` once and return what was found."""
    rows = recording.rows
    walk = _Walk(recording)
    for row in track(rows):
        walk.visit(row)
    times = sorted((row.captured_at for row in rows if row.captured_at), key=nanoseconds_of)
    oddities = (
        *walk.oddities,
        *walk.stuck.oddities(),
        *odd_sizes(walk.sizes),
        *oddities_of_rows(rows, recording.header.classes, bool(recording.header.channels)),
    )
    return Survey(
        name=recording.header.name,
        source=recording.header.source,
        digest=recording.digest(),
        samples=len(rows),
        parts=len({row.part_id for row in rows}),
        classes=recording.header.classes,
        counts=_counts_of(rows, recording),
        image_sizes=_most_common(f"{width}x{height}" for width, height in walk.sizes.values()),
        masks=sum(1 for row in rows if row.mask is not None),
        windows=sum(1 for row in rows if row.sensor is not None),
        window_readings=_most_common(map(str, walk.lengths)),
        channels=walk.ranges.of(recording.header.channels),
        parts_per_second=recording.header.parts_per_second,
        captured_from=times[0] if times else None,
        captured_to=times[-1] if times else None,
        oddities=tuple(sorted(oddities, key=lambda oddity: oddity.order)),
    )


@dataclass
class _Ranges:
    """Running sums over all finite readings, channel by channel, in float64."""

    channels: int

    def __post_init__(self) -> None:
        self.count = np.zeros(self.channels)
        self.total = np.zeros(self.channels)
        self.squares = np.zeros(self.channels)
        self.low = np.full(self.channels, math.inf)
        self.high = np.full(self.channels, -math.inf)

    def add(self, values_CT: NDArray[np.float32]) -> None:
        finite = np.isfinite(values_CT)
        readings = np.where(finite, values_CT, 0.0).astype(np.float64)
        self.count += finite.sum(axis=1)
        self.total += readings.sum(axis=1)
        self.squares += (readings * readings).sum(axis=1)
        self.low = np.minimum(self.low, np.where(finite, values_CT, math.inf).min(axis=1))
        self.high = np.maximum(self.high, np.where(finite, values_CT, -math.inf).max(axis=1))

    def of(self, channels: Sequence[Channel]) -> tuple[ChannelRange, ...]:
        return tuple(self._range(index, channel) for index, channel in enumerate(channels))

    def _range(self, index: int, channel: Channel) -> ChannelRange:
        count = self.count[index]
        if count == 0:
            return ChannelRange(channel.name, channel.unit, channel.rate_hz, *[None] * 4)
        mean = self.total[index] / count
        variance = max(0.0, self.squares[index] / count - mean * mean)
        low, high = float(self.low[index]), float(self.high[index])
        return ChannelRange(
            channel.name,
            channel.unit,
            channel.rate_hz,
            min=low,
            mean=float(mean),
            std=math.sqrt(variance),
            max=high,
        )


@dataclass
class _Walk:
    """What one pass over the files collects. Its memory grows with rows, not with pixels."""

    recording: Recording
    oddities: list[Oddity] = field(default_factory=list)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # sample_id -> width, height
    lengths: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.channels = self.recording.header.channels
        self.ranges = _Ranges(len(self.channels))
        self.stuck = StuckStretches(self.channels)

    def visit(self, row: SampleRow) -> None:
        self._visit_image(row)
        if row.mask is not None:
            self._visit_mask(row, row.mask)
        if row.sensor is not None and self.channels:
            self._visit_window(row, row.sensor)

    def _visit_image(self, row: SampleRow) -> None:
        self._check_digest(row, row.image, row.image_digest)
        try:
            pixels = read_pixels(self.recording.path_of(row.image))
        except InputError as error:
            self._note("unreadable image", row, row.image, error.found)
            return
        self.sizes[row.sample_id] = (pixels.shape[1], pixels.shape[0])

    def _visit_mask(self, row: SampleRow, mask: str) -> None:
        try:
            pixels = read_pixels(self.recording.path_of(mask))
        except InputError as error:
            self._note("unreadable mask", row, mask, error.found)
            return
        size = (pixels.shape[1], pixels.shape[0])
        if self.sizes.get(row.sample_id, size) != size:
            width, height = self.sizes[row.sample_id]
            found = f"{size[0]}x{size[1]}, its image is {width}x{height}"
            self._note("mask of another size", row, mask, found)
        defective = bool(pixels.any())
        if defective and row.label == self.recording.normal_class:
            self._note("defect mask on a normal part", row, mask, f"label {row.label}")
        if not defective and row.label not in (self.recording.normal_class, UNLABELLED):
            self._note("empty defect mask", row, mask, f"label {row.label}")

    def _visit_window(self, row: SampleRow, sensor: str) -> None:
        self._check_digest(row, sensor, row.sensor_digest)
        try:
            values_CT = read_readings(self.recording.path_of(sensor), self.channels)
        except InputError as error:
            self._note("unreadable sensor file", row, sensor, error.found)
            return
        self.lengths.append(values_CT.shape[1])
        if values_CT.shape[1] == 0:
            self._note("unreadable sensor file", row, sensor, "no readings")
            return
        self.ranges.add(values_CT)
        self.stuck.add(row, values_CT)
        self.oddities += oddities_of_window(row, values_CT, self.channels)

    def _check_digest(self, row: SampleRow, relative: str, digest: str | None) -> None:
        path = self.recording.path_of(relative)
        if path.is_file() and digest_of_file(path) != digest:
            self._note("changed file", row, relative, "not the bytes that were imported")

    def _note(self, kind: str, row: SampleRow, file: str, detail: str) -> None:
        self.oddities.append(Oddity(kind, f"{file}: {detail}", (row.sample_id,)))


def _counts_of(rows: Sequence[SampleRow], recording: Recording) -> dict[str, dict[str, int]]:
    counts = Counter((row.split, row.label or _NO_LABEL) for row in rows)
    labels = [*recording.header.classes]
    labels += sorted({row.label or _NO_LABEL for row in rows} - set(labels))
    splits = sorted(recording.splits, key=lambda split: (*EXPECTED_SPLITS, split).index(split))
    return {split: {label: counts[split, label] for label in labels} for split in splits}


def _most_common(words: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(words).items(), key=lambda item: (-item[1], item[0])))
