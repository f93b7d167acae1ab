"""The consumer that the stations' README shows: run as it stands, against a real broker."""

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from small_station import needs_broker
from test_device_agents_consumer_ledger import STATION, inspection

from device_agents.broker import running_broker
from device_agents.mqtt.address import BrokerAddress
from device_agents.mqtt.link import Link
from edge.messages import encode
from edge.topics import topic_of

MANUAL = Path(__file__).resolve().parent.parent / "device_agents" / "README.md"
PROGRAM = re.findall(r"```python\n(.*?)```", MANUAL.read_text(encoding="utf-8"), re.DOTALL)[0]


@pytest.fixture
def broker(tmp_path):
    with running_broker(tmp_path / "broker") as running:
        yield running


def start(broker):
    command = [sys.executable, "-c", PROGRAM, "127.0.0.1", str(broker.port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    timer = threading.Timer(20, process.kill)
    timer.daemon = True
    timer.start()  # readline then ends
    return process


def listening(process):
    assert "listening: Granted QoS 1" in process.stdout.readline()
    return process


def numbered(sequence, **changed):
    return encode(inspection(sequence, part_id=f"SN{sequence}", **changed))


def send(broker, *payloads):
    with Link(BrokerAddress("127.0.0.1", broker.port), "sender") as link:
        link.open()
        for payload in payloads:
            link.publish(topic_of(STATION, "inspection"), payload, qos=1)
        answered = 0
        while answered < len(payloads):
            link.step(0.05)
            answered += len(link.take_acknowledged())


@needs_broker
def test_consumer_shows_each_part_once_and_what_is_missing(broker):
    process = listening(start(broker))
    try:
        broken = [b"\xff", b"[]", b"{}", b'{"schema":2}', b"[" * 10_000]
        failed = numbered(2, decision="fail", label="scratch")
        send(broker, numbered(1), failed, failed, *broken, numbered(6), numbered(5))
        lines = [process.stdout.readline().rstrip() for _ in range(9)]
    finally:
        process.kill()
        process.communicate()
    assert lines[:2] == [f"{STATION} SN1: pass", f"{STATION} SN2: fail scratch"]
    assert all(line.startswith("not understood") for line in lines[2:7])
    assert lines[7:] == [f"{STATION} SN6: pass; missing: 3 to 5", f"{STATION} SN5: pass"]


@needs_broker
def test_consumer_that_was_away_gets_what_came_meanwhile(broker):
    process = listening(start(broker))
    process.kill()
    process.communicate()
    send(broker, *map(numbered, range(1, 21)))
    process = start(broker)
    try:
        lines = [process.stdout.readline() for _ in range(21)]
    finally:
        process.kill()
        process.communicate()
    # The broker may send what it kept before it answers the subscription.
    numbers = [line.split()[1] for line in lines if "listening" not in line]
    assert numbers == [f"SN{n}:" for n in range(1, 21)]


def test_consumer_takes_nothing_of_this_project():
    text = PROGRAM
    assert "import edge" not in text
    assert "from edge" not in text
