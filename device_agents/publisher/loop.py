"""The publisher: from the outbox to the broker, at least once, in order.

It keeps a small window of records in flight and moves its cursor when the broker acknowledges. It
may die at any moment: the next one starts at the cursor, which is a fifth of a second old at most,
and sends what followed a second time. Consumers drop those by `inspection_id`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import time
from pathlib import Path
from threading import Event

from device_agents import notify
from device_agents.lock import hold
from device_agents.mqtt.credentials import address_of
from device_agents.mqtt.link import Link
from device_agents.mqtt.pace import BACKOFF_LAST_S, PATIENT, TokenBucket, backoff_s
from device_agents.mqtt.refusals import PATIENCE, RETAIN_NOT_SUPPORTED
from device_agents.mqtt.tls import context_from
from device_agents.outbox.cursor import cursor_path_of
from device_agents.outbox.kept import KeptReader
from device_agents.outbox.reader import OutboxReader
from device_agents.publisher.picture_desk import ReadKept
from device_agents.publisher.pictures_out import PicturesOut
from device_agents.publisher.records_out import RecordsOut
from device_agents.publisher.station_voice import StationVoice
from device_agents.publisher.way_status import WayStatus
from device_agents.station import StationFile
from edge.errors import InputError, MachineError

_IDLE_S = 0.05  # how often the outbox is looked at when nothing is under way
_LEAVE_WITHIN_S = 2.0
_READY_WITHIN_S = 10.0  # the outbox is the inspector's to make: systemd need not wait for it
_COMMAND_PACKET_BYTES = 8192  # a larger packet the broker must not send us

log = logging.getLogger("publisher")


def run_publisher(station: StationFile, stop: Event) -> dict[str, int]:
    """Publish until `stop` is set; return the publisher's counters.

    Raises InputError when the broker refuses us before it ever let us in or a file of ours is
    wrong, MachineError when another publisher of this station runs. A broker that is away is
    waited for.
    """
    outbox = Path(station.outbox.path)
    outbox.parent.mkdir(parents=True, exist_ok=True)
    lock = hold(cursor_path_of(outbox).with_name(outbox.name + ".publisher.lock"), "publisher")
    status = WayStatus(outbox)
    reason = "told to stop"
    try:
        _refuse_wrong_files(station)
        reader = _outbox_when_there(outbox, status, stop)
        if reader is None:
            return {}
        publisher = Publisher(station, reader, status, KeptReader(outbox).read)
        publisher.run(stop)
        return publisher.counters
    except BaseException as error:
        reason = str(error) or type(error).__name__
        raise
    finally:
        notify.stopping()
        status.now("stopped", reason)
        os.close(lock)


class Publisher:
    """One station's publisher: one connection at a time, and the wait between two."""

    def __init__(
        self, station: StationFile, reader: OutboxReader, status: WayStatus, read_kept: ReadKept
    ) -> None:
        self._station = station
        self._status = status
        self._records = RecordsOut(station, reader)
        self._pictures = PicturesOut(station, self._records, read_kept)
        self._voice = StationVoice(station, status)
        self._presence: set[int] = set()  # message ids under way
        self._patient = False  # a record was refused with a code that asks for patience
        limit = station.broker.max_messages_per_second
        self._bucket = None if limit is None else TokenBucket(limit, time.monotonic())

    @property
    def counters(self) -> dict[str, int]:
        """The publisher's own counters of this epoch."""
        return self._records.counters

    def run(self, stop: Event) -> None:
        """Connect, publish until the connection ends, and again, until `stop` is set."""
        failures, ever_let_in = 0, False
        try:
            while not stop.is_set():
                started_s, link = time.monotonic(), None
                self._records.begin()
                self._patient = False
                notify.ready()  # from here on it is the broker's turn
                try:
                    link = self._new_link()
                    link.open()
                    ever_let_in = True
                    self._publish_until_ended(link, stop)
                    self._connection_over(link)
                except (MachineError, InputError) as error:
                    if isinstance(error, InputError) and not ever_let_in:
                        raise
                    self._status.now("away", str(error))
                    log.warning("%s", error)
                finally:
                    if link is not None:
                        link.close()  # however it ended, its sockets go now
                failures = self._failures_after(link, failures, started_s)
                self._status.wait(backoff_s(failures, random.random()), stop)  # noqa: S311
                failures += 1
        finally:
            self._pictures.close()
            self._records.close()
        log.info("stopped: %s; cursor at %d", self.counters, self._records.acknowledged)

    def _failures_after(self, link: Link | None, failures: int, started_s: float) -> int:
        """Return how many failures in a row the next wait is for."""
        # Being let in is not enough: a broker that refuses every record must not be hammered.
        if self._records.got_through or time.monotonic() - started_s > BACKOFF_LAST_S:
            failures = 0
        if self._patient or (link is not None and link.end_code in PATIENCE):
            failures = max(failures, PATIENT)
        if link is not None and link.end_code == RETAIN_NOT_SUPPORTED and self._voice.retains:
            log.warning("the broker retains nothing: presence is said without it")
            self._voice.retains = False
            failures = 0
        return failures

    def _new_link(self) -> Link:
        client_id = f"orin-inspect-publisher-{str(self._station.station).replace('/', '-')}"
        return Link(
            address_of(self._station.broker),
            client_id,
            will=self._voice.will(),
            receive_bytes=_COMMAND_PACKET_BYTES,
        )

    def _publish_until_ended(self, link: Link, stop: Event) -> None:
        """The loop: answers in, records out, cursor on disk."""
        log.info("connected to %s", link.broker)
        self._status.now("connected")
        self._presence = {self._voice.say_presence(link, "online")}
        self._pictures.begin(link)
        while link.ended is None and not stop.is_set():
            refused = self._take_answers(link)
            self._records.save_cursor(link)
            if refused or self._records.has_stalled():
                link.close(with_will=True)  # away until the next try: the plant is told so
                return
            sent = self._send(link)
            self._say(link)
            link.step(0.0 if sent else _IDLE_S)
        if link.ended is None:
            self._leave(link)
            link.close()

    def _take_answers(self, link: Link) -> bool:
        """Settle what was acknowledged. Returns whether something must be sent again."""
        again = False
        for message_id, reason_code in link.take_acknowledged():
            if message_id in self._presence:
                self._presence.discard(message_id)
                self._voice.note_answer(reason_code)
            elif not self._pictures.settle(message_id, reason_code):
                refused = self._records.settle(message_id, reason_code)
                self._patient = self._patient or (refused and reason_code in PATIENCE)
                again = again or refused
        self._pictures.take_commands(link)
        return again

    def _send(self, link: Link) -> bool:
        """Fill the window with records, and only then with a picture. Returns whether any left."""
        others = len(self._presence) + (self._pictures.message_id is not None)
        room = self._records.room(link, others)
        if self._bucket is not None:
            room = min(room, self._bucket.room(time.monotonic()))
        if room <= 0:
            return False
        sent = self._records.send(link, room)
        # Room is left: the outbox is empty, and inspections wait for nothing.
        picture = sent < room and self._pictures.send(link)
        if self._bucket is not None:
            self._bucket.take(sent + picture)
        return sent > 0 or picture

    def _say(self, link: Link) -> None:
        """Tell the plant and this machine how we are."""
        self._voice.say_health(link, self._records)
        said = self._voice.presence_with_time(link)
        if said is not None:
            self._presence.add(said)
        self._status.acknowledged = self._records.acknowledged
        if self._records.read_fault != self._status.health.reason:
            self._status.now("connected", self._records.read_fault)
        self._status.beat()

    def _connection_over(self, link: Link) -> None:
        blameless = self._pictures.connection_over(link)
        self._records.connection_over(link, blameless=blameless)
        self._status.acknowledged = self._records.acknowledged
        self._status.now("away", self._records.grievance or link.ended or "")
        if not link.closed_by_us:
            self._records.count("connections_lost")
            log.warning("connection to %s over: %s", link.broker, link.ended)

    def _leave(self, link: Link) -> None:
        """Collect what is under way, then say offline; both within a bound."""
        deadline = time.monotonic() + _LEAVE_WITHIN_S
        while self._records.under_way and link.ended is None and time.monotonic() < deadline:
            link.step(_IDLE_S)
            self._take_answers(link)
        self._voice.say_health(link, self._records, now=True)
        said = self._voice.say_presence(link, "offline")
        while link.ended is None and time.monotonic() < deadline + _LEAVE_WITHIN_S:
            link.step(_IDLE_S)
            if any(message_id == said for message_id, _ in link.take_acknowledged()):
                return


def _refuse_wrong_files(station: StationFile) -> None:
    """Raise InputError for a secret or certificate that is wrong now, not with the first record."""
    tls = address_of(station.broker).tls
    if tls is not None:
        with contextlib.suppress(MachineError):  # not valid yet: the time may come
            context_from(tls)


def _outbox_when_there(outbox: Path, status: WayStatus, stop: Event) -> OutboxReader | None:
    """Wait for the inspector's outbox; None when stopped meanwhile."""
    second = 0
    while not stop.is_set():
        reader = OutboxReader.open(outbox)
        if reader is not None:
            return reader
        if second == 0:
            status.now("away", f"waiting for the inspector to make {outbox}")
        if second % 30 == 0:
            log.info("waiting for the inspector to make %s", outbox)
        if second == _READY_WITHIN_S:
            notify.ready()
        second += 1
        status.wait(1.0, stop)
    return None
