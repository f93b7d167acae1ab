"""What is odd about a recording: things that a person should look at before training on it.

An oddity is no error: the sample stays in the recording as it came. Each names its samples and
says what was found, with the figure that made it odd.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import median_low

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge.readings import longest_run, stuck_from
from edge.recording.format import UNLABELLED, SampleRow
from edge.sample import Channel

KINDS = (  # in the order in which they are shown: what spoils a measurement first
    "unreadable image",
    "unreadable sensor file",
    "unreadable mask",
    "changed file",
    "part in two splits",
    "duplicate file in two splits",
    "duplicate file",
    "unknown label",
    "NaN or infinite",
    "constant channel",
    "stuck channel",
    "missing sensor",
    "mask of another size",
    "defect mask on a normal part",
    "empty defect mask",
    "odd image size",
    "missing split",
    "tiny class",
)
SIZE_FACTOR = 2.0  # a side this many times the median side, or less than its inverse
TINY_CLASS = 10  # samples: fewer say little about a class
EXPECTED_SPLITS = ("train", "val", "test")


class Oddity(msgspec.Struct, frozen=True):
    """One thing to look at. `kind` is one of `KINDS`; `sample_ids` is empty for a whole class."""

    kind: str
    detail: str
    sample_ids: tuple[str, ...] = ()

    @property
    def order(self) -> tuple[int, tuple[str, ...], str]:
        """Sort key: the kind's place, then the samples."""
        return KINDS.index(self.kind), self.sample_ids, self.detail


def oddities_of_window(
    row: SampleRow, values_CT: NDArray[np.float32], channels: Sequence[Channel]
) -> Iterator[Oddity]:
    """Yield what is odd about one sensor window."""
    finite_CT = np.isfinite(values_CT)
    for channel, values, finite in zip(channels, values_CT, finite_CT, strict=True):
        bad = int(finite.size - finite.sum())
        if bad:
            detail = f"{row.sensor}: {bad} of {finite.size} readings of {channel.name}"
            yield Oddity("NaN or infinite", detail, (row.sample_id,))
        elif values.min() == values.max():
            detail = f"{row.sensor}: {channel.name} reads {values[0]:g} {channel.unit} throughout"
            yield Oddity("constant channel", detail, (row.sample_id,))


class StuckStretches:
    """Windows in which a channel stays at one value for a while, as a loose cable makes it.

    A channel that does so in more than half of its windows is slow by nature, and not reported.
    """

    def __init__(self, channels: Sequence[Channel]) -> None:
        self._channels = channels
        self._windows = 0
        self._found: dict[str, list[Oddity]] = defaultdict(list)

    def add(self, row: SampleRow, values_CT: NDArray[np.float32]) -> None:
        """Look at one window; constant ones have an oddity of their own."""
        self._windows += 1
        readings = values_CT.shape[1]
        for channel, values in zip(self._channels, values_CT, strict=True):
            longest = longest_run(values)
            if stuck_from(readings) <= longest < readings:
                detail = f"{row.sensor}: {channel.name} unchanged for {longest} of {readings}"
                self._found[channel.name].append(
                    Oddity("stuck channel", f"{detail} readings", (row.sample_id,))
                )

    def oddities(self) -> list[Oddity]:
        """Return those of the channels that are not always like this."""
        return [
            oddity
            for found in self._found.values()
            if 2 * len(found) <= self._windows or self._windows == 1
            for oddity in found
        ]


def odd_sizes(sizes: Mapping[str, tuple[int, int]]) -> Iterator[Oddity]:
    """Yield the images much larger or smaller than the median; `sizes` are (width, height)."""
    if not sizes:
        return
    usual = tuple(median_low(size[axis] for size in sizes.values()) for axis in (0, 1))
    for sample_id, size in sizes.items():
        factors = [side / middle for side, middle in zip(size, usual, strict=True)]
        if any(not 1 / SIZE_FACTOR <= factor <= SIZE_FACTOR for factor in factors):
            detail = f"{size[0]}x{size[1]}, the median is {usual[0]}x{usual[1]}"
            yield Oddity("odd image size", detail, (sample_id,))


def oddities_of_rows(
    rows: Sequence[SampleRow], classes: Sequence[str], has_channels: bool
) -> Iterator[Oddity]:
    """Yield what the rows alone tell: no file is read."""
    if has_channels:
        for row in rows:
            if row.sensor is None:
                yield Oddity("missing sensor", "no sensor window was paired", (row.sample_id,))
    for row in rows:
        if row.label not in (*classes, UNLABELLED):
            yield Oddity("unknown label", f"'{row.label}' is no class", (row.sample_id,))
    yield from _parts_in_two_splits(rows)
    yield from _duplicates(rows)
    yield from _thin_splits(rows, classes)


def _parts_in_two_splits(rows: Sequence[SampleRow]) -> Iterator[Oddity]:
    for part_id, members in _grouped(rows, "part_id").items():
        splits = sorted({row.split for row in members})
        if len(splits) > 1:
            detail = f"part {part_id} in {', '.join(splits)}"
            yield Oddity("part in two splits", detail, _ids(members))


def _duplicates(rows: Sequence[SampleRow]) -> Iterator[Oddity]:
    for column, what in (("image_digest", "image"), ("sensor_digest", "sensor file")):
        for members in _grouped(rows, column).values():
            if len(members) < 2:
                continue
            splits = sorted({row.split for row in members})
            labels = sorted({row.label for row in members} - {UNLABELLED})
            detail = f"the same {what} in {len(members)} samples"
            detail += f", labelled {' and '.join(labels)}" if len(labels) > 1 else ""
            detail += f", in {' and '.join(splits)}" if len(splits) > 1 else ""
            kind = "duplicate file in two splits" if len(splits) > 1 else "duplicate file"
            yield Oddity(kind, detail, _ids(members))


def _thin_splits(rows: Sequence[SampleRow], classes: Sequence[str]) -> Iterator[Oddity]:
    present = {row.split for row in rows}
    for split in EXPECTED_SPLITS:
        if split not in present:
            yield Oddity("missing split", f"no sample is in '{split}'")
    counts = Counter(row.label for row in rows)
    for label in classes:
        if counts[label] < TINY_CLASS:
            yield Oddity("tiny class", f"{label}: {counts[label]} samples in all")


def _grouped(rows: Sequence[SampleRow], column: str) -> dict[str, list[SampleRow]]:
    groups: dict[str, list[SampleRow]] = defaultdict(list)
    for row in rows:
        if getattr(row, column) is not None:
            groups[getattr(row, column)].append(row)
    return groups


def _ids(rows: Sequence[SampleRow]) -> tuple[str, ...]:
    return tuple(row.sample_id for row in rows)
