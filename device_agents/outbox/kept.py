"""Kept pictures: the parts worth a second look, beside the outbox and under their own quota.

    OUTBOX.pictures/<class>.<number>.<bytes>.<inspection_id>/   see `device_agents.outbox.kept_part`

A part's class is its most telling reason: `near` the threshold, modalities that `disagree`,
`drift`, `fail`, `invalid`, or a plain `pass`. For relabelling the first three teach most, for
that is where the model is unsure or was never taught; fails come next, since each costs the plant
a part; what could not be judged teaches nothing but shows a fault; and a few passes are kept to
compare with. A strict order would let one class that floods (a camera that was pushed makes
everything `fail`) push out all below it. So every class has a weight, and when the quota is full
the class that holds most bytes for its weight loses its oldest part: the heavy classes stay
longest, a flood pushes out only itself, and a class's room is everybody's while it is not used.

"Disagree" is what can be seen without a second inference: the likeliest class (normal or a
defect) contradicts the decision, which rests on the anomaly score.

Nothing here waits for the disk (no fsync: pictures must not slow down records), and nothing
raises into the loop. After a power cut the last pictures may be gone; a part that is not whole
is none. Order is by number, never by time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from device_agents.counters import is_worth_a_line
from device_agents.outbox.kept_part import (
    FILES,
    KeptPart,
    delete_part,
    files_of,
    is_safe_id,
    read_part,
)
from device_agents.station import Pictures
from edge.messages import Inspection

WEIGHTS = {"near": 32, "disagree": 32, "drift": 16, "fail": 16, "invalid": 8, "pass": 1}
_DRIFT_SHARE = 10.0  # drift can stand for days: of passes with it, so many times the plain share
_SPARE_DISK_BYTES, _SPARE_DISK_SHARE = 64 << 20, 0.10  # left to the records; the smaller counts
_BLOCK_BYTES = 4096  # what the disk gives to the smallest file
_NAME = re.compile(r"([a-z]{1,16})\.([0-9]{12})\.([0-9]{1,12})\.(.{1,100})")
_NEW, _OLD = ".kept-new", ".kept-old"

log = logging.getLogger("pictures")


def why_keep(inspection: Inspection, limits: Pictures, draw: float) -> tuple[str, ...]:
    """Say why a part is worth keeping, the most telling reason first; () where it is not.

    `draw` in 0..1 decides on what is kept by share.
    """
    if limits.max_bytes == 0:
        return ()
    if inspection.decision == "invalid":
        return ("invalid",)
    why = []
    score = inspection.anomaly_score
    if score is not None and abs(score - inspection.threshold) <= limits.near_threshold:
        why.append("near")
    if _classes_disagree(inspection):
        why.append("disagree")
    is_pass = inspection.decision == "pass"
    if inspection.drift and (why or not is_pass or draw < limits.share_of_passes * _DRIFT_SHARE):
        why.append("drift")
    if not is_pass:
        why.append("fail")
    elif not why and draw < limits.share_of_passes:
        why.append("pass")
    return tuple(why)


def _classes_disagree(inspection: Inspection) -> bool:
    """Tell whether the likeliest class is another than the label, which follows the decision."""
    scores = inspection.class_scores
    return inspection.label in scores and scores[inspection.label] < max(scores.values())


@dataclass(frozen=True)
class Place:
    """Where one part lies, and what its folder's name says of it."""

    path: Path
    kind: str  # its class
    number: int  # in the order of keeping
    size: int  # bytes of its files
    inspection_id: str


def places_in(folder: Path) -> list[Place]:
    """Return every part in `folder`, oldest first. What is not ours is passed over."""
    places = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            name = _NAME.fullmatch(entry.name)
            if name is None or name[1] not in WEIGHTS or not is_safe_id(name[4]):
                continue
            if entry.is_dir(follow_symlinks=False):
                found = Place(Path(entry.path), name[1], int(name[2]), int(name[3]), name[4])
                places.append(found)
    return sorted(places, key=lambda place: place.number)


