"""An image folder with a metadata table becomes a recording: `edge import folder`.

Columns: `file_name` and `label` must be there; `sensor_file_name` where --sensor names channels;
`mask_file_name`, `split`, `part_id` and `captured_at` are taken where present. Other columns are
kept out, for they may hold answers, and are named in a remark.

A row with an empty label is an unlabelled part: it teaches, in split `train`, and nothing is
measured on it. Where splits are made here, it goes there by itself.

What makes a row meaningless is an error that names the row: a file that is not there, a time that
is none, a window of another shape. What is wrong inside a file that is there
(a truncated picture, NaN readings, a duplicate) is imported as it came and reported by
`edge recordings show`, for a station meets such samples too.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import msgspec

from edge.errors import InputError, nearest_hint
from edge.recording.format import (
    FILES_FOLDER,
    UNLABELLED,
    UNLABELLED_SPLIT,
    Recording,
    RecordingHeader,
    SampleRow,
    nanoseconds_of,
    raw_readings,
    read_readings,
    refuse_unlabelled,
    write_recording,
)
from edge.recording.metadata import Table, TableRow, table_of
from edge.recording.originals import Originals, original_file
from edge.recording.splits import SHARES, Grouped, splits_of
from edge.recording.track import Track
from edge.sample import Channel

TAKEN_COLUMNS = (
    "file_name",
    "sensor_file_name",
    "mask_file_name",
    "label",
    "split",
    "part_id",
    "captured_at",
)
NORMAL_LABELS = ("ok", "good")  # tried in this order where --ok is not given
DEFAULT_PARTS_PER_SECOND = 1.0
MAX_RATE_HZ = 1e9


@dataclass(frozen=True)
class FolderImport:
    """What a person said about the folder. `ok` None: the label `ok`, else `good`."""

    source: Path
    channels: tuple[Channel, ...] = ()
    ok: str | None = None
    parts_per_second: float = DEFAULT_PARTS_PER_SECOND


@dataclass
class WindowLengths:
    """How many readings T the sensor files hold, to refuse a mixture."""

    names_by_length: dict[int, list[str]] = field(default_factory=dict)
    first_unreadable: InputError | None = None

    def check_same(self, table: Table) -> None:
        """Raise InputError naming the files whose length is not the usual one.

        One file that cannot be read is an oddity; if none can, something was said wrongly.
        """
        if self.first_unreadable is not None and not self.names_by_length:
            raise self.first_unreadable
        if len(self.names_by_length) < 2:
            return
        usual = max(self.names_by_length, key=lambda length: len(self.names_by_length[length]))
        others = {
            length: names for length, names in self.names_by_length.items() if length != usual
        }
        length, names = next(iter(others.items()))
        count = sum(map(len, others.values()))
        raise InputError(
            where=table.path,
            expected=f"sensor files of one length (most hold {usual} readings)",
            found=f"{count} of another, first '{names[0]}' with {length}",
            do="Cut the windows to one length, or take those rows out.",
        )

    def note_unreadable(self, path: Path, channels: tuple[Channel, ...]) -> None:
        """Keep the error of the first file that could not be read."""
        if self.first_unreadable is None:
            try:
                read_readings(path, channels)
            except InputError as error:
                self.first_unreadable = error


def import_folder(
    order: FolderImport, out: Path, track: Track = iter
) -> tuple[Recording, tuple[str, ...]]:
    """Fill the empty folder `out` (see `artefact.new_folder`); return the recording and remarks."""
    table = table_of(order.source)
    remarks = _checked_columns(table, order.channels)
    classes = _classes_of(table, order.ok)
    _check_files_present(table, order)
    originals = Originals(order.source, out / FILES_FOLDER)
    lengths = WindowLengths()
    sample_ids = _sample_ids([row.cells["file_name"] for row in table.rows])
    rows = []
    for index, row in enumerate(track(table.rows)):
        rows.append(_sample_row(row, sample_ids[index], order, originals, lengths))
    lengths.check_same(table)
    rows, split_remarks = _with_splits(rows, table, normal=classes[0])
    unlabelled = sum(1 for row in rows if row.label == UNLABELLED)
    if unlabelled:
        remarks.append(
            f"{unlabelled:,} samples without a label: they teach in '{UNLABELLED_SPLIT}', through "
            "the teachers alone."
        )
    header = RecordingHeader(
        name=order.source.resolve().name,
        channels=order.channels,
        classes=classes,
        parts_per_second=order.parts_per_second,
        source=f"edge import folder, {table.path.name} with SHA-256 {table.digest}",
    )
    write_recording(out, header, rows)
    return Recording(out, header, tuple(rows)), (*remarks, *split_remarks)


def channel_from_text(text: str) -> Channel:
    """Read `NAME:UNIT:HZ` as given to --sensor. Raises InputError saying what is wrong with it."""
    name, _, rest = text.partition(":")
    unit, _, rate = rest.partition(":")
    try:
        rate_hz = float(rate)
    except ValueError:
        rate_hz = math.nan
    if not (name.strip() and unit.strip()) or not 0.0 < rate_hz <= MAX_RATE_HZ:
        raise InputError(
            where="--sensor",
            expected="NAME:UNIT:HZ with a rate above 0, such as drive_end:g:12000",
            found=f"'{text}'",
            do="Name each channel of the sensor files, in the files' order.",
        )
    return Channel(name.strip(), unit.strip(), rate_hz)


def channels_from_texts(texts: Sequence[str]) -> tuple[Channel, ...]:
    """Read every --sensor; each name stands once."""
    channels = tuple(channel_from_text(text) for text in texts)
    name, times = (
        Counter(channel.name for channel in channels).most_common(1)[0] if channels else ("", 1)
    )
    if times > 1:
        raise InputError(
            where="--sensor",
            expected="each channel name once",
            found=f"'{name}' {times} times",
            do="Give every channel a name of its own.",
        )
    return channels


def _checked_columns(table: Table, channels: tuple[Channel, ...]) -> list[str]:
    table.require("file_name", "the image of each sample, relative to the folder")
    table.require("label", "the class of each sample")
    has_sensors = any(row.cells.get("sensor_file_name") for row in table.rows)
    if channels:
        table.require("sensor_file_name", "the readings that --sensor names channels for")
    elif has_sensors:
        raise InputError(
            where=table.path,
            expected="--sensor NAME:UNIT:HZ for each channel of the files in 'sensor_file_name'",
            found="no --sensor",
            do="Name the channels in the files' order, or take the column out.",
        )
    remarks = []
    left_out = [name for name in table.columns if name not in TAKEN_COLUMNS]
    if left_out:
        remarks.append(f"Columns kept out, as no input of a model: {', '.join(left_out)}.")
    if len({channel.rate_hz for channel in channels}) > 1:
        remarks.append(
            "The channels have different rates in one file: its readings cover different times."
        )
    return remarks


def _classes_of(table: Table, ok: str | None) -> tuple[str, ...]:
    """Return the labels, the normal class first and the others in alphabetical order."""
    labels = sorted({row.cells["label"] for row in table.rows} - {UNLABELLED})
    normal = ok if ok is not None else next((n for n in NORMAL_LABELS if n in labels), None)
    if normal not in labels:
        raise InputError(
            where=table.path,
            expected=f"the label '{normal}' that --ok names"
            if normal
            else "the label 'ok' or 'good' for normal parts",
            found="the labels " + (", ".join(labels) or "(none: every cell is empty)"),
            do=(nearest_hint(ok, labels) if ok else "Say which of them is normal with --ok LABEL."),
        )
    return (normal, *(label for label in labels if label != normal))


def _check_files_present(table: Table, order: FolderImport) -> None:
    """Look for every named file before the first is copied; name the first that is missing."""
    root = order.source.resolve()
    for row in table.rows:
        if not row.cells.get("file_name"):
            raise InputError(
                where=row.where,
                expected="the name of an image in 'file_name'",
                found="an empty cell",
                do="Name the image or take the row out.",
            )
        for column in ("file_name", "sensor_file_name", "mask_file_name"):
            if row.cells.get(column):
                original_file(order.source, root, row.cells[column], f"{row.where}, {column}")


def _sample_row(
    row: TableRow,
    sample_id: str,
    order: FolderImport,
    originals: Originals,
    lengths: WindowLengths,
) -> SampleRow:
    cells = row.cells
    image, image_digest = originals.copy(cells["file_name"], row.where)
    sensor = sensor_digest = mask = None
    if cells.get("sensor_file_name"):
        sensor, sensor_digest = originals.copy(cells["sensor_file_name"], row.where)
        _note_length(order, sensor, row.where, lengths)
    if cells.get("mask_file_name"):
        mask, _ = originals.copy(cells["mask_file_name"], row.where)
    captured_at = cells.get("captured_at") or None
    _check_time(captured_at, row.where)
    sample = SampleRow(
        sample_id=sample_id,
        image=image,
        image_digest=image_digest,
        label=cells["label"],
        split=cells.get("split", ""),
        part_id=cells.get("part_id") or sample_id,
        sensor=sensor,
        sensor_digest=sensor_digest,
        mask=mask,
        captured_at=captured_at,
    )
    if sample.split:
        refuse_unlabelled(sample, row.where)
    return sample


def _note_length(order: FolderImport, sensor: str, where: str, lengths: WindowLengths) -> None:
    """Hold a sensor file's shape against the channels. One that cannot be read is an oddity."""
    path = order.source / sensor
    try:
        values = raw_readings(path, order.channels)
    except (OSError, ValueError, EOFError):
        lengths.note_unreadable(path, order.channels)
        return
    channels = len(order.channels)
    if values.ndim == 2 and len(values) != channels and values.shape[1] == channels:
        raise InputError(
            where=f"{path} ({where})",
            expected=f"readings [{channels}, T], a row per channel",
            found=f"{list(values.shape)}, a column per channel",
            do="Save the array transposed, or as .csv with a header and a column per channel.",
        )
    read_readings(path, order.channels)  # raises when the shape is wrong in another way
    lengths.names_by_length.setdefault(values.shape[1], []).append(sensor)


