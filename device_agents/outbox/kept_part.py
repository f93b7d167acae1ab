"""One kept part on disk: a folder of small files, written aside and renamed, so never half there.

image.jpg        the frame as the camera gave it: JPEG, quality 95, colours not subsampled.
                 On real 1280x960 frames 0.2 MB and 5 ms, off by a third of a grey level in
                 the mean; PNG took 0.7 MB and half a second, and would crowd out most parts.
heat_map.png     8-bit grey at the map's own size, 255 times the map's value
window.npy       float32 [C, T]
kept.json        why it was kept, and the channels of the window
inspection.json  the inspection as it was published
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge.errors import InputError
from edge.messages import Inspection, UnreadableMessage, decode, encode
from edge.recording.format import read_pixels, read_readings
from edge.sample import Channel, Window

IMAGE, HEAT_MAP, WINDOW = "image.jpg", "heat_map.png", "window.npy"
KEPT, INSPECTION = "kept.json", "inspection.json"
FILES = (IMAGE, HEAT_MAP, WINDOW, KEPT, INSPECTION)
_JPEG_QUALITY = 95
_LARGEST_BYTES = 256 << 20  # of one file read back: more is no part of ours
_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class KeptPart:
    """What there is of one part. `why`: "near", "disagree", "drift", "fail", "invalid", "pass"."""

    inspection: Inspection
    pixels: NDArray[np.uint8] | None  # [H, W, 3]; None where the frame could not be read
    heat_map: NDArray[np.float32] | None  # [h, w], 0..1
    window: Window | None
    why: tuple[str, ...]


class KeptNote(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands in `kept.json`."""

    why: tuple[str, ...]
    channels: tuple[Channel, ...] = ()
    window_captured_at_ns: int = 0


def is_safe_id(inspection_id: str) -> bool:
    """Tell whether the id may become part of a file's name: ours may, a path never."""
    return bool(_SAFE_ID.fullmatch(inspection_id))


def files_of(part: KeptPart) -> dict[str, bytes]:
    """Return the part's files by name. Raises ValueError where its arrays are none of a part."""
    files = {INSPECTION: encode(part.inspection)}
    note = KeptNote(part.why)
    if part.pixels is not None:
        options = {"quality": _JPEG_QUALITY, "subsampling": 0}
        files[IMAGE] = _encoded(part.pixels, "JPEG", options)
    if part.heat_map is not None:
        finite = np.nan_to_num(part.heat_map, nan=0.0, posinf=1.0, neginf=0.0).clip(0.0, 1.0)
        files[HEAT_MAP] = _encoded((finite * 255.0).round().astype(np.uint8), "PNG", {})
    if part.window is not None:
        file = io.BytesIO()
        np.save(file, np.ascontiguousarray(part.window.values, dtype=np.float32))
        files[WINDOW] = file.getvalue()
        note = KeptNote(part.why, part.window.channels, part.window.captured_at_ns)
    files[KEPT] = msgspec.json.encode(note)
    return files


def read_part(folder: Path, size: int) -> KeptPart | None:
    """Read a part whose files hold `size` bytes together; None where they are not whole."""
    with contextlib.suppress(OSError, InputError, UnreadableMessage, msgspec.DecodeError):
        note, inspection = read_notes(folder, size)
        pixels = read_pixels(folder / IMAGE) if (folder / IMAGE).exists() else None
        heat_map = window = None
        if (folder / HEAT_MAP).exists():
            heat_map = read_pixels(folder / HEAT_MAP)[:, :, 0].astype(np.float32) / 255.0
        if (folder / WINDOW).exists():
            values = read_readings(folder / WINDOW, note.channels)
            window = Window(values, note.channels, note.window_captured_at_ns)
        return KeptPart(inspection, pixels, heat_map, window, note.why)
    return None


def read_notes(folder: Path, size: int) -> tuple[KeptNote, Inspection]:
    """Read what is said of a part. Raises OSError, DecodeError or UnreadableMessage.

    After a power cut a file may be there and empty: then the sizes do not add up.
    """
    if sum(_size_of(folder / name) for name in FILES) != size:
        raise OSError(f"{folder} is not whole")
    try:
        note = msgspec.json.decode((folder / KEPT).read_bytes(), type=KeptNote)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from None
    return note, decode((folder / INSPECTION).read_bytes(), Inspection)


def delete_part(folder: Path) -> None:
    """Delete our files, and the folder unless somebody put another one into it."""
    for name in FILES:
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


def _size_of(path: Path) -> int:
    """Return a file's size, 0 where there is none. Raises OSError for what is no plain file."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return 0
    # A folder from elsewhere must not pull in other files of this machine through a link.
    if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST_BYTES:
        raise OSError(f"{path} is no file of a part")
    return found.st_size


def _encoded(values: NDArray[np.uint8], kind: str, options: dict[str, int]) -> bytes:
    file = io.BytesIO()
    try:
        Image.fromarray(values).save(file, kind, **options)
    except (TypeError, KeyError) as error:  # what Pillow raises on shapes that are no picture
        raise ValueError(str(error)) from None
    return file.getvalue()
