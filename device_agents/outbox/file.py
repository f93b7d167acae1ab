"""The outbox's file: made, recognised, refused where it is not ours, set aside where corrupt.

SQLite has no checksums of its own, so a changed byte may leave a file that reads well and says
something else. Each record therefore carries a CRC over its number and payload, and the file
states its last number and its rows twice; where the two differ it is corrupt.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
import stat
import time
import uuid
import zlib
from pathlib import Path

from edge.errors import InputError

SCHEMA = 2
_APPLICATION_ID = 0x4F52494E  # "ORIN": tells our file from any other SQLite file
_MAGIC = b"SQLite format 3\0"  # how every SQLite file begins
WAL_LIMIT_BYTES = 64 << 20  # of the journal, where a reader that hangs keeps it from starting over
_WAL_KEPT_BYTES = 16 << 20  # what stays allocated of a journal that grew
_ASIDE_KEPT = 2  # corrupt files; an older one makes way
_CHECK_WITHIN_S = 1.0  # of a large file only a part is read at the start
_CHECK_EVERY_STEPS = 100_000  # of SQLite's virtual machine, between two looks at the clock
LARGEST = 2**53  # beyond it JSON readers round: no number of ours gets there
# SQLite's words (Python 3.10 does not tell its error codes).
_MACHINE_WORDS = ("disk", "full", "locked", "readonly", "unable to open", "memory", "hangs")
_TABLES = """
CREATE TABLE outbox (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, decision TEXT NOT NULL, payload BLOB NOT NULL,
    crc INTEGER);
CREATE INDEX oldest_pass ON outbox (sequence) WHERE decision = 'pass';
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE meta (station_epoch TEXT NOT NULL);
"""
# Stands among the counters, whose page is written with each record anyway, and is no counter.
ROWS, LAST = "_rows", "_last_sequence"

log = logging.getLogger("outbox")


class Gone(sqlite3.DatabaseError):
    """No file of ours stands at the path: there is nothing to set aside."""


def crc_of(sequence: int, payload: bytes) -> int:
    """Return the CRC that lies beside a record: of its payload at its place."""
    return zlib.crc32(payload, sequence & 0xFFFFFFFF)


def epoch_of(db: sqlite3.Connection) -> str:
    """Read the epoch. Raises sqlite3.Error where there is none yet."""
    row = db.execute("SELECT station_epoch FROM meta").fetchone()
    try:
        return str(uuid.UUID(row[0]))
    except (TypeError, ValueError, AttributeError):
        raise sqlite3.DatabaseError("the outbox has no epoch") from None


def schema_of(db: sqlite3.Connection) -> int:
    """Read the schema's number; 0 in a file that is not made yet."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def counters_of(db: sqlite3.Connection) -> dict[str, int]:
    """Read every counter."""
    return {name: value for name, value in _numbers_of(db).items() if not name.startswith("_")}


def totals_of(db: sqlite3.Connection) -> tuple[int, int]:
    """Return (last sequence used, rows). Raises DatabaseError where the file contradicts itself."""
    used = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'").fetchone()
    highest = db.execute("SELECT max(sequence) FROM outbox").fetchone()[0] or 0
    last = used[0] if used else 0
    numbers = _numbers_of(db)
    if not isinstance(last, int) or not highest <= last <= LARGEST:
        raise sqlite3.DatabaseError(f"numbers up to {last} used, but a record {highest}")
    if numbers.get(LAST, last) != last:
        raise sqlite3.DatabaseError(f"numbers up to {last} used, but {numbers[LAST]} beside it")
    return last, numbers.get(ROWS, -1)


def _numbers_of(db: sqlite3.Connection) -> dict[str, int]:
    rows = db.execute("SELECT CAST(name AS BLOB), value FROM counters").fetchall()
    numbers = {}
    for name, value in rows:
        if not isinstance(value, int) or not 0 <= value <= LARGEST:
            raise sqlite3.DatabaseError("a counter that is no count")
        try:
            numbers[name.decode()] = value
        except UnicodeDecodeError:
            raise sqlite3.DatabaseError("a counter whose name is no text") from None
    return numbers