def _check_time(captured_at: str | None, where: str) -> None:
    try:
        nanoseconds_of(captured_at)
    except InputError as error:
        raise InputError(
            where=f"{where}, captured_at",
            expected=error.expected,
            found=error.found,
            do=error.do,
        ) from None


def _sample_ids(names: Sequence[str]) -> list[str]:
    """Name samples by their image: by its stem where that is enough, else by more of its path."""
    paths = [PurePosixPath(name) for name in names]
    forms: tuple[Callable[[PurePosixPath], str], ...] = (
        lambda path: path.stem,
        lambda path: path.with_suffix("").as_posix(),
        lambda path: path.as_posix(),
    )
    distinct = set(paths)
    form = next(form for form in forms if len(set(map(form, distinct))) == len(distinct))
    taken: Counter[str] = Counter()
    sample_ids = []
    for name in map(form, paths):
        taken[name] += 1  # an image may stand in several rows
        sample_ids.append(name if taken[name] == 1 else f"{name}#{taken[name]}")
    return sample_ids


def _with_splits(
    rows: list[SampleRow], table: Table, normal: str
) -> tuple[list[SampleRow], list[str]]:
    """Give each row a split where the table has none, and say how."""
    without = [index for index, row in enumerate(rows) if not row.split]
    if not without:
        return rows, []
    if len(without) < len(rows):
        raise InputError(
            where=f"{table.rows[without[0]].where}, split",
            expected="a split in every row, or in none",
            found=f"{len(without)} of {len(rows)} rows without",
            do="Fill them in, or take the column out to have splits made by part_id.",
        )
    remarks = ["No split given: made by part_id, about 60/15/25 over train, val and test."]
    alone = sum(1 for row in table.rows if not row.cells.get("part_id"))
    if alone:
        remarks.append(f"{alone} samples without a part_id: each file counts as a part of its own.")
    grouped = [Grouped(row.label, row.part_id, row.image_digest) for row in rows]
    named = [
        msgspec.structs.replace(row, split=split)
        for row, split in zip(rows, splits_of(grouped, normal), strict=True)
    ]
    lacking = [
        split
        for split in SHARES
        if not any(row.split == split and row.label == normal for row in named)
    ]
    if lacking:
        remarks.append(f"Too few parts: no sample labelled '{normal}' in {' and '.join(lacking)}.")
    return named, remarks
