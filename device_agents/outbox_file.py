"""The outbox's file: made, recognised, refused where it is not ours, set aside where corrupt."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import stat
import time
import uuid
from pathlib import Path

from edge.errors import InputError

SCHEMA = 1
_APPLICATION_ID = 0x4F52494E  # "ORIN": tells our file from any other SQLite file
_MAGIC = b"SQLite format 3\0"  # how every SQLite file begins
_WAL_LIMIT_BYTES = 16 << 20
_TABLES = """
CREATE TABLE outbox (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, decision TEXT NOT NULL, payload BLOB NOT NULL);
CREATE INDEX oldest_pass ON outbox (sequence) WHERE decision = 'pass';
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE meta (station_epoch TEXT NOT NULL);
"""

log = logging.getLogger("outbox")


def epoch_of(db: sqlite3.Connection) -> str:
    """Read the epoch. Raises sqlite3.Error where there is none yet."""
    row = db.execute("SELECT station_epoch FROM meta").fetchone()
    if row is None:
        raise sqlite3.DatabaseError("the outbox has no epoch")
    return str(row[0])


def counters_of(db: sqlite3.Connection) -> dict[str, int]:
    """Read every counter."""
    return dict(db.execute("SELECT name, value FROM counters").fetchall())


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


def opened_or_set_aside(path: Path) -> sqlite3.Connection:
    """Open or create the outbox for writing; a corrupt one makes way under another name."""
    try:
        return opened(path)
    except sqlite3.OperationalError:
        raise  # rights, a missing disk: nothing says that the content is bad
    except sqlite3.DatabaseError as error:
        set_aside(path, str(error))
        return opened(path)


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
        db.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}")
        if is_new:
            _create(db)
        _refuse_corrupt(db)
    except BaseException:
        db.close()
        raise
    return db


def _create(db: sqlite3.Connection) -> None:
    db.executescript(
        f"BEGIN IMMEDIATE; PRAGMA application_id = {_APPLICATION_ID}; "
        f"PRAGMA user_version = {SCHEMA}; {_TABLES}"
    )
    db.execute("INSERT INTO meta VALUES (?)", (str(uuid.uuid4()),))
    db.execute("COMMIT")


def _refuse_foreign(db: sqlite3.Connection, path: Path) -> None:
    identity = db.execute("PRAGMA application_id").fetchone()[0]
    schema = db.execute("PRAGMA user_version").fetchone()[0]
    if (identity, schema) != (_APPLICATION_ID, SCHEMA):
        ours = identity == _APPLICATION_ID
        raise InputError(
            where=path,
            expected=f"an outbox of schema {SCHEMA}, or nothing",
            found=f"an outbox of schema {schema}" if ours else "an SQLite file of something else",
            do="Name another outbox.path, or run the version that wrote it until it is empty.",
        )


def _refuse_corrupt(db: sqlite3.Connection) -> None:
    problem = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != "ok":
        raise sqlite3.DatabaseError(problem)
    try:
        epoch_of(db)
        counters_of(db)
        db.execute("SELECT sequence, decision, payload FROM outbox LIMIT 1").fetchone()
    except sqlite3.OperationalError as error:  # a table or column of ours is missing
        raise sqlite3.DatabaseError(str(error)) from None


def set_aside(path: Path, why: str) -> None:
    """Rename a corrupt outbox with its journals; what is in it can still be looked at."""
    aside = path.with_name(f"{path.name}.corrupt-{time.time_ns()}")
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
    log.error(
        "the outbox %s is corrupt (%s): set aside as %s, a new epoch starts", path, why, aside.name
    )
