"""What a broker may ask of the publisher, with a real one: each wish is obeyed, and said."""

import contextlib
import json
import os
import socket
import time
from collections import Counter
from random import Random
from threading import Event, Thread

import pytest
from small_station import needs_mosquitto, write_station
from test_device_agents_outbox_writer import inspection_for, opened
from test_device_agents_publisher_loop import (
    Watch,
    configured_broker,
    publisher_of,
    records_into,
    stopped,
)

from device_agents.broker import free_port, running_broker
from device_agents.clock import SOFTWARE_SINCE_UNIX_S, clock_is_set
from device_agents.mqtt.address import BrokerAddress
from device_agents.mqtt.link import Link
from device_agents.mqtt.pace import PATIENT
from device_agents.mqtt.refusals import PATIENCE, refused_connect
from device_agents.outbox.cursor import read_cursor
from device_agents.outbox.reader import OutboxReader
from device_agents.publisher.loop import Publisher, run_publisher
from device_agents.publisher.quarantine import put_aside, quarantine_path_of
from device_agents.publisher.way_status import WayStatus
from device_agents.station import station_from_toml
from device_agents.status import read_status, write_status
from edge.errors import EdgeError, InputError, MachineError
from edge.messages import Health, InspectorHealth, MachineHealth, PublisherHealth

ADDRESS = BrokerAddress("broker.plant", 1883, "s1", "p4ss-w0rd")


def until(condition, seconds=15):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
    return found


def status_of(folder) -> PublisherHealth | None:
    return read_status(folder / "outbox.sqlite", PublisherHealth, fresh_s=5)


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (None, MachineError, "an MQTT 5 broker"),
        (0x80, MachineError, "an MQTT 5 broker"),
        (0x84, MachineError, "an MQTT 5 broker"),
        (0x85, InputError, "lets us in"),
        (0x86, InputError, "password file"),
        (0x87, InputError, "lets us in"),
        (0x88, MachineError, "Start the broker"),
        (0x8A, InputError, "lets us in"),
        (0x97, MachineError, "an MQTT 5 broker"),
        (0x9B, MachineError, "QoS 1"),
        (0x9C, MachineError, "No redirection is followed by itself"),
        (0x9D, MachineError, "change broker.host"),
        (0x9F, MachineError, "an MQTT 5 broker"),
    ],
)
def test_each_refusal_says_who_can_mend_it(code, kind, text):
    error = refused_connect(code, "what it said", ADDRESS)
    assert type(error) is kind
    assert text in str(error)
    assert "what it said" in str(error) or code == 0x9B
    assert "p4ss-w0rd" not in str(error) + repr(error)


def test_broker_that_asks_for_patience_is_left_alone_the_longest_time(tmp_path):
    station = station_from_toml(write_station(tmp_path))
    with opened(tmp_path / "outbox.sqlite"):
        pass
    publisher = Publisher(
        station,
        OutboxReader.open(tmp_path / "outbox.sqlite"),
        WayStatus(tmp_path / "outbox.sqlite"),
        {}.get,
    )
    link = Link(ADDRESS, "x")
    now_s = time.monotonic()
    assert publisher._failures_after(link, 3, now_s) == 3
    for code in PATIENCE:
        link.end_code = code
        assert publisher._failures_after(link, 3, now_s) == PATIENT
    link.end_code, publisher._patient = 0, True  # one record was answered "quota exceeded"
    assert publisher._failures_after(link, 3, now_s) == PATIENT
    assert {0x89, 0x97, 0x9C, 0x9D, 0x9F} <= set(PATIENCE)


def test_subscription_that_is_refused_names_the_topic_and_the_acl():
    broker = Script(CONNACK + b"\x90\x04\x00\x01\x00\x87")  # and SUBACK, not authorised
    with Link(BrokerAddress("127.0.0.1", broker.port, "s1"), "consumer") as link:
        link.open()
        link.subscribe("orin-inspect/#")
        with pytest.raises(InputError, match=r"read orin-inspect/#.*'s1'.*ACL"):
            until(lambda: link.step(0.05) or link.is_subscribed())


@needs_mosquitto
def test_broker_that_retains_nothing_gets_presence_without_it(tmp_path):
    broker = configured_broker(tmp_path, "retain_available false")
    try:
        records_into(tmp_path, 3)
        write_station(tmp_path, broker.port)
        watch = Watch(broker.port)
        process = publisher_of(tmp_path)
        watch.until(lambda: watch.sequences() == [1, 2, 3])
        said = stopped(process)
        watch.until(lambda: len(watch.of("presence")) == 2)
    finally:
        broker.stop()
    assert "retains nothing" in said
    assert [p.state for p in watch.of("presence")] == ["online", "offline"]


