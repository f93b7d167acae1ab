"""A folder for pictures that stations send: names made safe, bytes bounded, files whole.

    DIR/<site>/<area>/<line>/<station>/<inspection_id>.image.jpg

Every part of the name comes from the network. What a file name may not hold becomes `_`, and then
a digest keeps two such names apart; no name leads out of the folder.
"""

from __future__ import annotations

import re
from pathlib import Path

from edge.artefact import digest_of_bytes, new_file
from edge.messages import Picture

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_LONGEST_NAME = 100  # file systems take 255 bytes
_ENDINGS = {"image/jpeg": "jpg", "image/png": "png"}
_BLOCK_BYTES = 4096  # what the smallest file takes: many empty ones fill a disk too


class PictureFolder:
    """Saves pictures until its limit. Used by one thread."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self._path = path
        self._left_bytes = limit_bytes
        self.saved = 0
        self.over_limit = 0  # not saved

    def save(self, picture: Picture) -> Path | None:
        """Write the picture's file and return its path; None where it is empty or over the limit.

        The same picture again replaces its file. Raises MachineError when the disk is full.
        """
        if not picture.data:
            return None
        cost = len(picture.data) + _BLOCK_BYTES
        if cost > self._left_bytes:
            self.over_limit += 1
            return None
        path = self._path_of(picture)
        with new_file(path, force=True) as partial:
            partial.write_bytes(picture.data)
        self._left_bytes -= cost
        self.saved += 1
        return path

    def _path_of(self, picture: Picture) -> Path:
        place = picture.station
        levels = (place.site, place.area, place.line, place.station)
        ending = _ENDINGS.get(picture.media_type, "bin")
        name = f"{safe_name(picture.inspection_id)}.{picture.shows}.{ending}"
        return self._path.joinpath(*map(safe_name, levels), name)


def safe_name(text: str) -> str:
    """Return `text` as one part of a path: itself where it can be, else made so and unique."""
    safe = _UNSAFE.sub("_", text).lstrip(".-")[:_LONGEST_NAME]
    return safe if safe and safe == text else f"{safe or 'x'}-{digest_of_bytes(text.encode())[:8]}"