def refuse_other_files(path: Path, lock_path: Path) -> None:
    """Stop before anything moves where a mistyped path names somebody's folder or file.

    A file that does not begin as SQLite's do may be an outbox that broke, but only where an
    earlier inspector left its lock file beside it.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode):
        raise _other_file(path, "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file")
    if status.st_size == 0 or lock_path.exists():
        return
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise _other_file(path, "another file")


def _other_file(path: Path, found: str) -> InputError:
    return InputError(
        where=path,
        expected="an outbox or a new path",
        found=found,
        do="Correct outbox.path in the station file. What lies there is untouched.",
    )


def opened(path: Path) -> sqlite3.Connection:
    """Open or create; DatabaseError when the content is corrupt, InputError when not ours."""
    db = sqlite3.connect(path, isolation_level=None, timeout=1.0)
    try:
        is_new = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
        if not is_new:
            _refuse_foreign(db, path)
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # before the first table: gives disk back
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA journal_size_limit = {_WAL_KEPT_BYTES}")
        if is_new:
            _create(db)
            flush_folder(path.parent)
        elif schema_of(db) == 1:
            _add_crc(db)
        _refuse_corrupt(db)
    except BaseException:
        db.close()
        raise
    return db


def identity_of(path: Path) -> tuple[int, int]:
    """Return the inodes of the outbox and of its journal, 0 for one that is gone.

    SQLite goes on writing into a file that somebody deleted, and says that all is well.
    """
    return _inode_of(str(path)), _inode_of(f"{path}-wal")


def _inode_of(path: str) -> int:
    try:
        return os.stat(path).st_ino  # noqa: PTH116 - with each append
    except OSError:
        return 0


def is_of_the_machine(error: Exception) -> bool:
    """Tell an error of disk, rights or locks from one of the content."""
    if isinstance(error, OSError):
        return True
    return isinstance(error, sqlite3.OperationalError) and any(
        word in str(error) for word in _MACHINE_WORDS
    )


def set_aside(path: Path, why: str) -> None:
    """Rename a corrupt outbox with its journals; what is in it can still be looked at."""
    number = max(_asides(path), default=0) + 1
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(_aside(path, number, suffix))
    aside = _aside(path, number).name
    log.error(
        "the outbox %s is corrupt (%s): set aside as %s, a new epoch starts", path, why, aside
    )
    for old in sorted(_asides(path))[:-_ASIDE_KEPT]:
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                _aside(path, old, suffix).unlink()


def _aside(path: Path, number: int, suffix: str = "") -> Path:
    return path.with_name(f"{path.name}.corrupt-{number}{suffix}")


def _asides(path: Path) -> list[int]:
    """Return the numbers of corrupt files beside the outbox. Numbers, for clocks jump."""
    ours = re.compile(re.escape(path.name) + r"\.corrupt-([0-9]{1,9})")
    with contextlib.suppress(OSError):
        found = (ours.fullmatch(name) for name in os.listdir(path.parent))  # noqa: PTH208
        return [int(match[1]) for match in found if match]
    return []


def _create(db: sqlite3.Connection) -> None:
    db.executescript(
        f"BEGIN IMMEDIATE; PRAGMA application_id = {_APPLICATION_ID}; "
        f"PRAGMA user_version = {SCHEMA}; {_TABLES}"
    )
    db.execute("INSERT INTO meta VALUES (?)", (str(uuid.uuid4()),))
    db.execute("COMMIT")


def _add_crc(db: sqlite3.Connection) -> None:
    """Bring an outbox of schema 1 up to date; what waits in it has no CRC, and is sent."""
    db.executescript(
        "BEGIN IMMEDIATE; ALTER TABLE outbox ADD COLUMN crc INTEGER; "
        f"PRAGMA user_version = {SCHEMA}; COMMIT"
    )


def flush_folder(folder: Path) -> None:
    """Make the names of new files durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refuse_foreign(db: sqlite3.Connection, path: Path) -> None:
    identity = db.execute("PRAGMA application_id").fetchone()[0]
    schema = schema_of(db)
    if identity != _APPLICATION_ID or not 1 <= schema <= SCHEMA:
        ours = identity == _APPLICATION_ID
        raise InputError(
            where=path,
            expected=f"an outbox of schema {SCHEMA}, or nothing",
            found=f"an outbox of schema {schema}" if ours else "an SQLite file of something else",
            do="Name another outbox.path, or run the version that wrote it until it is empty.",
        )


def _refuse_corrupt(db: sqlite3.Connection) -> None:
    """Raise DatabaseError for what shows within a second; the rest shows when it is used."""
    end_s = time.monotonic() + _CHECK_WITHIN_S
    db.set_progress_handler(lambda: time.monotonic() > end_s, _CHECK_EVERY_STEPS)
    try:
        problem = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.OperationalError as error:
        if str(error) != "interrupted":
            raise
        problem = "ok"
    finally:
        db.set_progress_handler(None, 0)
    if problem != "ok":
        raise sqlite3.DatabaseError(problem)
    epoch_of(db)
    totals_of(db)
    db.execute("SELECT sequence, decision = 'pass', crc FROM outbox LIMIT 1").fetchone()


def size_of_journal(path: Path) -> int:
    """Return the bytes of the journal, 0 where there is none."""
    try:
        return os.stat(f"{path}-wal").st_size  # noqa: PTH116 - with each append
    except OSError:
        return 0
