"""What the station says of itself over MQTT: presence, retained, and Health every few seconds."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Literal

from device_agents.clock import now_iso
from device_agents.health import health_of
from device_agents.mqtt.link import PACKET_OVERHEAD_BYTES, Link, Will
from device_agents.mqtt.refusals import refusal_of
from device_agents.publisher.records_out import RecordsOut
from device_agents.publisher.way_status import WayStatus
from device_agents.station import StationFile
from device_agents.status import read_status
from edge.messages import Health, InspectorHealth, Presence, encode
from edge.topics import topic_of

_FRESH_PERIODS = 3.0  # a Health of the monitor that missed so many turns is old
_INSPECTOR_FRESH_S = 5.0  # it writes once a second

log = logging.getLogger("publisher")


class StationVoice:
    """Says presence and Health. Both stand outside the rate limit, and correct themselves."""

    def __init__(self, station: StationFile, status: WayStatus) -> None:
        self._station = station
        self._outbox = Path(station.outbox.path)
        self._status = status
        self._presence_topic = topic_of(station.station, "presence")
        self._health_topic = topic_of(station.station, "health")
        self._due_s = 0.0
        self._timeless = False  # said online without a time: the clock was not set
        self.retains = True  # False once the broker refused to keep messages

    def will(self) -> Will:
        """What the broker says when we vanish. It cannot know when that will be."""
        offline = encode(Presence(station=self._station.station, state="offline"))
        return Will(self._presence_topic, offline, self.retains)

    def say_presence(self, link: Link, state: Literal["online", "offline"]) -> int:
        """Publish presence and return its message id."""
        since = now_iso()
        self._timeless = since is None
        presence = Presence(station=self._station.station, state=state, since=since)
        retain = self.retains and link.retains
        return link.publish(self._presence_topic, encode(presence), qos=1, retain=retain)

    def note_answer(self, reason_code: int) -> None:
        """Take what the broker says to presence. A refusal stops no record: it is logged."""
        if reason_code >= 0x80:
            why = refusal_of(reason_code, self._presence_topic)
            log.warning("presence refused (0x%02X): %s", reason_code, why)

    def presence_with_time(self, link: Link) -> int | None:
        """Say `online` once more when the clock was set since; the message id, if said."""
        if self._timeless and now_iso() is not None:
            return self.say_presence(link, "online")
        return None

    def say_health(self, link: Link, records: RecordsOut, *, now: bool = False) -> None:
        """Publish Health when it is due, at QoS 0, for the next one corrects it."""
        moment_s = time.monotonic()
        if moment_s < self._due_s and not now:
            return
        self._due_s = moment_s + self._station.broker.health_every_s
        payload = encode(self._health(records, own=now))
        size = len(payload) + len(self._health_topic) + PACKET_OVERHEAD_BYTES
        if link.largest_packet_bytes is not None and size > link.largest_packet_bytes:
            records.count("health_too_large")  # sent, it would cost the connection
            return
        link.publish(self._health_topic, payload, qos=0)

    def _health(self, records: RecordsOut, *, own: bool) -> Health:
        """Return the monitor's Health where it is fresh, else one put together here.

        `own`: put it together in any case, with what happened up to now.
        """
        fresh_s = _FRESH_PERIODS * self._station.monitor.every_s
        found = read_status(self._outbox, Health, fresh_s=fresh_s)
        if found is not None and found.station_epoch == records.reader.epoch and not own:
            return found
        inspector = read_status(self._outbox, InspectorHealth, fresh_s=_INSPECTOR_FRESH_S)
        return health_of(
            self._station,
            records.reader,
            inspector,
            self._status.health,
            found.machine if found is not None else None,
            cursor=records.cursor(),
        )