@needs_mosquitto
def test_broker_without_qos_1_is_waited_for_and_named(tmp_path):
    """At QoS 0 nothing is acknowledged: not sending is better than losing."""
    broker = configured_broker(tmp_path, "max_qos 0")
    try:
        epoch = records_into(tmp_path, 3)
        write_station(tmp_path, broker.port)
        process = publisher_of(tmp_path)
        health = until(lambda: (s := status_of(tmp_path)) and "QoS" in s.reason and s)
        stopped(process)
    finally:
        broker.stop()
    assert health.state == "away"
    assert "a broker that takes QoS 1" in health.reason
    assert read_cursor(tmp_path / "outbox.sqlite", epoch).acknowledged == 0


class Script:
    """A broker that says what it is told to: bytes of MQTT 5, one answer per connection."""

    def __init__(self, *answers: bytes, hang_up: bool = False) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.heard: list[tuple[float, bytes]] = []  # when, and the first bytes of what came
        self._answers, self._hang_up = answers, hang_up
        Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        for answer in self._answers:
            connection = self._server.accept()[0]
            with contextlib.suppress(OSError):  # who hung up on what it heard first
                connection.recv(65_536)
                connection.sendall(answer)
                if self._hang_up:
                    connection.shutdown(socket.SHUT_WR)
            Thread(target=self._listen, args=(connection,), daemon=True).start()

    def _listen(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := connection.recv(65_536):
                self.heard.append((time.monotonic(), chunk))


CONNACK = b"\x20\x03\x00\x00\x00"
PING = b"\xc0\x00"


def test_server_keep_alive_is_obeyed():
    """The station says 60 s, the broker 1: a silent link that pings at 60 s would be cut."""
    broker = Script(b"\x20\x06\x00\x00\x03\x13\x00\x01")
    link = Link(BrokerAddress("127.0.0.1", broker.port, keepalive_s=60), "quiet")
    link.open()
    began_s = time.monotonic()
    while PING not in [chunk for _, chunk in broker.heard]:
        assert time.monotonic() < began_s + 10
        link.step(0.1)
    link.close()


def test_redirection_is_reported_with_its_target_and_not_followed():
    moved = b"\x1c\x00\x05other"  # Server Reference
    broker = Script(b"\x20\x0b\x00\x9d\x08" + moved)
    link = Link(BrokerAddress("127.0.0.1", broker.port), "x")
    with pytest.raises(MachineError, match=r"Server moved.*\(other\).*change broker.host"):
        link.open()
    assert link.end_code in PATIENCE


def test_reason_of_a_broker_cannot_forge_a_line_of_the_log():
    text = b"bye\n2026-11-22 ERROR forged\x1b[2J"
    reason = b"\x1f" + len(text).to_bytes(2, "big") + text
    length = len(reason)
    answer = CONNACK + bytes([0xE0, length + 2, 0x8B, length]) + reason
    link = Link(BrokerAddress("127.0.0.1", Script(answer).port), "x")
    link.open()
    until(lambda: link.step(0.05) or link.ended)
    assert link.ended == "Server shutting down (bye?2026-11-22 ERROR forged?[2J)"


def test_bytes_of_a_hostile_broker_end_the_connection_and_nothing_else():
    """Packets of every kind with random content, after a proper CONNACK or instead of one."""
    random, rounds, ends = Random(11), 60, Counter()
    scripts = [
        (CONNACK if number % 4 else b"") + b"".join(_packet(random) for _ in range(1 + number % 4))
        for number in range(rounds)
    ]
    broker = Script(*scripts, hang_up=True)
    for _ in range(rounds):
        link = Link(BrokerAddress("127.0.0.1", broker.port), "x", receive_bytes=8192)
        try:
            link.open()
            link.publish("a", b"x", qos=1)
            link.subscribe("b")
            while link.ended is None:
                link.step(0.05)
                for message in link.take_received():
                    link.acknowledge(message)
            ends["after it let us in"] += 1
        except EdgeError:
            ends["before"] += 1
        finally:
            link.close()
    assert sum(ends.values()) == rounds
    assert min(ends.values()) > 5, ends


def _packet(random: Random) -> bytes:
    kinds = (0x20, 0x30, 0x32, 0x34, 0x40, 0x62, 0x90, 0xB0, 0xD0, 0xE0, random.randrange(256))
    body = random.randbytes(random.randrange(40))
    length = len(body) if random.random() < 0.8 else random.randrange(127)
    return bytes([random.choice(kinds), length]) + body


@needs_mosquitto
def test_small_receive_maximum_narrows_the_window(tmp_path):
    """One at a time, presence included; more would be a protocol error that costs the link."""
    broker = configured_broker(tmp_path, "max_inflight_messages 1")
    try:
        records_into(tmp_path, 50)
        write_station(tmp_path, broker.port)
        watch = Watch(broker.port)
        process = publisher_of(tmp_path)
        watch.until(lambda: watch.sequences() == list(range(1, 51)))
        said = stopped(process)
    finally:
        broker.stop()
    assert "over:" not in said, said


def test_client_of_our_name_that_takes_over_does_not_start_a_fight(tmp_path):
    """Two stations made from one file would else throw each other out twice a second."""
    broker = Script(*[CONNACK + b"\xe0\x02\x8e\x00"] * 9)
    records_into(tmp_path, 1)
    write_station(tmp_path, broker.port)
    process = publisher_of(tmp_path)
    health = until(lambda: (s := status_of(tmp_path)) and "taken" in s.reason and s)
    before = len(broker.heard)
    time.sleep(1.2)
    assert len(broker.heard) == before, "we are patient"
    assert (health.state, health.reason) == ("away", "Session taken over")
    stopped(process)


@needs_mosquitto
def test_rate_limit_holds_and_starves_neither_health_nor_presence(tmp_path):
    with running_broker(tmp_path / "broker") as broker:
        records_into(tmp_path, 80)
        limit = "max_messages_per_second = 40"
        write_station(tmp_path, broker.port, broker=limit)
        watch = Watch(broker.port)
        process = publisher_of(tmp_path)
        stamps = []

        def seen() -> bool:
            while len(stamps) < len(watch.sequences()):
                stamps.append(time.monotonic())
            return len(stamps) == 80

        watch.until(seen)
        health = len(watch.of("health"))
        stopped(process)
    assert watch.sequences() == list(range(1, 81))
    # A lower bound on the time is the point here: 80 at 40 per second cannot take less.
    assert stamps[-1] - stamps[0] > 75 / 40
    assert health >= 3, "every half second, whatever the records do"
    assert watch.of("presence")[0].state == "online"


class DeafProxy:
    """A link that goes dead in both directions without a word."""

    def __init__(self, target_port):
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.dead = False
        self._target = target_port
        Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        client, broker = (
            self._server.accept()[0],
            socket.create_connection(("127.0.0.1", self._target)),
        )
        for source, sink in ((client, broker), (broker, client)):
            Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source, sink):
        try:
            while chunk := source.recv(65_536):
                if not self.dead:
                    sink.sendall(chunk)
        except OSError:
            pass


