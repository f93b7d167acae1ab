"""The outbox: inspections on disk until the broker has acknowledged them.

SQLite in WAL mode with `synchronous=FULL`: when `append` returns True, the record survives a power
cut. The inspector is the only writer; the publisher reads (`OutboxReader`) and keeps its cursor in
a file of its own. `station_epoch` names one life of the file, and `sequence` counts from 1 inside
it and is never used twice. What cannot be kept is counted, and its sequence numbers stay unused,
so that a consumer sees the gap too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from device_agents.cursor import read_cursor
from device_agents.lock import hold
from device_agents.outbox_file import (
    counters_of,
    epoch_of,
    opened,
    opened_or_set_aside,
    refuse_other_files,
    set_aside,
)
from edge.errors import MachineError
from edge.messages import Inspection, encode

_RELEASE_BATCH = 50  # acknowledged rows deleted per append, so that no append takes long
_DROP_BATCH = 100  # rows dropped per append, when limits were lowered
_SPARE_PAGES = 1024  # free pages (4 KiB) kept for the next records, the rest goes back to the disk

log = logging.getLogger("outbox")


class Outbox:
    """The writing side. One process at a time: a lock file beside the outbox says so."""

    def __init__(self, path: Path, lock: int, max_rows: int, max_bytes: int) -> None:
        self.path = path
        self.counters: dict[str, int] = {}
        self._lock = lock
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._changed: set[str] = set()
        self._acknowledged = 0
        self._rows = 0
        self._bytes = 0
        self.epoch = ""
        self.next_sequence = 1
        self._db = opened_or_set_aside(path)
        self._load()

    @classmethod
    def open(cls, path: Path, *, max_rows: int, max_bytes: int) -> Outbox:
        """Open or create the outbox at `path`.

        A corrupt outbox is set aside under another name and a new epoch starts. Raises InputError
        for a file that is not ours, and leaves it as it is; MachineError when another inspector
        holds the outbox.
        """
        lock_path = path.with_name(path.name + ".lock")
        try:
            # Before the lock is taken: its file is the sign that an inspector worked here.
            refuse_other_files(path, lock_path)
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = hold(lock_path, "inspector")
            return cls(path, lock, max_rows, max_bytes)
        except (OSError, sqlite3.Error) as error:
            raise MachineError(
                where=path,
                expected="an outbox that can be written",
                found=str(error),
                do="Check the folder's owner and the room on its disk.",
            ) from None

    @property
    def depth(self) -> int:
        """Rows on disk, acknowledged ones that were not deleted yet included."""
        return self._rows

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter. It reaches the disk with the next record, or with `close`."""
        self.counters[name] = self.counters.get(name, 0) + by
        self._changed.add(name)

    def raise_to(self, name: str, value: int) -> None:
        """Keep the highest value seen under `name`."""
        if value > self.counters.get(name, 0):
            self.counters[name] = value
            self._changed.add(name)

    def append(self, inspection: Inspection) -> bool:
        """Make a record durable; False (counted, logged) when the disk did not take it.

        Its sequence is used up either way. A full outbox drops by the rule of `_make_room`.
        """
        assert (inspection.station_epoch, inspection.sequence) == (self.epoch, self.next_sequence)
        self.next_sequence += 1
        payload = encode(inspection)
        before = (self._rows, self._bytes, dict(self.counters))
        try:
            with self._transaction():
                self._delete_acknowledged()
                if self._make_room(inspection.decision, len(payload)):
                    self._insert(inspection.sequence, inspection.decision, payload)
                self._write_counters()
        except sqlite3.Error as error:
            self._rows, self._bytes, self.counters = before
            self._after_failure(error)
            return False
        self._changed.clear()
        return True

    def note_acknowledged(self, sequence: int) -> None:
        """Rows up to `sequence` may go. They are deleted in small batches by later appends."""
        self._acknowledged = max(self._acknowledged, sequence)

    def close(self) -> None:
        """Write what counters are left and close the file."""
        with contextlib.suppress(sqlite3.Error), self._transaction():
            self._write_counters()
        self._db.close()
        os.close(self._lock)

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _load(self) -> None:
        self.epoch = epoch_of(self._db)
        last = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name='outbox'").fetchone()
        # After a power cut on a disk that lied about fsync the cursor may be ahead of the file:
        # numbers below it would be deleted unsent.
        self._acknowledged = read_cursor(self.path, self.epoch).acknowledged
        self.next_sequence = max(last[0] if last else 0, self._acknowledged) + 1
        self._rows, self._bytes = self._db.execute(
            "SELECT count(*), coalesce(sum(length(payload)), 0) FROM outbox"
        ).fetchone()
        self.counters = {**counters_of(self._db), **self.counters}
        self._changed = set(self.counters)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise

    def _insert(self, sequence: int, decision: str, payload: bytes) -> None:
        self._db.execute("INSERT INTO outbox VALUES (?, ?, ?)", (sequence, decision, payload))
        self._rows += 1
        self._bytes += len(payload)

    def _write_counters(self) -> None:
        self._db.executemany(
            "INSERT INTO counters VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
            [(name, self.counters[name]) for name in self._changed],
        )

    def _delete_acknowledged(self) -> None:
        oldest = self._db.execute(
            "SELECT sequence, length(payload) FROM outbox WHERE sequence <= ? "
            "ORDER BY sequence LIMIT ?",
            (self._acknowledged, _RELEASE_BATCH),
        ).fetchall()
        if oldest:
            self._db.execute("DELETE FROM outbox WHERE sequence <= ?", (oldest[-1][0],))
            if self._db.execute("PRAGMA freelist_count").fetchone()[0] > _SPARE_PAGES:
                self._db.execute(f"PRAGMA incremental_vacuum({_RELEASE_BATCH})").fetchall()
            self._rows -= len(oldest)
            self._bytes -= sum(size for _, size in oldest)

    def _make_room(self, decision: str, size: int) -> bool:
        """Drop the oldest `pass`, and only when none is left the oldest of all; count each.

        Returns whether the new record may be written: a `pass` never pushes out a defect, it is
        dropped itself.
        """
        for _ in range(_DROP_BATCH):
            if self._rows < self._max_rows and self._bytes + size <= self._max_bytes:
                break
            victim = self._oldest("WHERE decision = 'pass'")
            if victim is None and decision == "pass":
                self._count_drop(decision)
                return False
            victim = victim or self._oldest("")
            if victim is None:  # one record larger than the whole outbox
                self._count_drop(decision)
                return False
            self._drop(*victim)
        return True

    def _oldest(self, where: str) -> tuple[int, str, int] | None:
        row: tuple[int, str, int] | None = self._db.execute(
            f"SELECT sequence, decision, length(payload) FROM outbox {where} "  # noqa: S608
            "ORDER BY sequence LIMIT 1"
        ).fetchone()
        return row

    def _drop(self, sequence: int, decision: str, size: int) -> None:
        self._db.execute("DELETE FROM outbox WHERE sequence = ?", (sequence,))
        self._rows -= 1
        self._bytes -= size
        if sequence > self._acknowledged:
            self._count_drop(decision)

    def _count_drop(self, decision: str) -> None:
        name = "dropped_pass" if decision == "pass" else "dropped_defect"
        self.count(name)
        if is_worth_a_line(self.counters[name]):
            log.warning(
                "the outbox is full (%d rows): %s %d", self._rows, name, self.counters[name]
            )

    def _after_failure(self, error: sqlite3.Error) -> None:
        """Count a record that the disk did not take; start a new file when this one is broken."""
        self.count("lost_disk")
        if is_worth_a_line(self.counters["lost_disk"]):
            log.error("record %s/%d lost: %s", self.epoch, self.next_sequence - 1, error)
        if isinstance(error, sqlite3.OperationalError):
            return  # a full disk, an I/O error: the next record tries again
        with contextlib.suppress(sqlite3.Error, OSError):
            self._db.close()
            # ProgrammingError: closed by an earlier try of this, which then could not reopen.
            if not isinstance(error, sqlite3.ProgrammingError):
                set_aside(self.path, str(error))
            self._db = opened(self.path)
            self.counters = {"lost_disk": self.counters["lost_disk"]}
            self._load()


