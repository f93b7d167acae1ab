"""What the doctor looks at in the way to the broker: name, TCP, TLS, CONNECT, the right to publish.

It comes under a client id of its own, so that a publisher at work is not thrown out, and publishes
one message that nobody keeps, on a topic beside the station's own.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Iterator

from device_agents.doctor.diagnosis import Finding, Patient, found_wrong
from device_agents.mqtt.address import BrokerAddress
from device_agents.mqtt.credentials import address_of
from device_agents.mqtt.link import Link
from device_agents.mqtt.refusals import NOT_AUTHORISED
from edge.errors import EdgeError
from edge.topics import DOCTOR, ROOT

_ANSWER_WITHIN_S = 5.0


def look_at_broker(patient: Patient) -> Iterator[Finding]:
    """Go the publisher's way step by step; the first step that fails is the finding."""
    try:
        broker = address_of(patient.station.broker)
    except EdgeError as error:
        yield found_wrong("broker", error)
        return
    try:
        where = socket.getaddrinfo(broker.host, broker.port, type=socket.SOCK_STREAM)[0][4]
    except (OSError, UnicodeError) as error:
        do = "Correct broker.host, or the machine's name server (`resolvectl query HOST`)."
        yield Finding("broker", "fail", f"the name '{broker.host}' is not known: {error}", do)
        return
    try:
        socket.create_connection((broker.host, broker.port), _ANSWER_WITHIN_S).close()
    except OSError as error:
        do = "Start the broker, correct broker.port, or open the firewall between the two."
        yield Finding("broker", "fail", f"no TCP to {where[0]} port {broker.port}: {error}", do)
        return
    link = Link(broker, f"orin-inspect-doctor-{secrets.token_hex(6)}")
    started_s = time.monotonic()
    try:
        link.open()
    except EdgeError as error:
        yield found_wrong("broker", error)
        return
    with link:
        took_ms = (time.monotonic() - started_s) * 1e3
        yield Finding("broker", "ok", f"{broker} lets us in ({took_ms:.0f} ms), {_how(broker)}")
        yield _published(patient, link)


def _how(broker: BrokerAddress) -> str:
    tls = "in clear" if broker.tls is None else "TLS, its certificate trusted"
    if broker.tls is not None and broker.tls.certificate_file:
        tls += ", ours shown"
    return f"{tls}, " + (f"user '{broker.username}'" if broker.username else "no user name")


def _published(patient: Patient, link: Link) -> Finding:
    place = f"{ROOT}/{patient.station.station}"
    topic = f"{place}/{DOCTOR}"
    message_id = link.publish(topic, b"{}", qos=1)
    deadline_s = time.monotonic() + _ANSWER_WITHIN_S
    while link.ended is None and time.monotonic() < deadline_s:
        link.step(0.1)
        for answered, code in link.take_acknowledged():
            if answered == message_id and code < 0x80:
                return Finding("broker", "ok", f"takes what is published below {place}")
            if answered == message_id:
                why = "not authorised" if code == NOT_AUTHORISED else f"reason 0x{code:02X}"
                return _denied(patient, f"refuses a message on {topic}: {why}")
    return _denied(patient, f"does not acknowledge {topic}: {link.ended or 'no answer'}")


def _denied(patient: Patient, said: str) -> Finding:
    user = patient.station.broker.username or "anonymous"
    do = f"Let the user '{user}' write to {ROOT}/{patient.station.station}/# in the broker's ACL."
    return Finding("broker", "fail", said, do)
