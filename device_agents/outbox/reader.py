"""The publisher's side of the outbox: it reads what the inspector wrote, and never writes."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from urllib.parse import quote

from device_agents.outbox.file import SCHEMA, counters_of, crc_of, epoch_of, schema_of, totals_of

log = logging.getLogger("outbox")


class OutboxReader:
    """Reads records in order. What is damaged is left out, counted in `damaged`, and is a gap."""

    def __init__(self, path: Path, db: sqlite3.Connection, inode: int) -> None:
        self._path = path
        self._db = db
        self._inode = inode
        self._damaged_up_to = 0
        self.damaged = 0  # records that no one can read, as far as they were come upon
        if schema_of(db) != SCHEMA:
            raise sqlite3.OperationalError("an outbox that its inspector has not opened yet")
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
        """Return up to `limit` (sequence, payload) beyond `sequence`, in order.

        An empty list means that there is none, never that some are damaged. Raises sqlite3.Error.
        """
        while True:
            try:
                rows = self._rows_after(sequence, limit)
            except sqlite3.OperationalError:
                raise  # locked, or an I/O error: later, perhaps
            except sqlite3.DatabaseError:
                if limit > 1:  # come closer first: what stands before the damage is sent
                    limit //= 2
                else:
                    sequence = self._beyond_damage(sequence)
                continue
            whole = [(number, payload) for number, payload, ok in rows if ok]
            for number in (number for number, _, ok in rows if not ok):
                self._note_damage(number, number)
            if whole or not rows:
                return whole
            sequence = rows[-1][0]

    def depth_after(self, sequence: int) -> int:
        """How many records wait beyond `sequence`."""
        row = self._db.execute("SELECT count(*) FROM outbox WHERE sequence > ?", (sequence,))
        return int(row.fetchone()[0])

    def last_sequence(self) -> int | None:
        """The highest number used; None where the file does not tell."""
        try:
            return totals_of(self._db)[0]
        except sqlite3.Error:
            return None

    def counters(self) -> dict[str, int]:
        """The inspector's counters, as of its last record."""
        return counters_of(self._db)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _rows_after(self, sequence: int, limit: int) -> list[tuple[int, bytes, bool]]:
        # The cast keeps a changed type byte from making the row's text undecodable.
        rows = self._db.execute(
            "SELECT sequence, CAST(payload AS BLOB), crc FROM outbox WHERE sequence > ? "
            "ORDER BY sequence LIMIT ?",
            (sequence, limit),
        ).fetchall()
        return [
            # No CRC: written before there was one.
            (number, payload, bool(payload) and (crc is None or crc == crc_of(number, payload)))
            for number, payload, crc in rows
        ]

    def _beyond_damage(self, sequence: int) -> int:
        """Return the number from which on records can be read again. Raises where none can.

        A damaged page holds neighbours. Steps that double find the far side, halving its edge.
        """
        last = int(self._db.execute("SELECT max(sequence) FROM outbox").fetchone()[0] or 0)
        step = 1
        while not self._can_read_after(sequence + step):
            if sequence + step >= last:
                raise sqlite3.DatabaseError("nothing beyond a damaged page can be read")
            step *= 2
        bad, good = sequence + step // 2, sequence + step
        while good - bad > 1:
            middle = (bad + good) // 2
            bad, good = (bad, middle) if self._can_read_after(middle) else (middle, good)
        self._note_damage(sequence + 1, good)
        return good

    def _can_read_after(self, sequence: int) -> bool:
        try:
            self._rows_after(sequence, 1)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            return False
        return True

    def _note_damage(self, first: int, last: int) -> None:
        """Count each damaged number once, however often it is come upon."""
        first = max(first, self._damaged_up_to + 1)
        if first <= last:
            self.damaged += last - first + 1
            self._damaged_up_to = last
            log.error("records %d to %d of %s are damaged: left out", first, last, self._path)
