"""The publisher's cursor: how far the broker has acknowledged. A small file beside the outbox.

The outbox has one writer, the inspector. What the publisher must remember over a crash stands in
this file of its own, replaced atomically; the inspector reads it and deletes what it covers. A CRC
in it tells a cursor that was written from one whose digits changed on the disk.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import msgspec

from device_agents.outbox.file import LARGEST


class Cursor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every record of `station_epoch` up to `acknowledged` needs no sending any more."""

    station_epoch: str
    acknowledged: int
    counters: dict[str, int]  # the publisher's own, which grow within one epoch


class _Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file's content."""

    station_epoch: str
    acknowledged: int
    counters: dict[str, int]
    crc: int | None = None  # missing in a file of an earlier version


def cursor_path_of(outbox: Path) -> Path:
    """Return where the cursor of an outbox lies."""
    return outbox.with_name(outbox.name + ".cursor")


def read_cursor(outbox: Path, station_epoch: str, last: int | None = None) -> Cursor:
    """Return the cursor of this epoch, or one at 0: then all is sent again, and nothing lost.

    A file that is missing, broken, or of another epoch counts as none. So does one without a CRC
    that goes beyond `last`, the outbox's last number, where that is given. With a CRC it is
    believed: the outbox is what forgot, after a power cut, and its numbers go on behind it.
    """
    none_yet = Cursor(station_epoch, 0, {})
    try:
        found = msgspec.json.decode(cursor_path_of(outbox).read_bytes(), type=_Written)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return none_yet
    cursor = Cursor(found.station_epoch, found.acknowledged, found.counters)
    if cursor.station_epoch != station_epoch or not 0 <= cursor.acknowledged <= LARGEST:
        return none_yet
    if found.crc is None:
        return none_yet if last is not None and cursor.acknowledged > last else cursor
    return cursor if found.crc == _crc_of(cursor) else none_yet


def write_cursor(outbox: Path, cursor: Cursor) -> None:
    """Replace the cursor file; durable when this returns. Raises OSError (a full disk)."""
    path = cursor_path_of(outbox)
    written = _Written(cursor.station_epoch, cursor.acknowledged, cursor.counters, _crc_of(cursor))
    # One fixed name for the new file: a killed publisher leaves one behind at most.
    fresh = path.with_name(path.name + ".new")
    with fresh.open("wb") as file:
        file.write(msgspec.json.encode(written))
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def _crc_of(cursor: Cursor) -> int:
    return zlib.crc32(msgspec.json.encode(cursor))
