"""Targets on disk: their format, what they belong to, and the room they need.

    TARGETS/index.json         what they belong to, how far they are, what the teachers remark
    TARGETS/stem.npy           [R, N, G, S] float16: the student's frozen stem, so that an epoch
                               costs only what learns; uint8 where the stem is the pixels
    TARGETS/map.npy            [R, N, G] float16: probability that a cell is anomalous
    TARGETS/scores.npy         [R, N, 3] float32: probability that the image, that the sensor,
                               that the two together are anomalous
    TARGETS/soft_labels.npy    [V, 1, N, K] float32: class probabilities by heads that never saw
                               the part: from all of it, from its image alone, from its sensor
                               alone; [V, R, N, K] where trained runs say it of each copy
    TARGETS/features_I.npy     [R, N, G, F] float16: dense features of teacher I
    TARGETS/summaries_I.npy    [R, N, F] float16: its one vector for the image
    TARGETS/window.npy         [R, N, F] float16: the sensor teacher's one vector for the window
    TARGETS/seen.npy           [N, E] float32: what the label heads see of each original
    TARGETS/readings.npy       [N, C, T] float32: the parts' own windows, which training varies anew
                               in each epoch; so it opens none of the recording's files

A value is nan where nobody knows, and a file is there only where the stage's losses ask for it.

Why plain .npy files: every item has the same size and a place that follows from its number, so the
format needs nothing but an offset. They map into memory as they lie, are shared by all processes
and workers through the page cache, can be written in any order and resumed in place, and open
anywhere without a package of ours. safetensors maps as well, but is written in one piece from
tensors in memory; HDF5 and Zarr put a library and its chunks between the disk and the reader, and
HDF5's handle must not cross a fork; LMDB copies values of this size and wants its size named
beforehand all the same; shards of tar (webdataset) are for streams over a network, read in the
order in which they were written, where training draws parts at random.

A mapped file is safe to read only while it is as long as its header says, else the process dies of
SIGBUS. So all files are allocated, not only sized, before anything is computed, and their headers
and lengths are looked at whenever they are opened. (Where a file system writes changed blocks
elsewhere, as btrfs and ZFS do, set aside is not quite the same as certain.)

Shapes: R rounds (round 0: the originals), N parts, G grid cells, S stem features, F teacher
features, K classes, E features of the label heads, C T sensor, V views (all, and where there
is a sensor: image alone, sensor alone).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from distill.dataset import Progress
from edge.artefact import new_file
from edge.errors import InputError, MachineError
from edge.recording.format import UNREADABLE_JSON

INDEX_FILE = "index.json"
LOCK_FILE = "computing.lock"
_BLOCK_BYTES = 1 << 24
_RECOMPUTE = "Delete the folder to have the targets computed again."


class Layout(NamedTuple):
    """What one array holds."""

    shape: tuple[int, ...]
    kind: str  # numpy's name, with the byte order

    @property
    def header(self) -> bytes:
        """The .npy header that such a file begins with."""
        stream = io.BytesIO()
        described = {"descr": self.kind, "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(stream, described)
        return stream.getvalue()

    @property
    def file_bytes(self) -> int:
        """The file's size."""
        return len(self.header) + prod(self.shape) * np.dtype(self.kind).itemsize


