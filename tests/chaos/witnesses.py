"""The witnesses: who reads the outbox, who listens on the link, who receives at the other end."""

from __future__ import annotations

import contextlib
import hashlib
import json
import select
import socket
import sqlite3
import threading
import time
from pathlib import Path

from device_agents.outbox.reader import OutboxReader
from tests.chaos import wire
from tests.chaos.judge import Evidence, Key
from tests.proxy import Tap

_LOOK_EVERY_S = 0.02  # a record lies in the outbox for some 0.2 s after its acknowledgement
_PING_EVERY_S = 15.0
FILTER = "orin-inspect/v1/+/+/+/+/inspection"


def digest_of(payload: bytes) -> str:
    """Return what tells one content from another."""
    return hashlib.sha256(payload).hexdigest()[:16]


def key_of(payload: bytes) -> tuple[Key, str]:
    """Read (epoch, sequence) and the id from an inspection, as a stranger to our code would."""
    record = json.loads(payload)
    return (record["station_epoch"], record["sequence"]), record["inspection_id"]


class OutboxWitness:
    """Reads the outbox as a second process may, and remembers every record ever seen there."""

    def __init__(self, path: Path, evidence: Evidence) -> None:
        self._path = path
        self.evidence = evidence
        self._reader: OutboxReader | None = None
        self._last = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def seen(self) -> int:
        """How many records were seen so far."""
        return len(self.evidence.done)

    def close(self) -> None:
        """Look one last time and write down the counters."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            is_last = self._stop.wait(_LOOK_EVERY_S)
            # A full disk or a file being made: look again. What could not be read in time is
            # missing from the evidence, never from the station.
            with contextlib.suppress(sqlite3.Error, OSError):
                self._look()
            if is_last:
                break
        self._put_away()

    def _look(self) -> None:
        if self._reader is not None and not self._reader.is_current():
            self._put_away()
        if self._reader is None:
            self._reader, self._last = OutboxReader.open(self._path), 0
            if self._reader is None:
                return
        for sequence, payload in self._reader.records_after(self._last, 10_000):
            self.evidence.done[self._reader.epoch, sequence] = digest_of(bytes(payload))
            self._last = sequence

    def _put_away(self) -> None:
        """Close the file, its counters written down."""
        if self._reader is not None:
            with contextlib.suppress(sqlite3.Error):
                self.evidence.counters[self._reader.epoch] = self._reader.counters()
            self._reader.close()
            self._reader = None


class Subscriber:
    """Receives at the other end, in a session that the broker keeps. Reads to the last byte.

    paho would drop what it has not read yet when an acknowledgement cannot be written any more;
    here a broken connection is read to its end, so that what the broker handed to the network
    before it was killed counts as delivered.
    """

    def __init__(self, port: int, evidence: Evidence) -> None:
        self._address = ("127.0.0.1", port)
        self.evidence = evidence
        self._stop = threading.Event()
        self.connected = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def count(self) -> int:
        """How many messages came so far, duplicates included."""
        return len(self.evidence.received)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(OSError), socket.create_connection(self._address, 1.0) as link:
                link.sendall(wire.connect("chaos-judge", 3600) + wire.subscribe(FILTER))
                self._receive_on(link)
            self.connected.clear()
            self._stop.wait(0.02)

    def _receive_on(self, link: socket.socket) -> None:
        packets, may_write, spoke = wire.Packets(), True, time.monotonic()
        while not self._stop.is_set():
            readable = select.select([link], [], [], 0.1)[0]
            answers = b""
            if readable:
                chunk = link.recv(1 << 16)
                if not chunk:
                    return
                for kind, flags, body in packets.feed(chunk):
                    answers += self._taken(kind, flags, body)
            elif time.monotonic() - spoke > _PING_EVERY_S:
                answers = wire.PING
            if answers and may_write:
                spoke = time.monotonic()
                try:
                    link.sendall(answers)
                except OSError:
                    may_write = False  # the broker is gone; what it said before is still to read

    def _taken(self, kind: int, flags: int, body: bytes) -> bytes:
        """Note one packet; return what is to be answered."""
        if kind == wire.SUBACK:
            self.connected.set()
        if kind != wire.PUBLISH:
            return b""
        _, packet_id, payload = wire.publication(flags, body)
        key, inspection_id = key_of(payload)
        self.evidence.received.append((key, inspection_id, digest_of(payload)))
        return wire.puback(packet_id) if packet_id else b""


def acknowledgements_into(evidence: Evidence) -> Tap:
    """Return a tap for one connection that notes which records the broker acknowledged."""
    streams = {"to_broker": wire.Packets(), "to_station": wire.Packets()}
    under_way: dict[int, Key] = {}

    def tap(direction: str, chunk: bytes) -> None:
        for kind, flags, body in streams[direction].feed(chunk):
            if direction == "to_broker" and kind == wire.PUBLISH:
                topic, packet_id, payload = wire.publication(flags, body)
                if packet_id and topic.endswith("/inspection"):
                    under_way[packet_id] = key_of(payload)[0]
            elif direction == "to_station" and kind == wire.PUBACK:
                packet_id, reason_code = wire.acknowledgement(body)
                key = under_way.pop(packet_id, None)
                if key is not None and reason_code < 0x80:
                    evidence.acknowledged.add(key)
                    if reason_code == 0x10:
                        evidence.nobody_listened.add(key)

    return tap
