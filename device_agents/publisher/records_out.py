"""The records' way out of the outbox: read ahead, sent in order, settled, remembered.

Everything that one life of the outbox (an epoch) needs is here: what is in flight, the cursor and
the counters that stand in its file, and who is suspected when the broker hangs up.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import time
from collections import deque
from pathlib import Path

import msgspec

from device_agents.counters import is_worth_a_line
from device_agents.mqtt.link import PACKET_OVERHEAD_BYTES, Link
from device_agents.mqtt.refusals import PROTOCOL_ENDS, answer_to, refusal_of
from device_agents.outbox.cursor import Cursor, read_cursor, write_cursor
from device_agents.outbox.reader import OutboxReader
from device_agents.publisher.in_flight import Distrust, InFlight, Suspicion
from device_agents.publisher.picture_desk import MOST_BY_RULE
from device_agents.publisher.quarantine import put_aside
from device_agents.station import StationFile
from edge.topics import topic_of

_CURSOR_EVERY_S = 0.2
_CURSOR_RETRY_S = 5.0
_STALLED_S = 30.0  # connected, records in flight, and no acknowledgement: start over
# What the inspector drops meanwhile from a full outbox goes out all the same, counted as dropped:
# the batch is small enough for that not to matter, and large enough to make reading cheap.
_READ_AHEAD = 50
_LARGEST_PACKET_BYTES = 268_435_455  # MQTT, 2.1.4

log = logging.getLogger("publisher")


class _Decided(msgspec.Struct):
    """What the rule for pictures reads of a record."""

    inspection_id: str
    decision: str


class RecordsOut:
    """Owns the cursor file and the reader of the outbox."""

    def __init__(self, station: StationFile, reader: OutboxReader) -> None:
        self._outbox = Path(station.outbox.path)
        self._window = station.broker.in_flight
        self._resend_s = station.broker.resend_s
        self._topic = topic_of(station.station, "inspection")
        self._watches_decisions = station.pictures.publish == "fail"
        self._suspicion = Suspicion()
        self._failed_out: deque[str] = deque()
        self._saved = Cursor("", 0, {})
        self._saved_s = 0.0
        self._progress_s = 0.0
        self._heard_s = 0.0  # when the broker said something last
        self._stalled = False
        self._refusals = 0  # since a record got through
        self.grievance = ""  # why we hung up: records were refused, or the broker is silent
        self.got_through = False  # whether the broker took a record on this connection
        self._read_from(reader)

    @property
    def acknowledged(self) -> int:
        """The broker has every record of the epoch up to this one."""
        return self._in_flight.acknowledged

    @property
    def under_way(self) -> int:
        """How many were sent and not yet settled."""
        return len(self._in_flight)

    def count(self, name: str, by: int = 1) -> None:
        """Add to one of the publisher's counters. It reaches the disk with the cursor."""
        self.counters[name] = self.counters.get(name, 0) + by

    def begin(self) -> None:
        """A new connection is there."""
        self.got_through = self._stalled = False
        self.grievance = ""
        self._progress_s = time.monotonic()

    def room(self, link: Link, others: int) -> int:
        """How many records the window and the broker let out, beside `others` under way."""
        window = 1 if self._suspicion.narrow else self._window
        return min(window, link.send_at_once - others) - len(self._in_flight)

    def send(self, link: Link, most: int) -> int:
        """Send up to `most` records; return how many left the outbox."""
        largest = link.largest_packet_bytes or _LARGEST_PACKET_BYTES
        count = 0
        for count, (sequence, found) in enumerate(self._next(most), 1):  # noqa: B007
            payload = _bytes_in(found)
            why = ""
            if payload is None:
                why = "no record: the outbox was written by something else"
            elif len(payload) + len(self._topic) + PACKET_OVERHEAD_BYTES > largest:
                why = f"larger than {largest} bytes"
            if payload is None or why:
                self._quarantine(sequence, why)
                self._in_flight.skip(sequence)
                continue
            self._in_flight.sent(sequence, link.publish(self._topic, payload, qos=1))
            if self._watches_decisions:
                self._note_decision(sequence, payload)
        return count

    def settle(self, message_id: int, reason_code: int) -> bool:
        """Take an acknowledgement. Returns whether the record must be sent again."""
        sequence = self._in_flight.sequence_of(message_id)
        if sequence is None:  # of an epoch that is gone
            return False
        self._progress_s = time.monotonic()
        answer = answer_to(reason_code, self._tries.get(sequence, 1))
        if answer == "again":
            self.count("refused")
            self._tries[sequence] = self._tries.get(sequence, 1) + 1
            self._refusals += 1
            why = refusal_of(reason_code, self._topic)
            self.grievance = f"record {sequence} refused (0x{reason_code:02X}): {why}"
            if is_worth_a_line(self._refusals):
                log.warning("%s; it is tried again", self.grievance)
            return True
        if answer == "refused for good":
            self._quarantine(sequence, f"PUBACK 0x{reason_code:02X}")
        else:
            self.count("published")
        if reason_code == 0x10:
            self.count("no_subscribers")
        self.got_through, self._refusals = True, 0
        if self._tries:
            self._tries.pop(sequence, None)
        if self._failed and sequence in self._failed:
            inspection_id = self._failed.pop(sequence)
            if answer != "refused for good":  # whom would its picture tell anything?
                self._note_failed(inspection_id)
        self._suspicion.settled(sequence)
        self._in_flight.settle(message_id)
        return False

    def take_failed(self) -> list[str]:
        """Return the inspections that failed and that the broker has taken since the last call."""
        taken, self._failed_out = self._failed_out, deque()
        return list(taken)

    def has_stalled(self) -> bool:
        """Tell whether the broker is silent while records wait for its answer."""
        if not self._in_flight:
            self._progress_s = time.monotonic()
        self._stalled = time.monotonic() - self._progress_s > _STALLED_S
        if self._stalled:
            self.grievance = f"no acknowledgement for {_STALLED_S:g} s"
            log.warning("%s: connecting again", self.grievance)
        return self._stalled

    def connection_over(self, link: Link, *, blameless: bool) -> None:
        """Rewind to the cursor; see whether one record keeps making the broker hang up.

        `blameless`: something else was under way that explains the end.
        """
        oldest = None if blameless else self._in_flight.oldest
        culprit = self._suspicion.connection_ended(link.end_code, oldest)
        self._in_flight.rewind()
        self._heard_s = link.heard_s
        # Spared: that we left, and that a record was refused. Those say that the broker lives.
        if self._stalled or not (link.closed_by_us or link.end_code in PROTOCOL_ENDS):
            self._rewind_to(self._distrust.rewind(self.acknowledged, self._heard_s))
        self._ahead.clear()
        self._failed.clear()
        if culprit is not None:
            self._in_flight.skip(culprit)
            self._quarantine(culprit, f"the broker hangs up on it: {link.ended}")
        self.save_cursor(force=True)

    def cursor(self) -> Cursor:
        """Return how far the broker has everything, and the counters."""
        return Cursor(self.reader.epoch, self._in_flight.acknowledged, dict(self.counters))

    def save_cursor(self, link: Link | None = None, *, force: bool = False) -> None:
        """Write the cursor, a few times a second, as far as what came by `link` allows."""
        now_s = time.monotonic()
        if link is not None:
            self._heard_s = link.heard_s
        if now_s - self._saved_s < _CURSOR_EVERY_S and not force:
            return
        cursor = msgspec.structs.replace(
            self.cursor(), acknowledged=self._distrust.safe(self.acknowledged, self._heard_s)
        )
        if cursor == self._saved:
            return
        try:
            write_cursor(self._outbox, cursor)
        except OSError as error:
            # Not saved is not lost: after a crash more records would be sent twice.
            self.count("cursor_not_saved")
            log.warning("the cursor could not be saved: %s", error)
            self._saved_s = now_s + _CURSOR_RETRY_S
            return
        self._saved, self._saved_s = cursor, now_s

    def close(self) -> None:
        """Save the cursor and close the outbox."""
        self.save_cursor(force=True)
        self.reader.close()

    def _read_from(self, reader: OutboxReader) -> None:
        """Start at the cursor of the reader's epoch."""
        self.reader = reader
        cursor = read_cursor(self._outbox, reader.epoch, reader.last_sequence())
        self.counters = dict(cursor.counters)
        self._in_flight = InFlight(cursor.acknowledged)
        self._distrust = Distrust(self._resend_s, cursor.acknowledged)
        self._saved = cursor
        self._ahead: deque[tuple[int, bytes]] = deque()
        self._tries: dict[int, int] = {}
        self._failed: dict[int, str] = {}  # by sequence, the inspection id of what is in flight
        self.read_fault = ""  # why the outbox cannot be read now
        log.info("outbox %s, epoch %s, cursor %d", self._outbox, reader.epoch, cursor.acknowledged)

    def _rewind_to(self, sequence: int) -> None:
        """Send again what was acknowledged so lately that a killed broker may have lost it."""
        if sequence < self.acknowledged:
            self.count("sent_again", self.acknowledged - sequence)
            self._in_flight = InFlight(sequence)

    def _next(self, most: int) -> list[tuple[int, bytes]]:
        """Take up to `most` records from what was read ahead; fewer only where there are fewer."""
        if len(self._ahead) < most:
            self._read_ahead()
        return [self._ahead.popleft() for _ in range(min(most, len(self._ahead)))]

    def _read_ahead(self) -> None:
        """Read the next batch; a new file starts a new epoch."""
        if not self.reader.is_current():
            if self._ahead:  # the last that can be had of the old file
                return
            fresh = OutboxReader.open(self._outbox)
            if fresh is None:
                return
            self.reader.close()
            self._read_from(fresh)
        damaged = self.reader.damaged
        after = self._ahead[-1][0] if self._ahead else self._in_flight.last_sent
        try:
            self._ahead.extend(self.reader.records_after(after, _READ_AHEAD))
            fault = ""
        except sqlite3.Error as error:  # the inspector sets a corrupt file aside, not we
            fault = f"the outbox cannot be read: {error}"
        if fault != self.read_fault:
            log.warning("%s", fault or "the outbox can be read again")
            self.read_fault = fault
        if self.reader.damaged > damaged:
            self.count("damaged", self.reader.damaged - damaged)

    def _note_decision(self, sequence: int, payload: bytes) -> None:
        with contextlib.suppress(msgspec.DecodeError):
            decided = msgspec.json.decode(payload, type=_Decided)
            if decided.decision == "fail":
                self._failed[sequence] = decided.inspection_id

    def _note_failed(self, inspection_id: str) -> None:
        """Keep it until there is room for pictures; in a long backlog the newest stay."""
        if len(self._failed_out) >= MOST_BY_RULE:
            self._failed_out.popleft()
            self.count("pictures_dropped")
        self._failed_out.append(inspection_id)

    def _quarantine(self, sequence: int, why: str) -> None:
        self.count("quarantined")
        payload = None
        with contextlib.suppress(sqlite3.Error):
            for number, found in self.reader.records_after(sequence - 1, 1):
                payload = _bytes_in(found) if number == sequence else None
        put_aside(self._outbox, sequence, why, payload)


def _bytes_in(value: object) -> bytes | None:
    """Return what a row holds where it is a record's bytes: the file may not be our own doing."""
    return value if isinstance(value, bytes) else None
