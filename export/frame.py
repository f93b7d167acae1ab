"""The size of the frames that a bundle is made for: its recording's own, or as a person says.

A graph has static shapes, so its frames are of one size. Each size is proven with real frames of
it: where a recording has others too, they are left out, never resized to it.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from PIL import ExifTags, Image

from edge.errors import InputError
from edge.model_spec import ImageInput
from edge.recording.format import Recording, read_pixels

MODEL = "model"
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that change width and height
_NAMED_SIZES = 3


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
    found = Counter(sizes)
    if size is None:
        if len(found) > 1:
            raise _several(recording, found)
        size = sizes[0]
    if not found[size]:
        raise _none_of(recording, size, found)
    rows = tuple(row for row, its in zip(recording.rows, sizes, strict=True) if its == size)
    if len(rows) < len(sizes):
        recording = Recording(recording.folder, recording.header, rows)
    return (None if size == image else size), recording


def frame_size(path: Path) -> ImageInput:
    """Return the size that `read_pixels` gives a picture, from its head. Raises InputError."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            turned = picture.getexif().get(ExifTags.Base.Orientation) in _TURNED
    except Exception:  # whatever Pillow says of it, the reader of pixels says it for a person
        height, width = read_pixels(path).shape[:2]
        turned = False
    return ImageInput(width, height) if turned else ImageInput(height, width)


def size_text(size: ImageInput) -> str:
    """Write a size as a person does."""
    return f"{size.width}x{size.height}"


def _size_from(asked: str) -> ImageInput:
    match = _SIZE.fullmatch(asked)
    if match is None:
        raise InputError(
            where="--frame",
            expected=f"WIDTHxHEIGHT in pixels, such as 1280x960, or {MODEL}",
            found=f"'{asked}'",
            do="Give the size of the station's frames, or leave --frame out: it is then that of "
            "the recording's.",
        )
    return ImageInput(height=int(match[2]), width=int(match[1]))


def _several(recording: Recording, found: Counter[ImageInput]) -> InputError:
    commonest = found.most_common(1)[0][0]
    return InputError(
        where=recording.folder,
        expected="frames of one size, which the graph then takes as they are",
        found=_sizes_text(found),
        do="Say which the station's camera delivers, such as --frame "
        f"{size_text(commonest)}: the others are then left out; or --frame {MODEL}: the station "
        "then resizes frames of any size on its CPU.",
    )


def _none_of(recording: Recording, size: ImageInput, found: Counter[ImageInput]) -> InputError:
    return InputError(
        where=recording.folder,
        expected=f"frames of {size_text(size)}, as --frame says",
        found=_sizes_text(found),
        do="Record parts with the station's camera as it is set there, or give --frame "
        f"{MODEL}: the station then resizes frames of any size on its CPU.",
    )


def _sizes_text(found: Counter[ImageInput]) -> str:
    named = [f"{size_text(size)} ({count})" for size, count in found.most_common(_NAMED_SIZES)]
    return ", ".join([*named, "and others"] if len(found) > _NAMED_SIZES else named)
