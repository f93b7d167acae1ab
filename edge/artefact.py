"""Outputs that appear whole or not at all, and the digests that name their content.

A folder or file is written beside its final place under a temporary name, flushed to disk, and
renamed. A killed process leaves a temporary behind, never half an output. An existing output is
kept unless the person said `--force`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edge.errors import InputError, MachineError

_CHUNK_BYTES = 1 << 20
_NO_POSSIBLE_OUTPUT = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)


def beside(path: Path, suffix: str) -> Path:
    """Return the path in the same folder whose name goes on with `suffix`; of "." too."""
    named = path if path.name not in {"", ".."} else Path(os.path.abspath(path))  # noqa: PTH100
    return named.with_name(named.name + suffix)


@contextlib.contextmanager
def new_folder(path: Path, *, force: bool = False, mark: str | None = None) -> Iterator[Path]:
    """Yield an empty folder to fill; on success it becomes `path`, on any error it vanishes.

    `mark` names a file by which an output of the same kind is known (see `check_free`).
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link at `path`
    with disk_errors(path):
        check_free(path, force=force, mark=mark)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(
            tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        )
        try:
            partial.chmod(0o755)
            yield partial
            _flush_tree(partial)
            check_free(path, force=force, mark=mark)  # something may have come meanwhile
            _replace_folder(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def new_file(path: Path, *, force: bool = False, magic: bytes | None = None) -> Iterator[Path]:
    """Yield a temporary path to write; on success it becomes `path`, on any error it vanishes.

    With `magic`, `force` replaces only a file that begins with those bytes: one of the same kind.
    """
    with disk_errors(path):
        check_free(path, force=force, magic=magic)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        os.close(handle)
        partial = Path(name)
        try:
            yield partial
            flush(partial)
            partial.chmod(0o644)
            check_free(path, force=force, magic=magic)  # something may have come meanwhile
            partial.replace(path)
            flush(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def check_free(
    path: Path, *, force: bool = False, mark: str | None = None, magic: bytes | None = None
) -> None:
    """Refuse an output that exists already. Call it before long work, not only at its end.

    With `force` an existing output may be replaced; where `mark` is given, only a folder that
    holds a file of that name, and where `magic` is given, only a file that begins with those
    bytes, so that a slip of the pen cannot delete something else.
    """
    if not os.path.lexists(path):
        return
    if not force:
        is_ours = (mark is None or (path / mark).is_file()) and (
            magic is None or _begins_with(path, magic)
        )
        raise InputError(
            where=path,
            expected="a path where nothing is yet",
            found="an existing output" if is_ours else "something else",
            do="Choose another path, or say --force to replace it."
            if is_ours
            else "Choose another path.",
        )
    if mark is not None and not (path / mark).is_file():
        raise InputError(
            where=path,
            expected=f"an earlier output to replace (a folder with {mark})",
            found="something else",
            do="Choose another --out; --force deletes nothing that this command did not write.",
        )
    if magic is not None and not _begins_with(path, magic):
        raise InputError(
            where=path,
            expected="an earlier output of the same kind to replace",
            found="something else",
            do="Choose another path; --force deletes nothing that this command did not write.",
        )


def digest_of_bytes(content: bytes) -> str:
    """Return the SHA-256 of `content` as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def digest_of_file(path: Path, *, skip: int = 0) -> str:
    """Return a file's SHA-256, without its first `skip` bytes, read in bounded memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(skip)
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _begins_with(path: Path, magic: bytes) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a missing right into an error that says the next step."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MachineError(
                where=path,
                expected="room on the disk",
                found=str(error),
                do="Free some space or choose another --out; nothing half written was left.",
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise MachineError(
                where=path,
                expected="the right to write here",
                found=str(error),
                do="Choose another --out, or change the folder's owner.",
            ) from error
        if error.errno in _NO_POSSIBLE_OUTPUT:
            raise InputError(
                where=path,
                expected="a path that can become an output",
                found=str(error),
                do="Choose another --out.",
            ) from error
        raise


def _replace_folder(partial: Path, path: Path) -> None:
    """Put `partial` in the place of `path`.

    Folders cannot be swapped in one portable call, so the old one steps aside under a temporary
    name and is deleted only when the new one stands.
    """
    if not path.exists():
        partial.rename(path)
    else:
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
        path.rename(aside / path.name)
        try:
            partial.rename(path)
        except OSError:
            (aside / path.name).rename(path)
            raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    flush(path.parent)


def _flush_tree(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for name in files:
            flush(Path(parent, name))
        flush(Path(parent))


def flush(path: Path) -> None:
    """Force a file, or what a folder lists, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
