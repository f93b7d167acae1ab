"""The listener: a consumer of what stations report, that misses nothing while it is away.

With a client id of its own and a session expiry, the broker keeps a queue for it: what arrives
while the listener or the network is away is sent when it is back. The broker must be set up for
that (`persistence true`, and `max_queued_messages` large enough;
see `device_agents.broker`).
"""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Event

from device_agents.consumer.ledger import LARGEST_PICTURE_BYTES
from device_agents.mqtt.address import BrokerAddress
from device_agents.mqtt.link import Link, Received
from device_agents.mqtt.pace import backoff_s
from edge.errors import MachineError
from edge.topics import filter_for

_STEP_S = 0.2
_LARGEST_PACKET_BYTES = LARGEST_PICTURE_BYTES + (64 << 10)  # the broker drops what is larger

log = logging.getLogger("listen")


@dataclass(frozen=True)
class Subscriber:
    """Who listens. Without a client id the broker keeps nothing for it."""

    broker: BrokerAddress
    client_id: str | None = None
    session_expiry_s: int = 0


def received_from(
    subscriber: Subscriber, stop: Event, *, wait_for_broker: bool = False
) -> Iterator[Received | None]:
    """Yield messages until `stop` is set, and None whenever nothing came for a moment.

    A message is acknowledged when the next one is asked for: what the caller did not finish
    comes again. Connects again whenever the connection ends. Raises MachineError when the broker
    is not there at first (unless `wait_for_broker`), InputError when it refuses us.
    """
    # One id for all connections: a new one at each would leave the old session's queue behind.
    client_id = subscriber.client_id or f"orin-inspect-listen-{uuid.uuid4().hex[:12]}"
    failures = 0
    ever_connected = False
    while not stop.is_set():
        link = Link(
            subscriber.broker,
            client_id,
            session_expiry_s=subscriber.session_expiry_s,
            receive_bytes=_LARGEST_PACKET_BYTES,
        )
        try:
            link.open()
            link.subscribe(filter_for())
            ever_connected, failures = True, 0
            yield from _received_on(link, stop)
            if not stop.is_set():
                log.warning("connection to %s over: %s", subscriber.broker, link.ended)
        except MachineError as error:
            if not ever_connected and not wait_for_broker:
                raise
            log.warning("%s", error)
        finally:
            link.close()
        if not stop.is_set():
            yield from _pause(backoff_s(failures, random.random()), stop)  # noqa: S311
            failures += 1


def _received_on(link: Link, stop: Event) -> Iterator[Received | None]:
    said = False
    while link.ended is None and not stop.is_set():
        link.step(_STEP_S)
        agreed = link.is_subscribed()
        if not said and (agreed or link.session_present):  # a kept session is subscribed already
            said = True
            resumed = ", session resumed" if link.session_present else ""
            log.info("connected to %s%s", link.broker, resumed)
        messages = link.take_received()
        for message in messages:
            yield message
            link.acknowledge(message)
            if stop.is_set():  # the rest stays with the broker, for the next listener
                break
        if not messages:
            yield None


def _pause(seconds: float, stop: Event) -> Iterator[None]:
    """Wait, and give the caller its turn meanwhile: it may have a deadline."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not stop.is_set():
        stop.wait(min(_STEP_S, max(0.0, until - time.monotonic())))
        yield None
