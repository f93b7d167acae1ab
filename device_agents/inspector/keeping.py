"""The picture thread: what is worth keeping goes to the disk beside the records, never before them.

Writing a picture means encoding it, some milliseconds of a core, and Pillow holds Python's lock
meanwhile. So it encodes in small pieces and lets go of the lock between them as soon as anyone
wants it; it rests after each picture for thrice the time it took; and few frames may wait for it:
`ROOM`, with those on their way through the recorder. Full: the picture is skipped
(`pictures_skipped`); its record is not.
"""

from __future__ import annotations

import sys
import time
from queue import Empty, SimpleQueue
from threading import BoundedSemaphore

from PIL import ImageFile

from device_agents.inspector.counts import Counts
from device_agents.inspector.pulse import IDLE_S, Pulse
from device_agents.outbox.kept import KeptPictures
from device_agents.outbox.kept_part import KeptPart

ROOM = 4  # frames of 3.7 MB each at 1280x960
_REST_PER_WORK = 3.0
# A part takes the lock over about four times on its way. With a picture of every part (22 a second
# are kept), frame to record on a RAM disk had a p99 of 9 to 11 ms with Python's interval of 5 ms
# and Pillow's blocks of 64 KiB, the same with 0.5 ms alone, and 3 ms with these (x86-64, 2
# cores, Python 3.11). All the time, the short interval would cost a part 0.2 ms.
_ENCODING_INTERVAL_S = 0.00002
_ENCODED_BYTES = 4096
THREAD = "pictures"


class Keeping:
    """A small room of pictures on their way to the disk; `run` is the thread's whole life."""

    def __init__(self, pictures: KeptPictures | None, counts: Counts, pulse: Pulse) -> None:
        self._pictures = pictures
        self._counts = counts
        self._pulse = pulse
        self._room = BoundedSemaphore(ROOM)
        self._waiting: SimpleQueue[KeptPart | None] = SimpleQueue()
        self._told: dict[str, int] = {}  # how much of the pictures' own counters is passed on

    def has_room_for(self, why: tuple[str, ...]) -> bool:
        """Take a place for one picture; without one the picture is dropped, and counted."""
        if not why or self._pictures is None:
            return False
        if not self._room.acquire(blocking=False):
            self._counts.count("pictures_skipped")
            return False
        return True

    def put(self, part: KeptPart) -> None:
        """Hand on a part whose picture has a place; its record is on the disk."""
        self._waiting.put(part)

    def give_back(self) -> None:
        """Free the place of a picture whose record was lost."""
        self._room.release()

    def close(self) -> None:
        """No picture comes any more; what waits is still kept."""
        self._waiting.put(None)

    def run(self) -> None:
        """Keep pictures until `close`."""
        ImageFile.MAXBLOCK = _ENCODED_BYTES
        while True:
            self._pulse.beat(THREAD)
            try:
                waiting = self._waiting.get(timeout=IDLE_S)
            except Empty:
                continue
            if waiting is None:
                break
            started_s = time.monotonic()
            self._write(waiting)
            self._room.release()
            del waiting  # its frame, while resting
            self._rest((time.monotonic() - started_s) * _REST_PER_WORK)
        self._pulse.end(THREAD)

    def _write(self, part: KeptPart) -> None:
        assert self._pictures is not None
        usual_s = sys.getswitchinterval()
        sys.setswitchinterval(_ENCODING_INTERVAL_S)
        try:
            self._pictures.keep(part)
        finally:
            sys.setswitchinterval(usual_s)
        for name, value in self._pictures.counters.items():
            self._counts.count(name, value - self._told.get(name, 0))
            self._told[name] = value

    def _rest(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while (left_s := until_s - time.monotonic()) > 0 and not self._pulse.stop.is_set():
            self._pulse.beat(THREAD)
            time.sleep(min(left_s, IDLE_S))
