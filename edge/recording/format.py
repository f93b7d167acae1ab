"""The recording on disk: one header, one row per sample, and the original files untouched.

    REC/recording.json    the header: channels, classes, rate, where it came from
    REC/samples.jsonl     one `SampleRow` a line
    REC/files/...         the original files, byte for byte, under their original relative paths

Sensor files are `.npy` [C, T] or `.csv` with a header line (one column per channel, one line per
reading). Images are whatever Pillow opens; masks are pictures in which anything above 0 is defect.
"""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from edge.artefact import digest_of_bytes
from edge.errors import InputError
from edge.sample import Channel, Frame, Sample, Window

SCHEMA = 1
HEADER_FILE = "recording.json"
ROWS_FILE = "samples.jsonl"
FILES_FOLDER = "files"
UNLABELLED = ""
"""The label of a part that nobody labelled. Such parts teach, in `UNLABELLED_SPLIT` alone: nothing
can be measured on them."""
UNLABELLED_SPLIT = "train"
# What msgspec raises on bytes that are no JSON object, beside its own error.
UNREADABLE_JSON = (msgspec.DecodeError, UnicodeDecodeError, AttributeError, RecursionError)
# The seconds' fraction, which `datetime.fromisoformat` of Python 3.10 takes in 3 or 6 digits only.
_FRACTION = re.compile(r"^([0-9]{4}-[0-9]{2}-[0-9]{2}.[0-9]{2}:[0-9]{2}:[0-9]{2})[.,]([0-9]+)")
_OTHER_SPLIT = "Name one of those splits, or import with a split column."


class SampleRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One sample. Paths are relative to `REC/files`; digests are SHA-256 of the files' bytes.

    In split "train" the label may be empty (`UNLABELLED`).
    """

    sample_id: str
    image: str
    image_digest: str
    label: str
    split: str
    part_id: str
    sensor: str | None = None
    sensor_digest: str | None = None
    mask: str | None = None
    captured_at: str | None = None  # ISO 8601; without a zone it is taken as UTC


class RecordingHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the samples have in common. `classes[0]` is the normal class."""

    name: str
    channels: tuple[Channel, ...]
    classes: tuple[str, ...]
    parts_per_second: float  # the line's own pace, used when the recording is played back
    source: str  # in words: which importer made it, and from what
    schema: int = SCHEMA


class Recording:
    """A recording opened for reading. Nothing is kept in memory but the rows."""

    def __init__(self, folder: Path, header: RecordingHeader, rows: tuple[SampleRow, ...]) -> None:
        self.folder = folder
        self.header = header
        self.rows = rows

    @classmethod
    def open(cls, folder: Path) -> Recording:
        """Open `folder`. Raises InputError when it is no recording, or one of another schema."""
        header = _read_header(folder / HEADER_FILE)
        return cls(folder, header, tuple(_read_rows(folder / ROWS_FILE)))

    @property
    def normal_class(self) -> str:
        """The label of good parts."""
        return self.header.classes[0]

    @property
    def splits(self) -> tuple[str, ...]:
        """Every split that occurs, in order of first appearance."""
        return tuple(dict.fromkeys(row.split for row in self.rows))

    def rows_in(self, *splits: str, do: str = _OTHER_SPLIT) -> tuple[SampleRow, ...]:
        """Return the rows of the first of `splits` that occurs.

        Raises InputError when none does; `do` is its advice for a recording of other splits.
        """
        for split in splits:
            rows = tuple(row for row in self.rows if row.split == split)
            if rows:
                return rows
        raise InputError(
            where=self.folder,
            expected="samples in split " + " or ".join(f"'{split}'" for split in splits),
            found="only " + ", ".join(self.splits) if self.rows else "no samples at all",
            do=do if self.rows else "Import parts into it first, with `edge import`.",
        )

    def digest(self) -> str:
        """Return the SHA-256 that names this recording's content, files included (64 hex)."""
        header = msgspec.json.encode(self.header)
        return digest_of_bytes(header + b"\n" + b"\n".join(map(msgspec.json.encode, self.rows)))

    def path_of(self, relative: str) -> Path:
        """Return the full path of one of the recording's files."""
        return self.folder / FILES_FOLDER / relative

    def read_sample(self, row: SampleRow) -> Sample:
        """Read one sample from disk. Raises InputError naming the file that cannot be read."""
        captured_at_ns = nanoseconds_of(row.captured_at)
        frame = Frame(read_pixels(self.path_of(row.image)), captured_at_ns)
        window = None
        if row.sensor is not None and self.header.channels:
            values = read_readings(self.path_of(row.sensor), self.header.channels)
            window = Window(values, self.header.channels, captured_at_ns)
        return Sample(row.sample_id, frame, window, row.part_id)

    def read_mask(self, row: SampleRow) -> NDArray[np.bool_] | None:
        """Return the defect mask [H, W] at the image's own size, or None where there is none."""
        if row.mask is None:
            return None
        return np.asarray(read_pixels(self.path_of(row.mask)).any(axis=2))


