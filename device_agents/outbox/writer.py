"""The outbox: inspections on disk until the broker has acknowledged them.

SQLite in WAL mode with `synchronous=FULL`: when `append` returns True, the record survives a power
cut. The inspector is the only writer; the publisher reads (`OutboxReader`) and keeps its cursor in
a file of its own. `station_epoch` names one life of the file, and `sequence` counts from 1 inside
it and is never used twice. What cannot be kept is counted, and its number goes to no other record,
so that a consumer sees the gap too; while the disk is full, that stands in the losses file
(`device_agents.outbox.losses`). Nothing here looks at the wall clock.

`max_bytes` bounds the pages in use, SQLite's own overhead included: the file never grows beyond
it by more than a transaction. The journal beside it comes on top: about 4 MiB, and at most
`WAL_LIMIT_BYTES` while a reader hangs in the middle of reading. When the disk itself is nearly
full, the outbox grows no further: a defect then takes the place of the oldest passes.

The writer's own connection moves the journal into the file (a checkpoint), no other thread or
process: SQLite before 3.51.3, hence the one of every JetPack, may corrupt a file in which two
connections write or checkpoint at the same moment (sqlite.org/wal.html#walresetbug).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from device_agents.counters import is_worth_a_line
from device_agents.lock import hold
from device_agents.outbox.cursor import read_cursor
from device_agents.outbox.file import (
    LAST,
    ROWS,
    WAL_LIMIT_BYTES,
    Gone,
    counters_of,
    crc_of,
    epoch_of,
    identity_of,
    is_of_the_machine,
    opened,
    refuse_other_files,
    set_aside,
    size_of_journal,
    totals_of,
)
from device_agents.outbox.losses import LOSSES, LossesFile, Noted, lost_with, merged
from device_agents.outbox.room import Limits, Room
from edge.errors import EdgeError, MachineError
from edge.messages import Inspection, encode

_LARGE_PAGES = 25_000  # 100 MB: the rows of a larger file are taken from its own note
_GIVE_UP_AFTER_S = 30.0  # of I/O errors and nothing else: perhaps it is the file, not the disk

log = logging.getLogger("outbox")


class Outbox:
    """The writing side. One process at a time: a lock file beside the outbox says so."""

    def __init__(self, path: Path, lock: int, max_rows: int, max_bytes: int) -> None:
        self.path = path
        self.counters: dict[str, int] = {}
        self.fault = ""  # why the last records were not kept; "" where they were
        self._lock = lock
        self._limits = Limits(max_rows, max_bytes)
        self._changed: set[str] = set()
        self._appends_since_rest = 0
        self._failures = 0  # in a row
        self._failing_since_s = 0.0
        self._lost_before = 0  # records, before the disk began to fail
        self._losses = LossesFile(path)
        self._is_open = False
        self._must_move = False  # the file at the path is corrupt
        self.epoch = ""
        self.next_sequence = 1
        self._db = self._opened_or_set_aside()
        self._load()

    @classmethod
    def open(cls, path: Path, *, max_rows: int, max_bytes: int) -> Outbox:
        """Open or create the outbox at `path`.

        A corrupt outbox is set aside under another name and a new epoch starts. Raises InputError
        for a file that is not ours, and leaves it as it is; MachineError when another inspector
        holds the outbox.
        """
        lock_path = path.with_name(path.name + ".lock")
        lock = -1
        try:
            # Before the lock is taken: its file is the sign that an inspector worked here.
            refuse_other_files(path, lock_path)
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = hold(lock_path, "inspector")
            return cls(path, lock, max_rows, max_bytes)
        except BaseException as error:
            if lock >= 0:
                os.close(lock)
            if not isinstance(error, (OSError, sqlite3.Error)):
                raise
            raise MachineError(
                where=path,
                expected="an outbox that can be written",
                found=str(error),
                do="Check the folder's owner and the room on its disk.",
            ) from None

    @property
    def depth(self) -> int:
        """Rows on disk, acknowledged ones that were not deleted yet included."""
        return self._room.rows

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
        """Make a record durable; see `append_all`."""
        return self.append_all([inspection])[0]

    def append_all(self, inspections: Sequence[Inspection]) -> list[bool]:
        """Make records durable with one fsync; False (counted, logged) for each that is not kept.

        They are numbered from `next_sequence` on, and their numbers are used up either way. What
        is not kept the disk did not take, and `fault` says why; or a full outbox dropped it by
        the rule of `Room`, and `fault` is "". A group that is too large for what is left of a
        disk is tried again one by one.
        """
        first = self.next_sequence
        for sequence, inspection in enumerate(inspections, first):
            assert (inspection.station_epoch, inspection.sequence) == (self.epoch, sequence)
        self.next_sequence += len(inspections)
        if not inspections:
            return []
        error = self._try(inspections)
        if error is None:
            return [
                number not in self._room.dropped
                for number in range(first, first + len(inspections))
            ]
        if len(inspections) == 1 or "full" not in str(error):
            self._after_failure(error, len(inspections))
            kept = [False] * len(inspections)
        else:
            kept = [self._kept_alone(inspection) for inspection in inspections]
        self._note_losses()
        return kept

    def note_acknowledged(self, sequence: int) -> None:
        """Rows up to `sequence` may go. They are deleted in small batches by later appends."""
        sequence = min(sequence, self.next_sequence - 1)  # what is not there yet was not sent
        self._room.acknowledged = max(self._room.acknowledged, sequence)

    def rest(self) -> None:
        """Move the journal into the file now, while nobody waits, instead of with a later append.

        Cheap to call after every append: it does nothing until there is enough to move.
        """
        with contextlib.suppress(sqlite3.Error, OSError):
            if self._appends_since_rest >= 100:
                self._appends_since_rest = 0
                self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def close(self) -> None:
        """Write what counters are left and close the file."""
        with contextlib.suppress(sqlite3.Error), self._transaction():
            self._write_counters({})
        self._note_losses()
        self._losses.close()
        self._db.close()
        os.close(self._lock)

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened_or_set_aside(self) -> sqlite3.Connection:
        """Open or create the file; a corrupt one makes way under another name, and is counted."""
        try:
            return opened(self.path)
        except sqlite3.Error as error:
            if is_of_the_machine(error):
                raise  # rights, a missing disk: nothing says that the content is bad
            if self.epoch:
                self.count("outbox_set_aside")
            else:  # found at the start: what was in it, and what was lost before
                self.counters = lost_with(self.path, self._losses.read(), self._limits.max_rows)
            set_aside(self.path, str(error))
            return opened(self.path)

    def _load(self) -> None:
        db, last_epoch = self._db, self.epoch
        self.epoch = epoch_of(db)
        last, rows = totals_of(db)
        if self.epoch == last_epoch:  # of the same life, perhaps an older copy
            last = max(last, self.next_sequence - 1)
        # After a power cut on a disk that lied about fsync the cursor may be ahead of the file:
        # numbers below it would be deleted unsent.
        acknowledged = read_cursor(self.path, self.epoch, last).acknowledged
        noted = self._losses.read()
        if noted.station_epoch == self.epoch:
            last = max(last, noted.last)
        self.next_sequence = max(last, acknowledged) + 1
        self._room = Room(db, self.path, self._limits, rows, acknowledged)
        if rows < 0 or self._room.pages("page_count") < _LARGE_PAGES:
            self._room.rows = int(db.execute("SELECT count(*) FROM outbox").fetchone()[0])
        self.counters = merged({**counters_of(db), **self.counters}, noted, self.epoch)
        self._changed = set(self.counters)
        self._appends_since_rest = 0
        self._identity = identity_of(self.path)
        self._is_open = True
        self._note_losses()

    def _note_losses(self) -> None:
        self._losses.note(
            Noted(self.epoch, self.next_sequence - 1, self.counters, not self._is_open)
        )

    def _try(self, inspections: Sequence[Inspection]) -> Exception | None:
        """Write the records in one transaction; return what went wrong."""
        drops: Counter[str] = Counter()
        before = -1
        try:
            self._check_in_place()
            room = self._room
            before = room.begin()
            with self._transaction():
                room.release(len(inspections))
                records = [(inspection, encode(inspection)) for inspection in inspections]
                if room.fits(records):
                    self._insert(records)
                else:
                    for inspection, payload in records:
                        if room.make(inspection.decision, len(payload), drops):
                            self._insert([(inspection, payload)])
                        else:
                            room.dropped.add(inspection.sequence)
                self._write_counters(drops)
        except (sqlite3.Error, OSError) as error:
            if before >= 0:
                self._room.rows = before
            return error
        room.committed()
        for name, by in drops.items():
            self.count(name, by)
            if is_worth_a_line(self.counters[name]):
                log.warning(
                    "the outbox is full (%d rows): %s %d", room.rows, name, self.counters[name]
                )
        self._changed.clear()
        self._appends_since_rest += 1
        self._failures, self.fault = 0, ""
        return None

    def _kept_alone(self, inspection: Inspection) -> bool:
        if inspection.station_epoch != self.epoch:  # the file broke with the one before
            self.count("lost_disk")
            return False
        error = self._try([inspection])
        if error is not None:
            self._after_failure(error, 1)
        return error is None and inspection.sequence not in self._room.dropped

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

    def _check_in_place(self) -> None:
        """Raise where records would not be safe: the file is gone, or its journal too large."""
        if not self._is_open:
            raise Gone("it broke, and no new one could be made yet")
        found = identity_of(self.path)
        if found != self._identity:
            if found[0] != self._identity[0]:
                raise Gone("somebody deleted or replaced it")
            self._reopen()
        if size_of_journal(self.path) > WAL_LIMIT_BYTES:
            self._shorten_journal()

    def _reopen(self) -> None:
        """Only the journal was deleted: what it held is still open here, and is saved."""
        log.error("somebody deleted the journal of %s: saving what it held", self.path)
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._db.close()
        self._is_open = False
        self._db = opened(self.path)
        self._load()

    def _shorten_journal(self) -> None:
        self._db.execute("PRAGMA busy_timeout = 0")
        is_held = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        self._db.execute("PRAGMA busy_timeout = 1000")
        if is_held:
            raise sqlite3.OperationalError("a reader hangs, and the journal reached its limit")

    def _insert(self, records: list[tuple[Inspection, bytes]]) -> None:
        self._db.executemany(
            "INSERT INTO outbox (sequence, decision, payload, crc) VALUES (?, ?, ?, ?)",
            [
                (record.sequence, record.decision, payload, crc_of(record.sequence, payload))
                for record, payload in records
            ],
        )
        self._room.rows += len(records)

    def _write_counters(self, drops: Counter[str] | dict[str, int]) -> None:
        values = {name: self.counters.get(name, 0) for name in self._changed | set(drops)}
        for name, by in drops.items():
            values[name] += by
        values[ROWS] = self._room.rows
        if last := self.next_sequence - 1:
            values[LAST] = last
            self._use_up(last)
        self._db.executemany(
            "INSERT INTO counters VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
            values.items(),
        )

    def _use_up(self, last: int) -> None:
        """Note numbers as used that went to records which are not in the file."""
        used = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'").fetchone()
        if used is None:
            self._db.execute("INSERT INTO sqlite_sequence VALUES ('outbox', ?)", (last,))
        elif used[0] != last:
            self._db.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'outbox'", (last,))

    def _after_failure(self, error: Exception, records: int) -> None:
        """Count records that the disk did not take; start a new file when this one is broken."""
        if not self._failures:
            self._failing_since_s = time.monotonic()
            self._lost_before = self.counters.get("lost_disk", 0)
        self.count("lost_disk", records)
        self._failures += 1
        lost = self.counters["lost_disk"]
        # The counters do not reach the disk now, so Health says it in these words.
        self.fault = f"{lost - self._lost_before} records lost: {error}"
        if is_worth_a_line(self._failures):
            log.error("%d records lost, %d in all: %s", records, lost, error)
        has_tried = time.monotonic() - self._failing_since_s > _GIVE_UP_AFTER_S
        if is_of_the_machine(error) and not ("I/O" in self.fault and has_tried):
            return  # a full disk, an I/O error: the next record tries again
        self._replace_file(error)

    def _replace_file(self, error: Exception) -> None:
        """Start a new file and a new epoch; what the old one still had to send is counted."""
        if self._is_open:
            self.count("outbox_set_aside")
            self.count("lost_outbox", self._unsent())
            self._is_open, self._room.rows = False, 0
            self._must_move = not isinstance(error, Gone)
            with contextlib.suppress(sqlite3.Error):
                if not self._must_move:  # where it was moved to, it shall be whole
                    self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            if not self._must_move and identity_of(self.path)[1] == self._identity[1]:
                # SQLite would write what it holds into whatever stands at the path now.
                with contextlib.suppress(OSError):
                    self.path.with_name(self.path.name + "-wal").unlink()
        with contextlib.suppress(sqlite3.Error, OSError, EdgeError):
            if self._must_move:
                set_aside(self.path, str(error))
                self._must_move = False
            self._db = self._opened_or_set_aside()
            self.counters = {name: self.counters[name] for name in LOSSES if name in self.counters}
            self._load()
            self._failures = 0

    def _unsent(self) -> int:
        try:
            row = self._db.execute(
                "SELECT count(*) FROM outbox WHERE sequence > ?", (self._room.acknowledged,)
            ).fetchone()
        except sqlite3.Error:
            return self._room.rows
        return int(row[0])
