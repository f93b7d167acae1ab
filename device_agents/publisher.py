"""The publisher: from the outbox to the broker, at least once, in order.

It reads the outbox, keeps a small window of records in flight, and moves its cursor when the
broker acknowledges. It may die at any moment: the next one starts at the cursor and sends at most
a window of records twice. Consumers drop those by `inspection_id`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sqlite3
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from threading import Event
from typing import Literal

import msgspec

from device_agents.cursor import Cursor, cursor_path_of, read_cursor, write_cursor
from device_agents.in_flight import InFlight, Suspicion, answer_to
from device_agents.lock import hold
from device_agents.mqtt_link import BrokerAddress, Link, Will
from device_agents.outbox import OutboxReader
from device_agents.station import StationFile, password_from
from edge.errors import InputError, MachineError
from edge.messages import Health, Presence, encode
from edge.topics import topic_of

_IDLE_S = 0.05  # how often the outbox is looked at when nothing is under way
_CURSOR_EVERY_S = 0.2
_CURSOR_RETRY_S = 5.0
_STALLED_S = 30.0  # connected, records in flight, and no acknowledgement: start over
_LEAVE_WITHIN_S = 2.0
_PACKET_OVERHEAD_BYTES = 64  # MQTT's own bytes around topic and payload, generously
_QUARANTINE_LIMIT_BYTES = 16 << 20
_BACKOFF_FIRST_S, _BACKOFF_LAST_S = 0.5, 30.0

log = logging.getLogger("publisher")


def backoff_s(failures: int, draw: float) -> float:
    """Seconds to wait after so many failures in a row; `draw` in 0..1 spreads the stations.

    Doubles from half a second to half a minute, then half of it is left to chance: five hundred
    stations that lost one broker must not all come back in the same instant.
    """
    longest = min(_BACKOFF_LAST_S, _BACKOFF_FIRST_S * 2.0 ** min(failures, 16))
    return longest * (0.5 + 0.5 * draw)


def run_publisher(station: StationFile, stop: Event) -> dict[str, int]:
    """Publish until `stop` is set; return the publisher's counters.

    Raises InputError when the broker refuses us before it ever let us in, MachineError when
    another publisher of this station runs. A broker that is away is waited for.
    """
    outbox = Path(station.outbox.path)
    outbox.parent.mkdir(parents=True, exist_ok=True)
    lock = hold(cursor_path_of(outbox).with_name(outbox.name + ".publisher.lock"), "publisher")
    try:
        reader = _outbox_when_there(outbox, stop)
        if reader is None:
            return {}
        publisher = Publisher(station, reader)
        publisher.run(stop)
        return publisher.counters
    finally:
        os.close(lock)


class Publisher:
    """One station's publisher. Owns the cursor file and one connection at a time."""

    def __init__(self, station: StationFile, reader: OutboxReader) -> None:
        self._station = station
        self._outbox = Path(station.outbox.path)
        self._broker = BrokerAddress(
            station.broker.host,
            station.broker.port,
            station.broker.username,
            password_from(station.broker.password_file),
            station.broker.keepalive_s,
        )
        self._topic = topic_of(station.station, "inspection")
        self._suspicion = Suspicion()
        self._health_due_s = 0.0
        self._saved_s = 0.0
        self._progress_s = 0.0
        self._got_through = False
        self._read_from(reader)

    def run(self, stop: Event) -> None:
        """Connect, publish until the connection ends, and again, until `stop` is set."""
        failures = 0
        ever_let_in = False
        while not stop.is_set():
            link, started_s = self._new_link(), time.monotonic()
            self._got_through = False
            try:
                link.open()
                ever_let_in = True
                self._publish_until_ended(link, stop)
                link.close()
                self._connection_over(link)
            except (MachineError, InputError) as error:
                link.close()
                if isinstance(error, InputError) and not ever_let_in:
                    raise
                log.warning("%s", error)
            # Being let in is not enough: a broker that refuses every record must not be hammered.
            if self._got_through or time.monotonic() - started_s > _BACKOFF_LAST_S:
                failures = 0
            stop.wait(backoff_s(failures, random.random()))  # noqa: S311
            failures += 1
        self._save_cursor(force=True)
        log.info("stopped: %s; cursor at %d", self.counters, self._in_flight.acknowledged)

    def _read_from(self, reader: OutboxReader) -> None:
        """Start at the cursor of the reader's epoch."""
        self._reader = reader
        cursor = read_cursor(self._outbox, reader.epoch)
        self.counters = dict(cursor.counters)
        self._in_flight = InFlight(cursor.acknowledged)
        self._saved = cursor
        self._tries: dict[int, int] = {}
        self._read_fault = ""
        log.info("outbox %s, epoch %s, cursor %d", self._outbox, reader.epoch, cursor.acknowledged)

    def _new_link(self) -> Link:
        station = self._station.station
        offline = encode(Presence(station=station, state="offline"))
        client_id = f"orin-inspect-publisher-{str(station).replace('/', '-')}"
        return Link(self._broker, client_id, will=Will(topic_of(station, "presence"), offline))

    def _publish_until_ended(self, link: Link, stop: Event) -> None:
        """The loop: answers in, records out, cursor on disk."""
        log.info("connected to %s", self._broker)
        self._say_presence(link, "online")
        self._progress_s = time.monotonic()
        while link.ended is None and not stop.is_set():
            refused = self._take_answers(link)
            self._save_cursor()
            if refused or self._has_stalled():
                return
            sent = self._send_records(link)
            self._send_health(link)
            link.step(0.0 if sent else _IDLE_S)
        if link.ended is None:
            self._leave(link)

    def _take_answers(self, link: Link) -> bool:
        """Settle what was acknowledged. Returns whether something must be sent again."""
        again = False
        for message_id, reason_code in link.take_acknowledged():
            sequence = self._in_flight.sequence_of(message_id)
            if sequence is None:  # presence, or a record of an epoch that is gone
                continue
            self._progress_s = time.monotonic()
            answer = answer_to(reason_code, self._tries.get(sequence, 1))
            if answer == "again":
                self._count("refused")
                self._tries[sequence] = self._tries.get(sequence, 1) + 1
                log.warning("record %d refused (0x%02X): tried again", sequence, reason_code)
                again = True
                continue
            if answer == "refused for good":
                self._quarantine(sequence, f"PUBACK 0x{reason_code:02X}")
            else:
                self._count("published")
            if reason_code == 0x10:
                self._count("no_subscribers")
            self._got_through = True
            self._tries.pop(sequence, None)
            self._suspicion.settled(sequence)
            self._in_flight.settle(message_id)
        return again

    def _send_records(self, link: Link) -> bool:
        """Fill the window from the outbox. Returns whether anything left."""
        window = 1 if self._suspicion.narrow else self._station.broker.in_flight
        room = min(window, link.send_at_once) - len(self._in_flight)
        if room <= 0:
            return False
        records = self._records(room)
        for sequence, payload in records:
            size = len(payload) + len(self._topic) + _PACKET_OVERHEAD_BYTES
            if link.largest_packet_bytes is not None and size > link.largest_packet_bytes:
                self._in_flight.skip(sequence)
                self._quarantine(sequence, f"larger than {link.largest_packet_bytes} bytes")
                continue
            self._in_flight.sent(sequence, link.publish(self._topic, payload, qos=1))
        return bool(records)

    def _records(self, limit: int) -> list[tuple[int, bytes]]:
        """Read on from what was last sent; a new outbox file starts a new epoch."""
        if not self._reader.is_current():
            fresh = OutboxReader.open(self._outbox)
            if fresh is None:
                return []
            self._reader.close()
            self._read_from(fresh)
        try:
            return self._reader.records_after(self._in_flight.last_sent, limit)
        except sqlite3.Error as error:  # the inspector sets a corrupt file aside, not we
            if str(error) != self._read_fault:
                log.warning("the outbox cannot be read: %s", error)
            self._read_fault = str(error)
            return []

    def _connection_over(self, link: Link) -> None:
        """Rewind to the cursor; see whether one record keeps making the broker hang up."""
        culprit = self._suspicion.connection_ended(link.end_code, self._in_flight.oldest)
        self._in_flight.rewind()
        if culprit is not None:
            self._in_flight.skip(culprit)
            self._quarantine(culprit, f"the broker hangs up on it: {link.ended}")
        self._save_cursor(force=True)
        if not link.closed_by_us:
            self._count("connections_lost")
            log.warning("connection to %s over: %s", self._broker, link.ended)

    def _has_stalled(self) -> bool:
        if not self._in_flight:
            self._progress_s = time.monotonic()
        stalled = time.monotonic() - self._progress_s > _STALLED_S
        if stalled:
            log.warning("no acknowledgement for %g s: connecting again", _STALLED_S)
        return stalled

    def _leave(self, link: Link) -> None:
        """Collect what is under way, then say offline; both within a bound."""
        deadline = time.monotonic() + _LEAVE_WITHIN_S
        while self._in_flight and link.ended is None and time.monotonic() < deadline:
            link.step(_IDLE_S)
            self._take_answers(link)
        self._send_health(link, now=True)
        said = self._say_presence(link, "offline")
        while link.ended is None and time.monotonic() < deadline + _LEAVE_WITHIN_S:
            link.step(_IDLE_S)
            if any(message_id == said for message_id, _ in link.take_acknowledged()):
                return

    def _say_presence(self, link: Link, state: Literal["online", "offline"]) -> int:
        station = self._station.station
        since = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        presence = encode(Presence(station=station, state=state, since=since))
        return link.publish(topic_of(station, "presence"), presence, qos=1, retain=True)

    def _send_health(self, link: Link, *, now: bool = False) -> None:
        """Tell depth and losses every few seconds; QoS 0, for the next one corrects it."""
        moment_s = time.monotonic()
        if moment_s < self._health_due_s and not now:
            return
        self._health_due_s = moment_s + self._station.broker.health_every_s
        with contextlib.suppress(sqlite3.Error):
            health = Health(
                station=self._station.station,
                station_epoch=self._reader.epoch,
                sent_at=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
                outbox_depth=self._reader.depth_after(self._in_flight.acknowledged),
                counters={**self._reader.counters(), **self.counters},
            )
            link.publish(topic_of(self._station.station, "health"), encode(health), qos=0)

    def _save_cursor(self, *, force: bool = False) -> None:
        now_s = time.monotonic()
        if now_s - self._saved_s < _CURSOR_EVERY_S and not force:
            return
        cursor = Cursor(self._reader.epoch, self._in_flight.acknowledged, dict(self.counters))
        if cursor == self._saved:
            return
        try:
            write_cursor(self._outbox, cursor)
        except OSError as error:
            # Not saved is not lost: after a crash more records would be sent twice.
            self._count("cursor_not_saved")
            log.warning("the cursor could not be saved: %s", error)
            self._saved_s = now_s + _CURSOR_RETRY_S
            return
        self._saved, self._saved_s = cursor, now_s

    def _quarantine(self, sequence: int, why: str) -> None:
        """Put a record that the broker will never take beside the outbox, and go on."""
        self._count("quarantined")
        path = self._outbox.with_name(self._outbox.name + ".quarantine.jsonl")
        log.error("record %d quarantined in %s: %s", sequence, path, why)
        with contextlib.suppress(OSError, sqlite3.Error):
            if path.exists() and path.stat().st_size > _QUARANTINE_LIMIT_BYTES:
                return  # still counted, and the record stays a gap that consumers see
            for number, payload in self._reader.records_after(sequence - 1, 1):
                if number == sequence:
                    line = {"why": why, "record": msgspec.Raw(payload)}
                    with path.open("ab") as file:
                        file.write(msgspec.json.encode(line) + b"\n")

    def _count(self, name: str) -> None:
        self.counters[name] = self.counters.get(name, 0) + 1


def _outbox_when_there(outbox: Path, stop: Event) -> OutboxReader | None:
    """Wait for the inspector's outbox; None when stopped meanwhile."""
    for waited in _seconds_until(stop):
        reader = OutboxReader.open(outbox)
        if reader is not None:
            return reader
        if waited % 30 == 0:
            log.info("waiting for the inspector to make %s", outbox)
    return None


def _seconds_until(stop: Event) -> Iterator[int]:
    second = 0
    while not stop.is_set():
        yield second
        second += 1
        stop.wait(1.0)
