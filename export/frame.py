"""The size of the frames that a bundle is made for: its recording's own, or as a person says.

A graph has static shapes, so its frames are of one size, which is proven with real frames of it.
Where a recording has several, a person says which one: the others are then left out, never resized
to it. Nothing is left out unasked.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import ExifTags, Image

from distill.recipe import TRAIN_SPLIT
from edge.errors import InputError
from edge.model_spec import ImageInput
from edge.recording.format import Recording, read_pixels

MODEL = "model"
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that change width and height
_NAMED_SIZES = 3

_Sizes = dict[ImageInput, Counter[str]]  # of each size, how many samples there are in each split


def recording_of_frames(
    recording: Recording, asked: str, image: ImageInput
) -> tuple[ImageInput | None, Recording]:
    """Return the size that a bundle's frames have, and the recording without any other.

    `asked` is "" for the recording's one size, WIDTHxHEIGHT, or "model": then, and where frames are
    of the student's own size `image`, there is none, for the host resizes what needs it. Raises
    InputError where frames are of several sizes and none was asked for, or none is of that size.
    """
    size = None if asked in ("", MODEL) else _size_from(asked)
    if asked == MODEL or not recording.rows:
        return None, recording
    sizes = [frame_size(recording.path_of(row.image)) for row in recording.rows]
    found: _Sizes = {}
    for row, its in zip(recording.rows, sizes, strict=True):
        found.setdefault(its, Counter())[row.split] += 1
    if size is None:
        if len(found) > 1:
            raise _several(recording, found)
        size = sizes[0]
    if size not in found:
        raise _none_of(recording, size, found)
    rows = tuple(row for row, its in zip(recording.rows, sizes, strict=True) if its == size)
    if len(rows) < len(sizes):
        recording = Recording(recording.folder, recording.header, rows)
    return (None if size == image else size), recording


@contextlib.contextmanager
def saying_what_was_left_out(opened: Recording, kept: Recording, asked: str) -> Iterator[None]:
    """Let an InputError about `kept` end with how many samples of `opened` --frame left out."""
    try:
        yield
    except InputError as error:
        left_out = len(opened.rows) - len(kept.rows)
        if left_out:
            error.do += f" {left_out} samples of other sizes were left out by --frame {asked}."
        raise


def frame_size(path: Path) -> ImageInput:
    """Return the size that `read_pixels` gives a picture, from its head. Raises InputError."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            turned = picture.getexif().get(ExifTags.Base.Orientation) in _TURNED
    except Exception:  # whatever Pillow says of it, the reader of pixels says it for a person
        turned = True
    if turned:  # for some formats and versions Pillow's size is that of the turned picture
        height, width = read_pixels(path).shape[:2]
    return ImageInput(height, width)


def size_text(size: ImageInput) -> str:
    """Write a size as a person does."""
    return f"{size.width}x{size.height}"


def _size_from(asked: str) -> ImageInput:
    match = _SIZE.fullmatch(asked.lower())
    if match is None:
        raise InputError(
            where="--frame",
            expected=f"WIDTHxHEIGHT in pixels, such as 1280x960, or {MODEL}",
            found=f"'{asked}'",
            do="Give the size of the station's frames, or leave --frame out: it is then that of "
            "the recording's.",
        )
    return ImageInput(height=int(match[2]), width=int(match[1]))


def _several(recording: Recording, found: _Sizes) -> InputError:
    commonest = _commonest_first(found)[0]
    return InputError(
        where=recording.folder,
        expected="frames of one size, which the graph then takes as they are",
        found=_sizes_text(recording, found),
        do="Say which the station's camera delivers, such as --frame "
        f"{size_text(commonest)}: the others are then left out; or --frame {MODEL}: the station "
        "then resizes frames of any size on its CPU.",
    )


def _none_of(recording: Recording, size: ImageInput, found: _Sizes) -> InputError:
    return InputError(
        where=recording.folder,
        expected=f"frames of {size_text(size)}, as --frame says",
        found=_sizes_text(recording, found),
        do="Record parts with the station's camera as it is set there, or give --frame "
        f"{MODEL}: the station then resizes frames of any size on its CPU.",
    )


def _commonest_first(found: _Sizes) -> list[ImageInput]:
    """Order by samples to calibrate on, then by all: a size without any makes no INT8."""
    return sorted(found, key=lambda size: (-found[size][TRAIN_SPLIT], -found[size].total()))


def _sizes_text(recording: Recording, found: _Sizes) -> str:
    named = []
    for size in _commonest_first(found)[:_NAMED_SIZES]:
        counts = ", ".join(f"{found[size][split]} {split}" for split in recording.splits)
        named.append(f"{size_text(size)} ({counts})")
    return ", ".join([*named, "and others"] if len(found) > _NAMED_SIZES else named)
