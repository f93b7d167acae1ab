"""The outbox's room: what is deleted because it was sent, and what is dropped because it is full.

Bounded in rows and in bytes: the pages in use, SQLite's own overhead included. Full drops the
oldest `pass` first, and never a defect before every pass is gone; each drop is counted.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from edge.messages import Inspection

_RELEASE_PER_RECORD = 50  # acknowledged rows deleted with each: they go faster than they come
_RELEASE_MOST = 2_000  # and in one transaction
_DROP_MOST = 200  # rows dropped in one transaction, when limits were lowered
_SPARE_PAGES = 1024  # free pages (4 KiB) kept for the next records, the rest goes back to the disk
_VACUUM_PAGES = 16  # given back per transaction: each may have to be moved first
_SPARE_DISK_BYTES, _SPARE_DISK_SHARE = 16 << 20, 0.05  # left free on the disk; the smaller counts


@dataclass(frozen=True)
class Limits:
    """How much may wait."""

    max_rows: int
    max_bytes: int


class Room:
    """What one outbox file holds. Its methods run inside the writer's transaction."""

    def __init__(
        self, db: sqlite3.Connection, path: Path, limits: Limits, rows: int, acknowledged: int
    ) -> None:
        self.rows = rows
        self.acknowledged = acknowledged  # rows up to here may go
        self.page_bytes = int(db.execute("PRAGMA page_size").fetchone()[0])
        self._db = db
        self._path = path
        self._limits = limits
        self._released = 0  # rows up to here are deleted
        self._releasing = 0
        self.dropped: set[int] = set()  # numbers that the last transaction dropped

    def begin(self) -> int:
        """Start over with the transaction; return the rows, for the case that it fails."""
        self._releasing = self._released
        self.dropped.clear()
        return self.rows

    def committed(self) -> None:
        """What was deleted is deleted."""
        self._released = self._releasing

    def pages(self, name: str) -> int:
        """Return `page_count` or `freelist_count`."""
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

    def release(self, records: int) -> None:
        """Delete acknowledged rows; give pages back to the disk when most are free."""
        if self.acknowledged <= self._released:
            return
        most = min(_RELEASE_PER_RECORD * records, _RELEASE_MOST)
        gone = self._db.execute(
            "DELETE FROM outbox WHERE sequence IN (SELECT sequence FROM outbox "
            "WHERE sequence <= ? ORDER BY sequence LIMIT ?)",
            (self.acknowledged, most),
        ).rowcount
        self.rows -= gone
        if gone < most:
            self._releasing = self.acknowledged
        free = self.pages("freelist_count")
        # Only when most are free: before that, each page given back costs the move of another.
        if free > _SPARE_PAGES and free > self.pages("page_count") // 2:
            for _ in range(_VACUUM_PAGES):  # Python stops such a statement after its first page
                self._db.execute("PRAGMA incremental_vacuum(1)")

    def fits(self, records: list[tuple[Inspection, bytes]]) -> bool:
        """Tell whether all of them surely fit: the usual case, in which nothing is dropped."""
        # Twice their bytes, for what is left over at the end of each page.
        need = 2 + 2 * sum(len(payload) for _, payload in records) // self.page_bytes
        free = self.pages("freelist_count")
        return (
            self.rows + len(records) <= self._limits.max_rows
            and (self.pages("page_count") - free + need) * self.page_bytes <= self._limits.max_bytes
            and (free >= need or not self._disk_is_short())
        )

    def make(self, decision: str, size: int, drops: Counter[str]) -> bool:
        """Drop the oldest `pass`, and only when none is left the oldest of all; count each.

        Returns whether the new record may be written: a `pass` never pushes out a defect, it is
        dropped itself. Where only the disk is short, no defect is dropped for another.
        """
        need = 2 + size // self.page_bytes  # pages
        most = self._limits.max_bytes // self.page_bytes
        free = self.pages("freelist_count")
        disk_is_short = free < need and self._disk_is_short()
        for _ in range(_DROP_MOST):
            used = self.pages("page_count") - free
            is_full = self.rows >= self._limits.max_rows or used + need > most
            if not is_full and not (disk_is_short and free < need):
                break
            victim = self._oldest("WHERE decision = 'pass'")
            if victim is None and (decision == "pass" or size > self._limits.max_bytes):
                drops["dropped_pass" if decision == "pass" else "dropped_defect"] += 1
                return False
            if victim is None and not is_full:
                break
            victim = victim or self._oldest("")
            if victim is None:  # one record larger than the whole outbox
                drops["dropped_defect"] += 1
                return False
            self._drop(*victim, drops)
            free = self.pages("freelist_count")
        return True

    def _disk_is_short(self) -> bool:
        disk = os.statvfs(self._path)
        spare = min(_SPARE_DISK_BYTES, int(disk.f_blocks * disk.f_frsize * _SPARE_DISK_SHARE))
        return disk.f_bavail * disk.f_frsize < spare

    def _oldest(self, where: str) -> tuple[int, bool] | None:
        row: tuple[int, bool] | None = self._db.execute(
            f"SELECT sequence, decision = 'pass' FROM outbox {where} "  # noqa: S608
            "ORDER BY sequence LIMIT 1"
        ).fetchone()
        return row

    def _drop(self, sequence: int, is_pass: bool, drops: Counter[str]) -> None:
        if self._db.execute("DELETE FROM outbox WHERE sequence = ?", (sequence,)).rowcount != 1:
            raise sqlite3.DatabaseError(f"record {sequence} stands in the index alone")
        self.rows -= 1
        self.dropped.add(sequence)
        if sequence > self.acknowledged:
            drops["dropped_pass" if is_pass else "dropped_defect"] += 1
