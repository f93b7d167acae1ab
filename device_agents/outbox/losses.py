"""The losses file: what the outbox lost, kept for the next start though the disk is full.

A full disk takes no transaction, so neither the count of lost records nor the numbers they used
up reach the outbox; an inspector that ends then would use those numbers for other parts. This
small file beside the outbox has its blocks from the start, and is written over in place: when an
outbox is opened and closed, and after each failure, never with a record that was kept. Two slots
take turns, each with a CRC: a torn write leaves the note before it.

Where a file system moves what is written over (btrfs, a snapshot below it), a full disk may
refuse even this; the log then says so.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import struct
import zlib
from pathlib import Path
from urllib.parse import quote

import msgspec

from device_agents.outbox.cursor import read_cursor
from device_agents.outbox.file import LARGEST, counters_of, epoch_of, flush_folder

LOSSES = ("lost_disk", "lost_outbox", "outbox_set_aside")  # told to the next epoch
_SLOT_BYTES = 4096
_HEAD = struct.Struct("<4sQII")  # magic, which note, its bytes, CRC
_MAGIC = b"LOSS"

log = logging.getLogger("outbox")


class Noted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What stands in a slot."""

    station_epoch: str = ""
    last: int = 0  # the highest number used, kept or lost
    counters: dict[str, int] = {}
    given_up: bool = False  # the file of this epoch broke, and what waited in it is counted


class LossesFile:
    """Owned by the writer of the outbox. Never raises: what it cannot note, it logs."""

    def __init__(self, outbox: Path) -> None:
        self.path = outbox.with_name(outbox.name + ".losses")
        self._file = -1
        self._failed = False
        self._number = 0  # of the newest whole note

    def read(self) -> Noted:
        """Return the newest whole note; an empty one where there is none."""
        newest = Noted()
        try:
            with self.path.open("rb") as file:
                content = file.read(2 * _SLOT_BYTES)
        except OSError:
            return newest
        for start in (0, _SLOT_BYTES):
            number, noted = _note_in(content[start : start + _SLOT_BYTES])
            if noted is not None and number >= self._number:
                self._number, newest = number, noted
        return newest

    def note(self, noted: Noted) -> bool:
        """Write a note, durable when this returns True."""
        number = self._number + 1
        try:
            file = self._made()
            block = _block_of(number, noted)
            if os.pwrite(file, block, number % 2 * _SLOT_BYTES) != len(block):
                raise OSError("it was written in part")
            os.fdatasync(file)
        except OSError as error:
            if not self._failed:
                log.error("%s cannot be written, so a restart forgets losses: %s", self.path, error)
            self._failed = True
            return False
        self._number, self._failed = number, False  # a slot that failed is the next one's again
        return True

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _made(self) -> int:
        """Return the open file, with all its blocks on the disk."""
        if self._file >= 0:
            if os.fstat(self._file).st_nlink:
                return self._file
            self.close()  # somebody deleted it
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
        try:
            missing = 2 * _SLOT_BYTES - os.fstat(file).st_size
            if missing > 0:  # zeros, not a hole: the blocks must be there when the disk is full
                if os.pwrite(file, bytes(missing), 2 * _SLOT_BYTES - missing) != missing:
                    raise OSError("no room for it")
                os.fsync(file)
                flush_folder(self.path.parent)
        except BaseException:
            os.close(file)
            raise
        self._file = file
        return file


def merged(counters: dict[str, int], noted: Noted, epoch: str) -> dict[str, int]:
    """Return `counters` with what was noted: all of its own epoch, the losses of another one.

    Counters only grow, so the higher value is the later one.
    """
    both = dict(counters)
    for name, value in noted.counters.items():
        if noted.station_epoch == epoch or name in LOSSES:
            both[name] = max(value, both.get(name, 0))
    return both


def lost_with(outbox: Path, noted: Noted, max_rows: int) -> dict[str, int]:
    """Return the losses to tell where an outbox is found corrupt: earlier ones, and what it held.

    Its unsent records are its numbers beyond the cursor. Numbers that were dropped or lost before
    are among them, so the count may be too high, but not higher than what had room. Where neither
    the file nor the note tells its numbers, nothing can be counted but the file itself.
    """
    remains = _remains_of(outbox)
    epoch, last = remains.station_epoch or noted.station_epoch, remains.last
    is_noted = noted.station_epoch == epoch
    losses = merged(merged({}, remains, ""), noted, "")
    if noted.given_up and is_noted:
        return losses  # counted when it broke
    last = max(last, noted.last) if is_noted else last
    unsent = min(last - read_cursor(outbox, epoch, last).acknowledged, max_rows)
    if unsent > 0:
        losses["lost_outbox"] = losses.get("lost_outbox", 0) + unsent
    losses["outbox_set_aside"] = losses.get("outbox_set_aside", 0) + 1
    log.error("of the corrupt outbox %s up to %d unsent records are lost", outbox, max(0, unsent))
    return losses


def _remains_of(path: Path) -> Noted:
    """Read what can be read of a corrupt outbox: each part may be missing."""
    epoch, last, counters = "", 0, {}
    try:
        db = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, isolation_level=None)
    except sqlite3.Error:
        return Noted()
    with contextlib.closing(db):
        with contextlib.suppress(sqlite3.Error):
            epoch = epoch_of(db)
        with contextlib.suppress(sqlite3.Error):
            counters = counters_of(db)
        for query in (
            "SELECT seq FROM sqlite_sequence WHERE name = 'outbox'",
            "SELECT value FROM counters WHERE name = '_last_sequence'",
            "SELECT max(sequence) FROM outbox",
        ):
            with contextlib.suppress(sqlite3.Error):
                row = db.execute(query).fetchone()
                if row and isinstance(row[0], int) and 0 <= row[0] <= LARGEST:
                    last = max(last, row[0])
    return Noted(epoch, last, counters)


def _block_of(number: int, noted: Noted) -> bytes:
    payload = msgspec.json.encode(noted)
    if len(payload) > _SLOT_BYTES - _HEAD.size:  # no station counts so much
        losses = {name: value for name, value in noted.counters.items() if name in LOSSES}
        payload = msgspec.json.encode(msgspec.structs.replace(noted, counters=losses))
    return _HEAD.pack(_MAGIC, number, len(payload), _crc_of(number, payload)) + payload


def _note_in(slot: bytes) -> tuple[int, Noted | None]:
    if len(slot) < _HEAD.size:
        return 0, None
    magic, number, size, crc = _HEAD.unpack_from(slot)
    payload = slot[_HEAD.size : _HEAD.size + size]
    if magic != _MAGIC or len(payload) != size or crc != _crc_of(number, payload):
        return 0, None
    try:
        noted = msgspec.json.decode(payload, type=Noted)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return 0, None
    return number, noted if 0 <= noted.last <= LARGEST else None


def _crc_of(number: int, payload: bytes) -> int:
    return zlib.crc32(payload, number & 0xFFFFFFFF)