class OutboxReader:
    """The publisher's side: reads what the inspector wrote, and never writes."""

    def __init__(self, path: Path, db: sqlite3.Connection, inode: int) -> None:
        self._path = path
        self._db = db
        self._inode = inode
        self.epoch = epoch_of(db)

    @classmethod
    def open(cls, path: Path) -> OutboxReader | None:
        """Open the outbox for reading; None while there is none, or none that can be read yet."""
        try:
            inode = path.stat().st_ino
            db = sqlite3.connect(
                f"file:{quote(str(path))}?mode=ro", uri=True, isolation_level=None, timeout=1.0
            )
        except (OSError, sqlite3.Error):
            return None
        try:
            return cls(path, db, inode)
        except sqlite3.Error:
            db.close()
            return None

    def is_current(self) -> bool:
        """Tell whether the file at the path is still the one opened: a new epoch replaces it."""
        try:
            return self._path.stat().st_ino == self._inode
        except OSError:
            return False

    def records_after(self, sequence: int, limit: int) -> list[tuple[int, bytes]]:
        """Return up to `limit` (sequence, payload) beyond `sequence`, in order."""
        return self._db.execute(
            "SELECT sequence, payload FROM outbox WHERE sequence > ? ORDER BY sequence LIMIT ?",
            (sequence, limit),
        ).fetchall()

    def depth_after(self, sequence: int) -> int:
        """How many records wait beyond `sequence`."""
        row = self._db.execute("SELECT count(*) FROM outbox WHERE sequence > ?", (sequence,))
        return int(row.fetchone()[0])

    def counters(self) -> dict[str, int]:
        """The inspector's counters, as of its last record."""
        return counters_of(self._db)

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def is_worth_a_line(count: int) -> bool:
    """Tell whether the n-th event of a kind is logged: the first ten, then every hundredth."""
    return count <= 10 or count % 100 == 0
