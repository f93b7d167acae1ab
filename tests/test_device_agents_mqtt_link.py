"""One connection: what it gives back when it fails, and when it last heard the broker."""

import gc
import os
import socket
import time

import pytest
from small_station import needs_broker

from device_agents.broker import free_port, running_broker
from device_agents.mqtt import link as link_module
from device_agents.mqtt.address import BrokerAddress
from device_agents.mqtt.link import Link
from edge.errors import EdgeError, MachineError


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@pytest.fixture
def no_collector():
    """What only the garbage collector would close is a leak here."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def failed_opens(port, count) -> list[EdgeError]:
    errors = []
    for _ in range(count):
        with pytest.raises(MachineError) as raised:
            Link(BrokerAddress("127.0.0.1", port), "x").open()
        errors.append(raised.value)
    return errors


def test_failed_connections_to_a_broker_that_never_answers_leave_no_socket(
    monkeypatch, no_collector
):
    monkeypatch.setattr(link_module, "OPEN_WITHIN_S", 0.05)
    with socket.create_server(("127.0.0.1", 0), backlog=20) as silent:  # accepts none: no file
        before = open_files()
        errors = failed_opens(silent.getsockname()[1], 5)
        assert open_files() == before
    assert all("no answer to CONNECT" in str(error) for error in errors)


def test_failed_connections_to_no_broker_leave_no_socket(no_collector):
    before, port = open_files(), free_port()
    failed_opens(port, 5)
    assert open_files() == before


def test_link_that_was_never_opened_is_closed_whole(no_collector):
    before = open_files()
    link = Link(BrokerAddress("127.0.0.1", 1883), "x")
    link.step(0.0)
    assert open_files() > before, "paho takes sockets to turn its loop, else this shows nothing"
    link.close()
    assert open_files() == before


@needs_broker
def test_link_that_the_broker_ended_gives_its_sockets_back(tmp_path, no_collector):
    with running_broker(tmp_path / "broker") as broker:
        before = open_files()
        link = Link(BrokerAddress("127.0.0.1", broker.port), "x")
        link.open()
    while link.ended is None:
        link.step(0.05)
    link.close()
    # The broker's own pipes may be closed meanwhile; nothing of ours may be left.
    assert open_files() <= before


@needs_broker
def test_broker_is_heard_with_each_answer_and_not_when_we_speak(tmp_path):
    """An answer to a ping counts: it is all that an idle link hears."""
    with running_broker(tmp_path / "broker") as broker:
        link = Link(BrokerAddress("127.0.0.1", broker.port, keepalive_s=1), "x")
        assert link.heard_s == 0.0
        link.open()
        let_in_s = link.heard_s
        assert let_in_s > 0.0
        link.publish("a", b"x", qos=0)
        assert link.heard_s == let_in_s, "QoS 0 is not answered"
        deadline = time.monotonic() + 10
        while link.heard_s < let_in_s + 2.0:  # two pings
            assert time.monotonic() < deadline
            assert link.ended is None
            link.step(0.05)
        link.close()
    heard_s = link.heard_s
    link.step(0.05)
    assert link.heard_s == heard_s


def test_end_of_a_connection_is_not_hearing_the_broker():
    """A router that answers for a dead broker sends an end, and would vouch for its disk."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        link = Link(BrokerAddress("127.0.0.1", server.getsockname()[1]), "x")
        link._connect()
        connection = server.accept()[0]
        assert connection.recv(65_536), "unread, it would turn the end into a reset"
        connection.sendall(b"\x20\x03\x00\x00\x00")
        while link._connack is None:
            link.step(0.1)
        heard_s = link.heard_s
        connection.close()
        while link.ended is None:
            link.step(0.1)
    assert link.heard_s == heard_s > 0.0
    link.close()