@needs_mosquitto
def test_will_is_said_for_a_station_whose_link_went_half_open(tmp_path):
    """No packet ends the connection: the broker's own clock does, after 1.5 keepalives."""
    with running_broker(tmp_path / "broker") as broker:
        records_into(tmp_path, 1)
        proxy = DeafProxy(broker.port)
        write_station(tmp_path, proxy.port, broker="keepalive_s = 1")
        watch = Watch(broker.port)
        process = publisher_of(tmp_path)
        watch.until(lambda: watch.sequences() == [1])
        proxy.dead = True
        watch.until(lambda: [p.state for p in watch.of("presence")] == ["online", "offline"])
        assert watch.of("presence")[-1].since is None, "the broker cannot know"
        late = Watch(broker.port)
        late.until(lambda: late.heard)
        assert [p.state for p in late.of("presence")] == ["offline"]
        process.kill()
        process.wait()


@needs_mosquitto
def test_clock_of_1970_gives_no_time_and_presence_is_said_again_when_it_is_set(
    tmp_path, monkeypatch
):
    """In this process, so that its clock can be 1970: order holds by sequence number."""
    real, offset = time.time, {"s": -real_epoch()}
    monkeypatch.setattr("device_agents.clock.time.time", lambda: real() + offset["s"])
    with running_broker(tmp_path / "broker") as broker:
        records_into(tmp_path, 5)
        station = station_from_toml(write_station(tmp_path, broker.port))
        watch, stop = Watch(broker.port), Event()
        thread = Thread(target=run_publisher, args=(station, stop))
        thread.start()
        try:
            watch.until(lambda: watch.sequences() == [1, 2, 3, 4, 5])
            assert [p.since for p in watch.of("presence")] == [None]
            offset["s"] = 0.0
            watch.until(lambda: len(watch.of("presence")) == 2)
            assert watch.of("presence")[1].state == "online"
            assert watch.of("presence")[1].since is not None
        finally:
            stop.set()
            thread.join(10)