class KeptPictures:
    """The writing side: one process, one thread at a time."""

    def __init__(self, folder: Path, limits: Pictures) -> None:
        self.folder = folder
        self.counters: dict[str, int] = {}
        self._limits = limits
        self._by_kind: dict[str, deque[Place]] = {kind: deque() for kind in WEIGHTS}
        self._bytes = dict.fromkeys(WEIGHTS, 0)
        self._next_number = 1

    @classmethod
    def open(cls, outbox: Path, limits: Pictures) -> KeptPictures:
        """Find what an earlier run kept. Never raises: without a folder no picture is kept."""
        kept = cls(folder_of(outbox), limits)
        for place in places_in(kept.folder):
            kept._add(place)
        kept._delete_leftovers()
        with contextlib.suppress(OSError):
            kept._make_room(0)
        return kept

    @property
    def size(self) -> int:
        """Bytes on disk, whole blocks of it."""
        return sum(self._bytes.values())

    def keep(self, part: KeptPart) -> bool:
        """Write one part, and make room for it; False (counted, logged) where it was not kept."""
        try:
            return self._keep(part)
        except (OSError, ValueError) as error:
            self._count("pictures_lost")
            if is_worth_a_line(self.counters["pictures_lost"]):
                log.error("the picture of %s is lost: %s", part.inspection.inspection_id, error)
            return False

    def _keep(self, part: KeptPart) -> bool:
        inspection_id = part.inspection.inspection_id
        kind = next((why for why in WEIGHTS if why in part.why), None)
        if kind is None or not is_safe_id(inspection_id):
            raise ValueError(f"no reason to keep it, or no id: {part.why}, {inspection_id!r}")
        files = files_of(part)
        size = sum(map(len, files.values()))
        if not self._make_room(_on_disk(size), kind):
            self._count("pictures_no_room")
            return False
        name = f"{kind}.{self._next_number:012d}.{size}.{inspection_id}"
        fresh = self.folder / _NEW
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            delete_part(fresh)
            fresh.mkdir()
            for file, content in files.items():
                (fresh / file).write_bytes(content)
            fresh.rename(self.folder / name)
        except OSError:
            delete_part(fresh)
            raise
        self._add(Place(self.folder / name, kind, self._next_number, size, inspection_id))
        self._count("pictures_kept")
        return True

    def _make_room(self, needed: int, kind: str = "") -> bool:
        """Evict until `needed` bytes fit into the quota; where the disk is short, do not grow.

        Returns whether they fit. A part that no room can be made for is not worth another's.
        """
        if needed > self._limits.max_bytes:
            return False
        freed = 0
        while self.size + needed > self._limits.max_bytes:
            if not (gone := self._evict(needed, kind)):
                return False
            freed += gone
        # Twice: on a disk that stays short the pictures shrink slowly, and leave it to the records.
        while self.size and freed < 2 * needed and self._disk_is_short():
            if not (gone := self._evict(needed, kind)):
                return False
            freed += gone
        return freed >= needed or not self._disk_is_short()

    def _evict(self, needed: int, kind: str) -> int:
        """Delete the oldest part of the class that holds most for its weight; return its bytes.

        0 where that class is the coming part's own and has no other: then it is not kept.
        """

        def held(name: str) -> float:
            return (self._bytes[name] + (needed if name == kind else 0)) / WEIGHTS[name]

        parts = self._by_kind[max(WEIGHTS, key=held)]
        if not parts:
            return 0
        place = parts.popleft()
        self._bytes[place.kind] -= _on_disk(place.size)
        self._count("pictures_evicted")
        gone = self.folder / _OLD
        try:
            delete_part(gone)
            place.path.rename(gone)  # at once, for readers: never half a part
            delete_part(gone)
        except OSError:  # somebody put a file of theirs into it
            delete_part(place.path)
        return _on_disk(place.size)

    def _add(self, place: Place) -> None:
        self._by_kind[place.kind].append(place)
        self._bytes[place.kind] += _on_disk(place.size)
        self._next_number = max(self._next_number, place.number + 1)

    def _delete_leftovers(self) -> None:
        """Delete what a kill left in the middle of writing or deleting."""
        for name in (_NEW, _OLD):
            delete_part(self.folder / name)

    def _disk_is_short(self) -> bool:
        folder = self.folder if self.folder.is_dir() else self.folder.parent
        disk = os.statvfs(folder)
        spare = min(_SPARE_DISK_BYTES, int(disk.f_blocks * disk.f_frsize * _SPARE_DISK_SHARE))
        return disk.f_bavail * disk.f_frsize < spare

    def _count(self, name: str) -> None:
        self.counters[name] = self.counters.get(name, 0) + 1


class KeptReader:
    """The reading side, for another process. It never writes, and what is gone is None."""

    def __init__(self, outbox: Path) -> None:
        self._folder = folder_of(outbox)

    def read(self, inspection_id: str) -> KeptPart | None:
        """Return what was kept of an inspection; None: nothing, not whole, or no id of ours."""
        if not is_safe_id(inspection_id):
            return None
        for place in places_in(self._folder):
            if place.inspection_id == inspection_id:
                part = read_part(place.path, place.size)
                if part is not None and part.inspection.inspection_id == inspection_id:
                    return part
        return None


def folder_of(outbox: Path) -> Path:
    """Return where the pictures of an outbox lie."""
    return outbox.with_name(outbox.name + ".pictures")


def _on_disk(size: int) -> int:
    """Bytes on disk, at most: every file ends in a block of its own, and so does the folder."""
    return size + (len(FILES) + 1) * _BLOCK_BYTES
