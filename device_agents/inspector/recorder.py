"""The recorder: the one thread that writes the outbox. A part counts as done only after it.

It numbers what the inference thread judged, and writes all that waits in one transaction: one
fsync for many records when the disk is slow, one for one when it is quick.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from threading import Condition

import msgspec

from device_agents.inspector.counts import Counts
from device_agents.inspector.judge import inspection_id_of
from device_agents.inspector.latency import LastMinute
from device_agents.inspector.pulse import IDLE_S, Pulse
from device_agents.outbox.cursor import read_cursor
from device_agents.outbox.writer import Outbox
from edge.messages import Inspection

ROOM = 512  # records that may wait: more than a disk's longest pause at 100 parts a second
_MOST_AT_ONCE = 128
_CURSOR_EVERY_S = 0.2  # how often to look what the publisher got through
_GRACE_S = 2.0  # what was taken may still come, after the loop gave up
THREAD = "recorder"


@dataclass(frozen=True)
class Record:
    """One judged part on its way to the disk. `draft` has no number yet."""

    draft: Inspection
    in_memory_s: float  # monotonic
    counted: tuple[str, ...]  # counters that go up with this record, in its transaction
    after: Callable[[Inspection, bool], None] | None = None  # told once: numbered, and kept or not


class RecordQueue:
    """Takes what one turn brings while fewer than `room` wait.

    Full: `put` waits, and the frame queue's rule takes over.
    """

    def __init__(self, room: int = ROOM) -> None:
        self._room = room
        self._records: deque[Record] = deque()
        self._changed = Condition()
        self._closed = False

    @property
    def depth(self) -> int:
        """Records that wait."""
        return len(self._records)

    def put(self, records: list[Record], still_waiting: Callable[[], None]) -> None:
        """Add records; `still_waiting` is called now and then while there is no room."""
        with self._changed:
            while len(self._records) >= self._room:
                self._changed.wait(IDLE_S)
                still_waiting()
            self._records.extend(records)
            self._changed.notify()

    def take(self, most: int) -> list[Record] | None:
        """Return up to `most` records, none after a while without any; None: closed and empty."""
        with self._changed:
            if not self._records:
                if self._closed:
                    return None
                self._changed.wait(IDLE_S)
            taken = [self._records.popleft() for _ in range(min(most, len(self._records)))]
            self._changed.notify()
            return taken

    def close(self) -> None:
        """No record comes any more; what waits is still taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class Recorder:
    """Writes what comes through `queue`; `run` lives in the thread that opened the outbox."""

    def __init__(self, outbox: Outbox, counts: Counts, pulse: Pulse, budget_ms: float) -> None:
        self.queue = RecordQueue()
        self.durable = LastMinute()  # frame in memory to record on disk
        self.last_inspection_at: str | None = None
        self.refused_since_s: float | None = None  # monotonic; the disk has taken nothing since
        self._outbox = outbox
        self._counts = counts
        self._pulse = pulse
        self._budget_ms = budget_ms
        self._looked_s = 0.0

    def run(self) -> None:
        """Record until the queue is closed and empty, or something is stuck for good."""
        while (records := self.queue.take(_MOST_AT_ONCE)) is not None:
            self._pulse.beat(THREAD)
            if records:
                self.record(records)
                if not self.queue.depth:
                    self._outbox.rest()
            elif self._pulse.gave_up_before(time.monotonic() - _GRACE_S):
                break  # nothing more will come from a thread that is stuck
            self._look_at_the_cursor()
        self.take_counts()
        self._pulse.end(THREAD)

    def record(self, records: list[Record]) -> None:
        """Number the records, make them durable in one transaction, and say so."""
        self.take_counts()
        outbox, first = self._outbox, self._outbox.next_sequence
        inspections = []
        for sequence, record in enumerate(records, start=first):
            inspections.append(_numbered(record.draft, outbox.epoch, sequence))
            for name in record.counted:
                outbox.count(name)
        before_s = time.monotonic()
        kept = outbox.append_all(inspections)
        now_s = time.monotonic()
        outbox.raise_to("append_max_ms", math.ceil((now_s - before_s) * 1e3))  # a slow disk, named
        # A full outbox that drops a record has no fault: the disk took the transaction.
        self._note_the_disk(any(kept) or not outbox.fault, before_s)
        for record, inspection, is_kept in zip(records, inspections, kept, strict=True):
            self._tell(record, inspection, is_kept, now_s)

    def _tell(self, record: Record, inspection: Inspection, is_kept: bool, now_s: float) -> None:
        if is_kept:
            latency_ms = (now_s - record.in_memory_s) * 1e3
            self.durable.take(latency_ms)
            self.last_inspection_at = inspection.inspected_at
            if latency_ms > self._budget_ms:
                self._counts.count("over_budget")
        if record.after:
            record.after(inspection, is_kept)

    def _note_the_disk(self, took_any: bool, tried_s: float) -> None:
        if took_any:
            self.refused_since_s = None
        elif self.refused_since_s is None:
            self.refused_since_s = tried_s

    def take_counts(self) -> None:
        """Hand to the outbox what the other threads counted."""
        added, highest = self._counts.drain()
        for name, by in added.items():
            self._outbox.count(name, by)
        for name, value in highest.items():
            self._outbox.raise_to(name, value)

    def _look_at_the_cursor(self) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s > _CURSOR_EVERY_S:
            self._looked_s = now_s
            outbox = self._outbox
            outbox.note_acknowledged(read_cursor(outbox.path, outbox.epoch).acknowledged)


def _numbered(draft: Inspection, epoch: str, sequence: int) -> Inspection:
    return msgspec.structs.replace(
        draft,
        inspection_id=inspection_id_of(epoch, sequence),
        station_epoch=epoch,
        sequence=sequence,
    )
