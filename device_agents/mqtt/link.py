"""One MQTT 5 connection, from CONNECT to its end: the only module that knows paho.

A `Link` is used once. paho keeps unsent messages in memory and resends them by its own rules;
with a new client for every connection nothing of that survives, and the outbox's cursor alone
decides what is sent again. Nothing runs in another thread: `step` turns the network loop.
"""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import dataclass
from typing import Any

from paho.mqtt.client import Client, MQTTMessage, MQTTv5
from paho.mqtt.enums import CallbackAPIVersion, LogLevel, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from device_agents.mqtt.address import BrokerAddress
from device_agents.mqtt.refusals import (
    not_readable,
    refused_connect,
    said_beside,
    without_acknowledgement,
)
from device_agents.mqtt.tls import context_from, failed_handshake
from edge.errors import EdgeError

OPEN_WITHIN_S = 5.0
PACKET_OVERHEAD_BYTES = 64  # MQTT's own bytes around topic and payload, generously
_RECEIVE_MAXIMUM = 100  # messages that the broker may have under way to us
_LOST = 0x80


@dataclass(frozen=True)
class Will:
    """What the broker says for us when we vanish."""

    topic: str
    payload: bytes
    retain: bool = True


@dataclass(frozen=True)
class Received:
    """One message from the broker. `acknowledge` it when it is dealt with."""

    topic: str  # "" where it was not UTF-8
    payload: bytes
    qos: int
    message_id: int
    retained: bool


class _Client(Client):
    """paho's client, and when the broker was last heard: paho's own note moves when *we* ping."""

    heard_s = 0.0  # monotonic

    def _sock_recv(self, bufsize: int) -> bytes:
        received = super()._sock_recv(bufsize)
        if received:  # empty: the end of the stream, which any router may forge
            self.heard_s = time.monotonic()
        return received