def write_recording(folder: Path, header: RecordingHeader, rows: Iterable[SampleRow]) -> None:
    """Write header and rows into `folder` (see `artefact.new_folder`), whose files are there."""
    (folder / HEADER_FILE).write_bytes(msgspec.json.format(msgspec.json.encode(header)) + b"\n")
    with (folder / ROWS_FILE).open("wb") as file:
        for row in rows:
            file.write(msgspec.json.encode(row) + b"\n")


def read_pixels(path: Path) -> NDArray[np.uint8]:
    """Read a picture of any mode as uint8 [H, W, 3] RGB, turned as its EXIF says.

    16-bit grey is scaled to 8 bits by its own range of 65,535. Raises InputError when the file is
    missing, truncated, no picture, or so large that it looks like a decompression bomb.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                picture.load()
                # In place, and no conversion of what is RGB: each is a copy of a large frame.
                ImageOps.exif_transpose(picture, in_place=True)
    except FileNotFoundError:
        raise _unreadable(path, "nothing") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombWarning) as error:
        raise _unreadable(path, str(error)) from None
    except Image.DecompressionBombError as error:
        raise _unreadable(path, str(error)) from None
    if picture.mode.startswith("I"):
        grey = np.asarray(picture, dtype=np.uint32) >> 8
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def read_readings(path: Path, channels: tuple[Channel, ...]) -> NDArray[np.float32]:
    """Read a sensor file as float32 [C, T]. Raises InputError when its shape does not fit."""
    try:
        values = raw_readings(path, channels)
    except FileNotFoundError:
        raise _bad_readings(
            path, channels, "nothing", do="Restore the file or import the originals again."
        ) from None
    except _ForeignCsv as error:
        raise _bad_readings(
            path,
            channels,
            str(error),
            do="Save it again with commas between the columns and decimal points (1.5, not 1,5).",
        ) from None
    except (OSError, ValueError, EOFError) as error:
        raise _bad_readings(path, channels, str(error)) from None
    if values.ndim != 2 or len(values) != len(channels) or values.dtype.kind not in "fiu":
        raise _bad_readings(path, channels, f"{values.dtype} {list(values.shape)}")
    with np.errstate(over="ignore"):  # a reading beyond float32 becomes infinite, and is refused
        return values.astype(np.float32)


def raw_readings(path: Path, channels: tuple[Channel, ...]) -> NDArray[Any]:
    """Return a sensor file's array as it lies, before its shape is held against `channels`.

    One row of readings counts as one channel. Raises OSError, ValueError or EOFError when the
    file itself cannot be read; `read_readings` is what most callers want.
    """
    if path.suffix.lower() == ".csv":
        return _readings_from_csv(path, channels)
    try:
        values = np.load(path, allow_pickle=False)
    except (SyntaxError, TokenError, BadZipFile, OverflowError, MemoryError) as error:
        # numpy reads the header with Python's own parser, and lets its errors through.
        raise ValueError(f"a damaged .npy header ({error})") from None
    if not isinstance(values, np.ndarray):
        raise ValueError("an archive of several arrays, not one array")
    return values[None] if values.ndim == 1 else values


def nanoseconds_of(captured_at: str | None) -> int:
    """Return ISO 8601 text as Unix nanoseconds (UTC); 0 where the time was not recorded."""
    if captured_at is None:
        return 0
    fraction = _FRACTION.match(captured_at)
    whole = captured_at if fraction is None else fraction[1] + captured_at[fraction.end() :]
    try:
        moment = datetime.fromisoformat(whole.replace("Z", "+00:00"))
    except ValueError:
        raise InputError(
            where="captured_at",
            expected="ISO 8601, such as 2026-11-21T08:30:00Z",
            found=f"'{captured_at}'",
            do="Correct the time of that sample in the metadata and import again.",
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    whole_seconds = int(moment.replace(microsecond=0).timestamp())
    # Digits beyond the ninth are less than a nanosecond. A time of another ISO 8601 form has its
    # fraction still in `moment`.
    nanoseconds = int(fraction[2][:9].ljust(9, "0")) if fraction else moment.microsecond * 1_000
    return whole_seconds * 1_000_000_000 + nanoseconds


def is_safe_relative(path: str) -> bool:
    """Tell whether `path` stays inside the folder it is relative to."""
    pure = PurePosixPath(path)
    return bool(path) and not pure.is_absolute() and ".." not in pure.parts and "\\" not in path


def _read_header(path: Path) -> RecordingHeader:
    content = _read_bytes(path)
    try:
        schema = msgspec.json.decode(content).get("schema")
    except UNREADABLE_JSON as error:
        raise _broken(path, str(error)) from None
    if schema != SCHEMA:
        raise InputError(
            where=path,
            expected=f"recording schema {SCHEMA}",
            found=f"schema {schema}",
            do="Install the orin-inspect that wrote it, or import the originals again.",
        )
    try:
        return msgspec.json.decode(content, type=RecordingHeader)
    except msgspec.ValidationError as error:
        raise _broken(path, str(error)) from None


def _read_rows(path: Path) -> Iterator[SampleRow]:
    for number, line in enumerate(_read_bytes(path).splitlines(), start=1):
        try:
            row = msgspec.json.decode(line, type=SampleRow)
        except UNREADABLE_JSON as error:
            raise _broken(f"{path}, line {number}", str(error)) from None
        for relative in (row.image, row.sensor, row.mask):
            if relative is not None and not is_safe_relative(relative):
                raise _broken(f"{path}, line {number}", f"path '{relative}' outside the recording")
        refuse_unlabelled(row, f"{path}, line {number}")
        yield row


def refuse_unlabelled(row: SampleRow, where: str) -> None:
    """Refuse an unlabelled part of a split that something is measured on. Raises InputError."""
    if row.label == UNLABELLED and row.split != UNLABELLED_SPLIT:
        raise InputError(
            where=where,
            expected=f"a label, for only parts of split '{UNLABELLED_SPLIT}' may go without one",
            found=f"'{row.sample_id}' of split '{row.split}' without a label",
            do=f"Label it, move it to split '{UNLABELLED_SPLIT}', or take its row out.",
        )


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            where=path.parent,
            expected=f"a recording (a folder with {HEADER_FILE} and {ROWS_FILE})",
            found=error.strerror or str(error),
            do="Check the path, or make one with `edge import` or `edge simulate`.",
        ) from None


class _ForeignCsv(ValueError):
    """A .csv of a spreadsheet whose decimals are commas: columns and numbers look otherwise."""


def _readings_from_csv(path: Path, channels: tuple[Channel, ...]) -> NDArray[Any]:
    """Take the channels' columns by name where the header has them all, else all by position."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            names = [name.strip() for name in next(csv.reader(file), [])]
        except csv.Error as error:  # an endless line, or (Python 3.10) a NUL byte
            raise ValueError(str(error)) from None
        lines = [line for line in file if line.strip()]
    if not lines:
        raise ValueError("no readings below the header")
    try:
        readings = np.loadtxt(lines, delimiter=",", ndmin=2, dtype=np.float64)
    except ValueError:
        if any(";" in text for text in (*names, lines[0])):
            raise _ForeignCsv("columns separated by semicolons") from None
        raise
    if readings.shape[1] != len(names):
        found = f"{len(names)} columns in the header, {readings.shape[1]} below it"
        if readings.shape[1] == 2 * len(names):
            raise _ForeignCsv(f"{found}, as decimal commas make them")
        raise ValueError(found)
    if all(_is_number(name) for name in names):
        raise ValueError("readings in its first line, where the columns' names belong")
    wanted = [channel.name for channel in channels]
    if set(wanted) & set(names) and not set(wanted) <= set(names):
        # Taking such columns by position could swap two channels without a word.
        raise ValueError(f"only some of the channels among its columns {', '.join(names)}")
    if set(wanted) <= set(names):
        readings = readings[:, [names.index(name) for name in wanted]]
    return np.asarray(readings.T)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _unreadable(path: Path, found: str) -> InputError:
    return InputError(
        where=path,
        expected="a whole, readable picture",
        found=found,
        do="Replace the file or take its row out; `edge recordings show` lists every such file.",
    )


def _bad_readings(
    path: Path,
    channels: tuple[Channel, ...],
    found: str,
    do: str = "Name the file's channels with --sensor NAME:UNIT:HZ, in order, or mend the file.",
) -> InputError:
    names = ", ".join(channel.name for channel in channels)
    return InputError(
        where=path,
        expected=f"readings [{len(channels)}, T] of the channels {names}",
        found=found,
        do=do,
    )


def _broken(where: object, found: str) -> InputError:
    return InputError(
        where=where,
        expected="a file as `edge import` writes it",
        found=found,
        do="Import the originals again; this file was changed by hand or cut short.",
    )
