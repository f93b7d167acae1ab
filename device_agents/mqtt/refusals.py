"""What a broker's refusals mean: who can mend them, and how.

MQTT 5 gives a reason code with every refusal. The tables stand here once, without a network.
"""

from __future__ import annotations

from typing import Any, Literal

from device_agents.mqtt.address import BrokerAddress
from device_agents.mqtt.tls import is_about_our_certificate, refused_certificate
from edge.errors import EdgeError, InputError, MachineError

Answer = Literal["settled", "again", "refused for good"]

# MQTT 5, 3.4.2.1: what a PUBACK may say.
_SETTLED = (0x00, 0x10)  # success; no matching subscribers
_OF_THE_MESSAGE = (0x90, 0x99)  # topic name invalid; payload format invalid
NOT_AUTHORISED, _QUOTA_EXCEEDED = 0x87, 0x97
_OF_THE_STATION = (NOT_AUTHORISED, _QUOTA_EXCEEDED)  # no other message fares better
_TRIES = 5  # for codes that name no cause (unspecified, implementation specific)

# Ends of a connection that one message can cause. A plain cut (0x80) is the network's doing.
PROTOCOL_ENDS = (0x81, 0x82, 0x95, 0x99)  # malformed; protocol error; too large; payload format

# MQTT 5, 3.2.2.2: what a CONNACK may say.
# Client id, user or password (two codes), not authorised, banned, authentication method.
_REFUSED = (0x85, 0x86, NOT_AUTHORISED, 0x8A, 0x8C)
_ELSEWHERE = (0x9C, 0x9D)  # use another server; server moved
_QOS_NOT_SUPPORTED = 0x9B
RETAIN_NOT_SUPPORTED = 0x9A

# With these the broker asks to be left alone for a while, in CONNACK or DISCONNECT: unavailable,
# busy, taken over by another client of our name, message rate too high, quota exceeded, ended by
# its administrator, use another server, moved, connection rate exceeded, maximum connect time.
# The next try waits as long as after many failures.
PATIENCE = (0x88, 0x89, 0x8E, 0x96, 0x97, 0x98, *_ELSEWHERE, 0x9F)


def answer_to(reason_code: int, tries: int) -> Answer:
    """Say what a PUBACK's reason code means for a record that was sent `tries` times."""
    if reason_code in _SETTLED or reason_code < 0x80:
        return "settled"
    if reason_code in _OF_THE_STATION:
        return "again"
    return "refused for good" if reason_code in _OF_THE_MESSAGE or tries >= _TRIES else "again"


def refusal_of(reason_code: int, topic: str) -> str:
    """Say what a PUBACK that refuses a message on `topic` means, and the next step."""
    if reason_code == NOT_AUTHORISED:
        return (
            f"not authorised to publish to {topic}; let the station write there in the broker's "
            f"ACL (Mosquitto: topic write {topic})"
        )
    if reason_code == _QUOTA_EXCEEDED:
        return "the broker's quota for this station is used up; raise it there, or wait"
    return "the broker names no cause; its own log may"


def refused_connect(reason_code: int | None, found: str, broker: BrokerAddress) -> EdgeError:
    """Say what a refused connection means; `reason_code` is None where no CONNACK came."""
    tls = broker.tls
    if reason_code is None and tls is not None and is_about_our_certificate(found):
        return refused_certificate(found, broker, tls)
    if reason_code in _REFUSED:
        return not_allowed(found, broker)
    if reason_code == _QOS_NOT_SUPPORTED:
        return without_acknowledgement(broker)
    if reason_code in _ELSEWHERE:
        # Whoever can answer for the broker could else lead the records away.
        return MachineError(
            where=broker,
            expected="the broker to serve us itself",
            found=found,
            do="No redirection is followed by itself: where it is right, change broker.host.",
        )
    return MachineError(
        where=broker,
        expected="an MQTT 5 broker" + (" over TLS" if tls else ""),
        found=found,
        do="Start the broker, or correct host and port.",
    )


def not_allowed(found: str, broker: BrokerAddress) -> InputError:
    """Say that we may not connect as the user that we are."""
    return InputError(
        where=broker,
        expected="a broker that lets us in",
        found=f"{found} for {_who(broker)}",
        do="Check the user name and the password file against the broker's own list.",
    )


def not_readable(found: str, topic_filter: str, broker: BrokerAddress) -> InputError:
    """Say that we may not subscribe."""
    return InputError(
        where=broker,
        expected=f"a broker that lets us read {topic_filter}",
        found=f"{found} for {_who(broker)}",
        do="Allow this user to subscribe to it and to read it, in the broker's ACL.",
    )


def without_acknowledgement(broker: BrokerAddress) -> MachineError:
    """Say that this broker acknowledges nothing."""
    return MachineError(
        where=broker,
        expected="a broker that takes QoS 1",
        found="a Maximum QoS of 0",
        do="Let it take QoS 1 (Mosquitto: max_qos): at QoS 0 nothing is acknowledged, and what a "
        "cut link swallows would be lost.",
    )


def _who(broker: BrokerAddress) -> str:
    return f"user '{broker.username}'" if broker.username else "no user name"


def said_beside(properties: Any) -> str:
    """Return what the broker adds to a reason code, fit for one line of a log."""
    parts = [getattr(properties, name, "") for name in ("ReasonString", "ServerReference")]
    text = "; ".join(str(part)[:200] for part in parts if part)
    return f" ({''.join(sign if sign.isprintable() else '?' for sign in text)})" if text else ""