class Link:
    """One connection. Use it as a context manager: leaving it closes the socket."""

    def __init__(
        self,
        broker: BrokerAddress,
        client_id: str,
        *,
        will: Will | None = None,
        session_expiry_s: int = 0,
        receive_bytes: int | None = None,
    ) -> None:
        """`receive_bytes`: larger packets the broker must not send us; None: any."""
        self.broker = broker
        self._receive_bytes = receive_bytes
        self.session_present = False
        self.send_at_once = 65535  # the broker's Receive Maximum
        self.largest_packet_bytes: int | None = None  # the broker's Maximum Packet Size
        self.retains = True  # False: the broker keeps no retained messages
        self.ended: str | None = None  # why the connection is over, in words
        self.end_code = 0  # the reason code of a refused CONNECT, or of the end
        self.closed_by_us = False
        self._connack: ReasonCode | None = None
        self._lowest_qos = False  # the broker takes QoS 0 and no more
        self._fault = ""  # what paho said of the socket while connecting
        self._acknowledged: list[tuple[int, int]] = []
        self._received: list[Received] = []
        self._topic_filter = ""  # that was asked for
        self._subscribed: list[ReasonCode] | None = None
        self._session_expiry_s = session_expiry_s
        self._client = self._new_client(client_id, will)

    def open(self) -> None:
        """Connect.

        Raises InputError where the broker refuses us or a file of ours is wrong, MachineError
        where it is not there or cannot take us now.
        """
        try:
            self._connect()
            deadline = time.monotonic() + OPEN_WITHIN_S
            while self._connack is None and self.ended is None and time.monotonic() < deadline:
                self.step(0.1)
            self._client.on_log = None  # it costs time with every message
            if self._connack is None or self._connack.is_failure:
                raise self._refusal()
            if self._lowest_qos:
                raise without_acknowledgement(self.broker)
        except BaseException:
            self.close()
            raise

    @property
    def heard_s(self) -> float:
        """When the last byte came from the broker, monotonic; 0 before the first."""
        return self._client.heard_s

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
        self._topic_filter = topic_filter
        self._client.subscribe(topic_filter, qos=1)

    def is_subscribed(self) -> bool:
        """Tell whether the broker has agreed. Raises InputError when it refused."""
        if self._subscribed is None:
            return False
        if any(code.is_failure for code in self._subscribed):
            found = f"SUBSCRIBE answered '{self._subscribed[0]}'"
            raise not_readable(found, self._topic_filter, self.broker)
        return True

    def take_received(self) -> list[Received]:
        """Return the messages that arrived since the last call, in order."""
        taken, self._received = self._received, []
        return taken

    def acknowledge(self, message: Received) -> None:
        """Tell the broker that it may forget the message."""
        if message.qos:
            self._client.ack(message.message_id, message.qos)

    def close(self, *, with_will: bool = False) -> None:
        """Disconnect cleanly where there is a connection, and give back every socket.

        The broker says our will only where `with_will` asks for it.
        """
        if self.ended is None:
            self._disconnect(with_will)
        # paho takes a pair of sockets for its loop, and keeps it until the collector comes round.
        self._client._reset_sockets()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _new_client(self, client_id: str, will: Will | None) -> _Client:
        client = _Client(
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
            client.will_set(will.topic, will.payload, qos=1, retain=will.retain)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_log = self._on_log
        return client

    def _connect(self) -> None:
        tls = self.broker.tls
        try:
            if tls is not None:
                self._client.tls_set_context(context_from(tls))
            self._client.connect(
                self.broker.host,
                self.broker.port,
                self.broker.keepalive_s,
                clean_start=self._session_expiry_s == 0,
                properties=self._connect_properties(),
            )
        except ssl.SSLError as error:
            assert tls is not None
            raise failed_handshake(error, self.broker, tls) from None
        except (OSError, ValueError) as error:  # ValueError: a host name nobody could have
            raise refused_connect(None, str(error), self.broker) from None
        raw = self._client.socket()
        if isinstance(raw, socket.socket):  # else the broker hung up on CONNECT already
            # Small messages in quick succession: Nagle's algorithm would hold them for 40 ms.
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _disconnect(self, with_will: bool) -> None:
        self.closed_by_us = True
        reason = "Disconnect with will message" if with_will else "Normal disconnection"
        self._client.disconnect(ReasonCode(PacketTypes.DISCONNECT, reason))
        deadline = time.monotonic() + 0.5
        while self.ended is None and time.monotonic() < deadline:
            self.step(0.05)
        self.ended = "closed"
        self.end_code = 0

    def _connect_properties(self) -> Any:
        properties: Any = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.ReceiveMaximum = _RECEIVE_MAXIMUM
        properties.SessionExpiryInterval = self._session_expiry_s
        if self._receive_bytes is not None:
            properties.MaximumPacketSize = self._receive_bytes
        return properties

    def _on_connect(self, _: Any, __: Any, flags: Any, code: ReasonCode, properties: Any) -> None:
        self._connack = code
        self.session_present = flags.session_present
        self.send_at_once = getattr(properties, "ReceiveMaximum", 65535)
        self.largest_packet_bytes = getattr(properties, "MaximumPacketSize", None)
        self.retains = bool(getattr(properties, "RetainAvailable", 1))
        self._lowest_qos = getattr(properties, "MaximumQoS", 2) == 0
        if code.is_failure:
            self.ended, self.end_code = "refused", int(code.value)
            self._fault = said_beside(properties)

    def _on_disconnect(
        self, _: Any, __: Any, flags: Any, code: ReasonCode, properties: Any
    ) -> None:
        if self._connack is not None and self._connack.is_failure:
            return  # refused: the CONNACK said why
        self.end_code = int(code.value)
        # paho says "Unspecified error" of its own where no DISCONNECT came.
        cut = self.end_code == _LOST and not flags.is_disconnect_packet_from_server
        self.ended = "the connection was cut" if cut else f"{code}{said_beside(properties)}"

    def _on_log(self, _: Any, __: Any, level: int, text: str) -> None:
        """Keep what paho swallows: a TLS 1.3 broker refuses our certificate after the handshake."""
        if level == LogLevel.MQTT_LOG_ERR:
            self._fault = text

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
        code = None if self._connack is None else self._connack.value
        found = f"CONNECT answered '{self._connack}'{self._fault}"
        if code is None:
            found = self._fault or self.ended or "no answer to CONNECT"
        return refused_connect(code, found, self.broker)
