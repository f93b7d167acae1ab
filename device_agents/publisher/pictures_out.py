"""Commands in, pictures out: one picture under way at a time, in the room inspections leave."""

from __future__ import annotations

import logging

from device_agents.counters import is_worth_a_line
from device_agents.mqtt.link import PACKET_OVERHEAD_BYTES, Link
from device_agents.mqtt.refusals import PROTOCOL_ENDS, refusal_of
from device_agents.publisher.commands import Refused, command_from
from device_agents.publisher.picture_desk import PictureDesk, ReadKept
from device_agents.publisher.records_out import RecordsOut
from device_agents.station import StationFile
from edge.errors import InputError
from edge.topics import topic_of

_LEAST_BYTES = 1024  # a message without a picture in it fits; the cap never goes below

log = logging.getLogger("publisher")


class PicturesOut:
    """The publisher's second, less urgent business."""

    def __init__(self, station: StationFile, records: RecordsOut, read: ReadKept) -> None:
        self._records = records
        self._desk = PictureDesk(station.station, read, records.count)
        self._topic = topic_of(station.station, "picture")
        self._command_topic = topic_of(station.station, "command")
        self._cap_bytes = station.pictures.max_message_bytes
        self._agreed = False
        self._sent_bytes = 0
        self._refusals = 0
        self.message_id: int | None = None  # of the picture under way

    def begin(self, link: Link) -> None:
        """Ask for commands on a new connection."""
        self._agreed = False
        link.subscribe(self._command_topic)

    def take_commands(self, link: Link) -> None:
        """Take in what came on the command topic: answered later, or refused and counted."""
        for message in link.take_received():
            link.acknowledge(message)
            command = command_from(message.payload, retained=message.retained)
            refused = command if isinstance(command, Refused) else self._desk.ask(command)
            if refused is not None:
                self._refuse(refused)
        if not self._agreed:
            try:
                self._agreed = link.is_subscribed()
            except InputError as error:
                self._agreed = True
                log.warning("no command will come: %s", error)

    def send(self, link: Link) -> bool:
        """Send one picture where none is under way. Returns whether one left."""
        for inspection_id in self._records.take_failed():
            self._desk.send_unasked(inspection_id)
        if self.message_id is not None:
            return False
        message = self._desk.next_message(self._most_bytes(link))
        if message is None:
            return False
        if len(message) > self._most_bytes(link):  # made for another connection
            self._records.count("pictures_refused")
            return False
        self._sent_bytes = len(message)
        self.message_id = link.publish(self._topic, message, qos=1)
        return True

    def settle(self, message_id: int, reason_code: int) -> bool:
        """Take an acknowledgement; False where it is not a picture's."""
        if message_id != self.message_id:
            return False
        self.message_id = None
        if reason_code < 0x80:
            self._records.count("pictures_published")
            return True
        self._records.count("pictures_refused")
        if is_worth_a_line(self._records.counters["pictures_refused"]):
            why = refusal_of(reason_code, self._topic)
            log.warning("picture refused (0x%02X): %s", reason_code, why)
        return True

    def connection_over(self, link: Link) -> bool:
        """Forget the picture under way. Returns whether it explains the broker's hanging up."""
        under_way, self.message_id = self.message_id is not None, None
        if not under_way:
            return False
        self._records.count("pictures_refused")
        blamed = link.end_code in PROTOCOL_ENDS and self._sent_bytes > _LEAST_BYTES
        if blamed:
            self._cap_bytes = max(_LEAST_BYTES, self._sent_bytes // 2)
            log.warning("pictures from now on within %d bytes: %s", self._cap_bytes, link.ended)
        return blamed

    def close(self) -> None:
        """Stop making pictures."""
        self._desk.close()

    def _most_bytes(self, link: Link) -> int:
        if link.largest_packet_bytes is None:
            return self._cap_bytes
        most = link.largest_packet_bytes - len(self._topic) - PACKET_OVERHEAD_BYTES
        return min(self._cap_bytes, most)

    def _refuse(self, refused: Refused) -> None:
        self._records.count("commands_refused")
        self._refusals += 1
        # Anybody who may publish there could else fill the log.
        if is_worth_a_line(self._refusals):
            log.warning("command refused (%d so far): %s", self._refusals, refused.why)