class TargetsIndex(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a folder of targets belongs to, and how far it is."""

    belongs_to: dict[str, str]  # what must be the same -> a digest or a name of it
    rounds_done: int = 0
    parts_done: int = 0  # of the round under way
    complete: bool = False
    checksums: dict[str, int] = {}  # CRC-32 of each file, once complete
    remarks: tuple[str, ...] = ()  # the teachers', for the record of each run that learns from them


def index_in(folder: Path, belongs_to: Mapping[str, str]) -> TargetsIndex:
    """Read the folder's index, or begin one; refuse targets of anything else. InputError."""
    path = folder / INDEX_FILE
    if not path.exists():
        if folder.exists() and not _is_vacant(folder):
            raise _foreign(folder, "something else there")
        with writing_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        index = TargetsIndex(dict(belongs_to))
        write_index(folder, index)
        return index
    try:
        index = msgspec.json.decode(path.read_bytes(), type=TargetsIndex)
    except UNREADABLE_JSON as error:
        raise _foreign(folder, str(error)) from None
    other = [name for name, value in belongs_to.items() if index.belongs_to.get(name) != value]
    if other:
        raise _foreign(folder, "those of another " + " and another ".join(other))
    return index


def write_index(folder: Path, index: TargetsIndex) -> None:
    """Say how far the targets are; durable when this returns."""
    with new_file(folder / INDEX_FILE, force=True) as partial:
        partial.write_bytes(msgspec.json.encode(index))


def array_paths(folder: Path, layouts: Mapping[str, Layout]) -> dict[str, Path]:
    """Name the files."""
    return {name: folder / f"{name}.npy" for name in layouts}


def bytes_lacking(folder: Path, layouts: Mapping[str, Layout]) -> int:
    """Return how many bytes the disk must still have for these targets."""
    paths = array_paths(folder, layouts)
    return sum(layouts[name].file_bytes for name, path in paths.items() if not path.exists())


def refuse_full_disks(planned: Mapping[Path, Mapping[str, Layout]]) -> None:
    """Raise MachineError where the folders' disks have not the room for what is planned there."""
    lacking: dict[int, int] = {}
    standing: dict[int, Path] = {}
    for folder, layouts in planned.items():
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        disk = there.stat().st_dev
        standing[disk] = there
        lacking[disk] = lacking.get(disk, 0) + bytes_lacking(folder, layouts)
    for disk, there in standing.items():
        free = shutil.disk_usage(there).free
        if lacking[disk] > free:
            raise _full_disk(there, lacking[disk], free)


def allocate(folder: Path, layouts: Mapping[str, Layout], *, fresh: bool) -> None:
    """Make the files at their full size before anything is computed.

    Raises MachineError where the disk has not the room, and InputError where computing had begun
    (not `fresh`) and a file of it is gone.
    """
    missing = {n: path for n, path in array_paths(folder, layouts).items() if not path.exists()}
    if missing and not fresh:
        raise _broken(next(iter(missing.values())), "none")
    made: list[Path] = []
    try:
        refuse_full_disks({folder: layouts})
        for name, path in missing.items():
            made.append(path)
            _allocate_file(path, layouts[name])
    except BaseException:
        for path in made:  # nothing was computed into them yet
            path.unlink(missing_ok=True)
            _partial(path).unlink(missing_ok=True)
        raise


def mapped(path: Path, layout: Layout, mode: str = "r") -> NDArray[Any]:
    """Map one array. Raises InputError where the file is not what was allocated."""
    header = layout.header
    try:
        with path.open("rb") as file:
            begins = file.read(len(header))
        size = path.stat().st_size
    except OSError as error:
        raise _broken(path, error.strerror or str(error)) from None
    if begins != header:
        raise _broken(path, "another header")
    if size != layout.file_bytes:
        raise _broken(path, f"{size:,} bytes instead of {layout.file_bytes:,}")
    return np.memmap(path, layout.kind, mode, len(header), layout.shape)  # type: ignore[call-overload,no-any-return]


def checksums_of(folder: Path, layouts: Mapping[str, Layout], progress: Progress) -> dict[str, int]:
    """Return the CRC-32 of each file; reading them once also brings them into the page cache."""
    found = {}
    for name, path in array_paths(folder, layouts).items():
        blocks = range(-(-path.stat().st_size // _BLOCK_BYTES))
        with path.open("rb") as file:
            value = 0
            for _ in progress(f"reading the targets, {name}")(blocks):
                value = zlib.crc32(file.read(_BLOCK_BYTES), value)
        found[name] = value
    return found


def refuse_changed(
    folder: Path, layouts: Mapping[str, Layout], index: TargetsIndex, progress: Progress
) -> None:
    """Raise InputError where a file is not, byte for byte, what was computed."""
    paths = array_paths(folder, layouts)
    for name, value in checksums_of(folder, layouts, progress).items():
        if index.checksums.get(name) != value:
            raise _broken(paths[name], "other bytes than were written")


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep other processes from computing into the folder; a killed one lets go by itself."""
    with (folder / LOCK_FILE).open("w") as lock:
        if not take(lock):
            raise InputError(
                where=folder,
                expected="targets that nobody is computing",
                found="another process that is",
                do="Wait until it is done (its targets can be shared), or name another --targets.",
            )
        yield


def take(lock: IO[str]) -> bool:
    """Take the lock that an open file is, and say whether no other process has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def writing_errors(folder: Path) -> Iterator[None]:
    """Turn what a disk refuses into an error that says the next step."""
    try:
        yield
    except OSError as error:
        raise MachineError(
            where=folder,
            expected="to be able to write targets here",
            found=str(error),
            do="Free some space, change the folder's owner, or name another --targets folder.",
        ) from error


def _allocate_file(path: Path, layout: Layout) -> None:
    """Write the header and have the disk set aside the rest, which then reads as zeros."""
    partial = _partial(path)
    try:
        with partial.open("wb") as file:
            file.write(layout.header)
            file.flush()
            os.posix_fallocate(file.fileno(), 0, layout.file_bytes)
            os.fsync(file.fileno())
        # A rename, so that a kill never leaves a file whose header was cut short.
        partial.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(path.parent).free
            raise _full_disk(path, layout.file_bytes, free) from error
        with writing_errors(path.parent):
            raise


def _full_disk(where: Path, needed: int, free: int) -> MachineError:
    return MachineError(
        where=where,
        expected=f"room for {needed:,} bytes of targets",
        found=f"{free:,} bytes free",
        do="Free some space, name a --targets folder on a larger disk, or ask for less "
        "(targets.copies, teacher.feature_size, image.pixel_budget). Nothing was computed yet.",
    )


def _partial(path: Path) -> Path:
    return path.with_suffix(".partial")


def _is_vacant(folder: Path) -> bool:
    """Tell whether nothing but what a killed run left half written stands in `folder`."""
    return folder.is_dir() and all(
        path.suffix == ".partial" or path.name == LOCK_FILE for path in folder.iterdir()
    )


def _broken(path: Path, found: str) -> InputError:
    return InputError(
        where=path, expected="a whole array as it was computed", found=found, do=_RECOMPUTE
    )


def _foreign(folder: Path, found: str) -> InputError:
    return InputError(
        where=folder,
        expected="targets of this recording, teacher and recipe, and of this stage",
        found=found,
        do="Name another --targets folder; one that is new or empty is filled.",
    )
