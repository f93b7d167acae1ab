"""Kept pictures as messages: encoded, and made smaller until they fit.

The frame goes as JPEG. The heat map goes as an 8-bit grey PNG whose value is 255 times the map's.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

from edge.messages import Picture, encode

_QUALITIES = (90, 75, 60)
_SMALLER = 0.7  # each side, from one try to the next
# A frame [height, width, 3] RGB as uint8, or a heat map [height, width] of 0..1 as float32.
Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.float32]
_SMALLEST = 32  # pixels on the longer side; below it a picture shows nothing


def picture_message(empty: Picture, values: Pixels | None, most_bytes: int) -> bytes:
    """Return `empty` with the picture in it as a message of at most `most_bytes`.

    Where there is no picture, or none that fits, the message says so in `reason`.
    """
    if values is None:
        return encode(_without(empty, f"no {empty.shows} was kept"))
    image = _image_of(values)
    original = f"{image.width}x{image.height}"
    for data, media_type, made, how in _tries(image):
        reason = f"made smaller to fit {most_bytes} bytes: {original}{how}" if how else ""
        message = encode(
            msgspec.structs.replace(
                empty,
                media_type=media_type,
                width=made.width,
                height=made.height,
                data=data,
                reason=reason,
            )
        )
        if len(message) <= most_bytes:
            return message
    return encode(_without(empty, f"it does not fit {most_bytes} bytes"))


def _without(empty: Picture, reason: str) -> Picture:
    return msgspec.structs.replace(empty, reason=reason)


def _image_of(values: Pixels) -> Image.Image:
    if values.dtype == np.uint8:
        return Image.fromarray(values)
    finite = np.nan_to_num(values, nan=0.0, posinf=1.0, neginf=0.0)
    return Image.fromarray((finite.clip(0.0, 1.0) * 255.0).round().astype(np.uint8))


def _tries(image: Image.Image) -> Iterator[tuple[bytes, str, Image.Image, str]]:
    """Yield ever smaller encodings, each with what was done to the original."""
    made = image
    while True:
        size = "" if made is image else f" as {made.width}x{made.height}"
        if image.mode == "L":
            yield _bytes_of(made, "PNG"), "image/png", made, size
        else:
            for quality in _QUALITIES:
                first = made is image and quality == _QUALITIES[0]
                how = "" if first else f"{size}, JPEG quality {quality}"
                yield _bytes_of(made, "JPEG", quality), "image/jpeg", made, how
        width, height = round(made.width * _SMALLER), round(made.height * _SMALLER)
        if max(width, height) < _SMALLEST or min(width, height) < 1:
            return
        made = image.resize((width, height), Image.Resampling.BOX)


def _bytes_of(image: Image.Image, kind: str, quality: int = 0) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **({"quality": quality} if quality else {}))
    return file.getvalue()
