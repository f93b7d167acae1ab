"""One MQTT 5 connection, from CONNECT to its end: the only module that knows paho.

A `Link` is used once. paho keeps unsent messages in memory and resends them by its own rules;
with a new client for every connection nothing of that survives, and the outbox's cursor alone
decides what is sent again. Nothing runs in another thread: `step` turns the network loop.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field
from typing import Any

from paho.mqtt.client import Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge.errors import EdgeError, InputError, MachineError

OPEN_WITHIN_S = 5.0
_RECEIVE_MAXIMUM = 100  # messages that the broker may have under way to us
_REFUSED = (0x85, 0x86, 0x87, 0x8A, 0x8C)  # client id, user or password, not authorised, banned
_LOST = 0x80


@dataclass(frozen=True)
class BrokerAddress:
    """Where the broker is and who we are to it. `repr` never shows the password."""

    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    keepalive_s: int = 20

    def __str__(self) -> str:
        return f"mqtt://{self.host}:{self.port}"


@dataclass(frozen=True)
class Will:
    """What the broker says for us, retained, when we vanish."""

    topic: str
    payload: bytes


@dataclass(frozen=True)
class Received:
    """One message from the broker. `acknowledge` it when it is dealt with."""

    topic: str  # "" where it was not UTF-8
    payload: bytes
    qos: int
    message_id: int
    retained: bool


class Link:
    """One connection. Use it as a context manager: leaving it closes the socket."""

    def __init__(
        self,
        broker: BrokerAddress,
        client_id: str,
        *,
        will: Will | None = None,
        session_expiry_s: int = 0,
    ) -> None:
        self.broker = broker
        self.session_present = False
        self.send_at_once = 65535  # the broker's Receive Maximum
        self.largest_packet_bytes: int | None = None  # the broker's Maximum Packet Size
        self.ended: str | None = None  # why the connection is over, in words
        self.end_code = 0
        self.closed_by_us = False
        self._connack: ReasonCode | None = None
        self._acknowledged: list[tuple[int, int]] = []
        self._received: list[Received] = []
        self._subscribed: list[ReasonCode] | None = None
        self._session_expiry_s = session_expiry_s
        self._client = self._new_client(client_id, will)

    def open(self) -> None:
        """Connect. InputError: the broker refuses us; MachineError: it is not there."""
        try:
            self._client.connect(
                self.broker.host,
                self.broker.port,
                self.broker.keepalive_s,
                clean_start=self._session_expiry_s == 0,
                properties=self._connect_properties(),
            )
        except (OSError, ValueError) as error:  # ValueError: a host name nobody could have
            raise self._absent(str(error)) from None
        raw = self._client.socket()
        assert isinstance(raw, socket.socket)
        # Small messages in quick succession: Nagle's algorithm would hold them back for 40 ms.
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        deadline = time.monotonic() + OPEN_WITHIN_S
        while self._connack is None and self.ended is None and time.monotonic() < deadline:
            self.step(0.1)
        if self._connack is None or self._connack.is_failure:
            raise self._refusal()

    def step(self, timeout_s: float) -> None:
        """Turn the network loop once, waiting at most `timeout_s` for something to happen."""
        if self.ended is not None:
            return
        status = self._client.loop(timeout_s)
        if status != MQTTErrorCode.MQTT_ERR_SUCCESS and self.ended is None:
            self.ended = str(status.name)
            self.end_code = _LOST

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> int:
        """Hand one message to the network and return its message id."""
        return self._client.publish(topic, payload, qos=qos, retain=retain).mid

    def take_acknowledged(self) -> list[tuple[int, int]]:
        """Return (message id, reason code) of each PUBACK since the last call."""
        taken, self._acknowledged = self._acknowledged, []
        return taken

    def subscribe(self, topic_filter: str) -> None:
        """Ask for messages at QoS 1. A queue kept for us may come before the answer."""
        self._client.subscribe(topic_filter, qos=1)

    def is_subscribed(self) -> bool:
        """Tell whether the broker has agreed. Raises InputError when it refused."""
        if self._subscribed is None:
            return False
        if any(code.is_failure for code in self._subscribed):
            raise self._denied(f"SUBSCRIBE answered '{self._subscribed[0]}'")
        return True

    def take_received(self) -> list[Received]:
        """Return the messages that arrived since the last call, in order."""
        taken, self._received = self._received, []
        return taken

    def acknowledge(self, message: Received) -> None:
        """Tell the broker that it may forget the message."""
        if message.qos:
            self._client.ack(message.message_id, message.qos)

    def close(self) -> None:
        """Disconnect cleanly: the broker then says no will for us."""
        if self.ended is not None:
            return
        self.closed_by_us = True
        self._client.disconnect()
        deadline = time.monotonic() + 0.5
        while self.ended is None and time.monotonic() < deadline:
            self.step(0.05)
        self.ended = "closed"
        self.end_code = 0

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _new_client(self, client_id: str, will: Will | None) -> Client:
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=MQTTv5,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = OPEN_WITHIN_S
        client.max_inflight_messages_set(0)  # the window is ours, see `InFlight`
        if self.broker.username is not None:
            client.username_pw_set(self.broker.username, self.broker.password)
        if will is not None:
            client.will_set(will.topic, will.payload, qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        return client

    def _connect_properties(self) -> Any:
        properties: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.ReceiveMaximum = _RECEIVE_MAXIMUM
        properties.SessionExpiryInterval = self._session_expiry_s
        return properties

    def _on_connect(self, _: Any, __: Any, flags: Any, code: ReasonCode, properties: Any) -> None:
        self._connack = code
        self.session_present = flags.session_present
        self.send_at_once = getattr(properties, "ReceiveMaximum", 65535)
        self.largest_packet_bytes = getattr(properties, "MaximumPacketSize", None)

    def _on_disconnect(self, _: Any, __: Any, flags: Any, code: ReasonCode, ___: Any) -> None:
        self.end_code = int(code.value)
        # paho says "Unspecified error" of its own where no DISCONNECT came.
        cut = self.end_code == _LOST and not flags.is_disconnect_packet_from_server
        self.ended = "the connection was cut" if cut else str(code)

    def _on_publish(self, _: Any, __: Any, message_id: int, code: ReasonCode, ___: Any) -> None:
        self._acknowledged.append((message_id, int(code.value)))

    def _on_subscribe(self, _: Any, __: Any, ___: int, codes: list[ReasonCode], ____: Any) -> None:
        self._subscribed = codes

    def _on_message(self, _: Any, __: Any, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""
        self._received.append(
            Received(topic, bytes(message.payload), message.qos, message.mid, message.retain)
        )

    def _refusal(self) -> EdgeError:
        if self._connack is None:
            return self._absent(self.ended or "no answer to CONNECT")
        if self._connack.value in _REFUSED:
            return self._denied(f"CONNECT answered '{self._connack}'")
        return self._absent(f"CONNECT answered '{self._connack}'")

    def _denied(self, found: str) -> InputError:
        who = f"user '{self.broker.username}'" if self.broker.username else "no user name"
        return InputError(
            where=self.broker,
            expected="a broker that lets us in",
            found=f"{found} for {who}",
            do="Check the user name and the password file against the broker's own list.",
        )

    def _absent(self, found: str) -> MachineError:
        return MachineError(
            where=self.broker,
            expected="an MQTT 5 broker",
            found=found,
            do="Start the broker, or correct host and port.",
        )