def real_epoch() -> float:
    """Seconds that a clock set to the time of its boot is behind."""
    return time.time() - 60.0


def test_clock_before_the_software_existed_is_no_clock():
    assert not clock_is_set(0.0)
    assert not clock_is_set(SOFTWARE_SINCE_UNIX_S - 1)
    assert clock_is_set()


@needs_mosquitto
def test_health_is_the_monitors_where_fresh_and_composed_where_not(tmp_path):
    with running_broker(tmp_path / "broker") as broker:
        epoch = records_into(tmp_path, 2)
        station = station_from_toml(write_station(tmp_path, broker.port))
        outbox = tmp_path / "outbox.sqlite"
        watch = Watch(broker.port)
        process = publisher_of(tmp_path)
        watch.until(lambda: any(h.publisher for h in watch.of("health")))
        composed = watch.of("health")[-1]
        write_status(outbox, InspectorHealth(state="degraded", reason="behind"))
        watch.until(lambda: watch.of("health")[-1].inspector is not None)
        assert watch.of("health")[-1].inspector.reason == "behind"
        theirs = Health(
            station=station.station,
            station_epoch=epoch,
            sent_at="2026-11-22T00:00:00Z",
            outbox_depth=77,
            counters={"published": 2},
            machine=MachineHealth(read_from="sysfs", uptime_s=1.0),
        )
        write_status(outbox, theirs)
        watch.until(lambda: watch.of("health")[-1].outbox_depth == 77)
        write_status(outbox, Health(**{**as_fields(theirs), "station_epoch": "another life"}))
        watch.until(lambda: watch.of("health")[-1].outbox_depth == 0)
        stopped(process)
    assert (composed.machine, composed.publisher.state) == (None, "connected")
    assert watch.of("health")[-1].station_epoch == epoch
    health = status_of(tmp_path)
    assert (health.state, health.acknowledged) == ("stopped", 2)


def as_fields(struct) -> dict:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def test_systemd_hears_ready_and_watchdog_while_no_broker_is_there(tmp_path):
    """A dead broker must not make systemd restart the publisher."""
    records_into(tmp_path, 1)
    write_station(tmp_path, free_port())
    address = str(tmp_path / "notify")
    ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ear.bind(address)
    ear.settimeout(15)
    os.environ["NOTIFY_SOCKET"] = address
    try:
        process = publisher_of(tmp_path)
    finally:
        del os.environ["NOTIFY_SOCKET"]
    heard = []
    while heard.count("WATCHDOG=1") < 4 or "READY=1" not in heard:
        heard.append(ear.recv(1000).decode())
    stopped(process)
    while "STOPPING=1" not in heard:
        heard.append(ear.recv(1000).decode())
    assert heard.index("READY=1") < heard.index("STOPPING=1")
    assert any(line.startswith("STATUS=away: mqtt://127.0.0.1") for line in heard)
    ear.close()


@needs_mosquitto
def test_row_that_is_no_record_is_left_out_and_counted_and_the_rest_arrives(tmp_path):
    """The outbox file itself may be hostile: text, numbers and other bytes in a record's place."""
    with running_broker(tmp_path / "broker") as broker:
        with opened(tmp_path / "outbox.sqlite") as outbox:
            epoch = outbox.epoch
            for value in ("text", 7, b"\xff\x00 no JSON"):
                outbox.append(inspection_for(outbox))
                outbox._db.execute(
                    "UPDATE outbox SET payload = ? WHERE sequence = ?",
                    (value, outbox.next_sequence - 1),
                )
            outbox.append(inspection_for(outbox))
        write_station(tmp_path, broker.port)
        watch = Watch(broker.port)
        process = publisher_of(tmp_path)
        watch.until(lambda: watch.sequences() == [4])
        watch.until(lambda: watch.of("health") and watch.of("health")[-1].counters["damaged"] == 3)
        stopped(process)
    assert read_cursor(tmp_path / "outbox.sqlite", epoch).acknowledged == 4


def test_quarantine_holds_what_is_no_json_too(tmp_path):
    outbox = tmp_path / "outbox.sqlite"
    for payload in (b'{"sequence":1}', b"\xff no JSON", None):
        put_aside(outbox, 1, "a test", payload)
    lines = [json.loads(line) for line in quarantine_path_of(outbox).read_text().splitlines()]
    assert [line["record"] for line in lines] == [{"sequence": 1}, "/yBubyBKU09O"]
