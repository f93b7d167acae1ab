"""The publisher against a real broker: its bad days, one by one."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from threading import Event

import pytest
from live_pipelines import wait_until
from small_station import (
    BAD,
    GOOD,
    Proxy,
    edge,
    needs_broker,
    needs_mosquitto,
    write_bundle,
    write_squares,
    write_station,
)
from test_device_agents_outbox_writer import inspection_for, opened

from device_agents.broker import EmbeddedBroker, free_port, running_broker
from device_agents.consumer.listener import Subscriber, received_from
from device_agents.mqtt.address import BrokerAddress
from device_agents.mqtt.link import Link, Will
from device_agents.outbox.cursor import Cursor, cursor_path_of, read_cursor, write_cursor
from device_agents.publisher.loop import run_publisher
from device_agents.station import station_from_toml
from device_agents.status import read_status
from edge.errors import InputError, MachineError
from edge.messages import Health, Inspection, Presence, PublisherHealth, decode
from edge.topics import station_and_kind

pytestmark = needs_broker


@pytest.fixture
def broker(tmp_path):
    with running_broker(tmp_path / "broker") as running:
        yield running


def records_into(folder, count=30, *, large=()):
    """Fill the outbox as the inspector would; `large` sequences are over 3,000 bytes."""
    with opened(folder / "outbox.sqlite") as outbox:
        for number in range(1, count + 1):
            reason = "x" * 3_000 if number in large else ""
            assert outbox.append(inspection_for(outbox, "fail", reason))
        return outbox.epoch


class Watch:
    """A plain subscriber that keeps what it hears."""

    def __init__(self, port):
        self.link = Link(BrokerAddress("127.0.0.1", port), f"watch-{time.monotonic_ns()}")
        self.link.open()
        self.link.subscribe("orin-inspect/#")
        self.heard = []
        self.until(self.link.is_subscribed)

    def until(self, condition, seconds=15):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it never came"
            self.link.step(0.05)
            for message in self.link.take_received():
                self.heard.append((station_and_kind(message.topic)[1], message))
                self.link.acknowledge(message)

    def of(self, kind):
        types = {"inspection": Inspection, "presence": Presence, "health": Health}
        return [decode(m.payload, types[kind]) for found, m in self.heard if found == kind]

    def sequences(self):
        return [i.sequence for i in self.of("inspection")]


def publisher_of(folder):
    return edge("agent", "publisher", "--station", folder / "station.toml", stderr=-1)


def stopped(process) -> str:
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=15)[1].decode()
    assert process.returncode == 0, said
    return said


def test_backlog_arrives_in_order_with_presence_and_health(tmp_path, broker):
    epoch = records_into(tmp_path, 100)
    write_station(tmp_path, broker.port)
    watch = Watch(broker.port)
    process = publisher_of(tmp_path)
    watch.until(lambda: len(watch.sequences()) == 100 and len(watch.of("health")) > 1)
    assert watch.sequences() == list(range(1, 101))
    stopped(process)
    watch.until(lambda: len(watch.of("presence")) == 2)
    assert [p.state for p in watch.of("presence")] == ["online", "offline"]
    last = watch.of("health")[-1]
    assert (last.outbox_depth, last.counters["published"], last.station_epoch) == (0, 100, epoch)
    assert read_cursor(tmp_path / "outbox.sqlite", epoch).acknowledged == 100
    late = Watch(broker.port)
    late.until(lambda: late.heard)
    assert [p.state for p in late.of("presence")] == ["offline"], "retained for who comes later"
    assert late.heard[0][1].retained


def test_killed_publisher_is_reported_by_its_will_and_resumes_at_the_cursor(tmp_path, broker):
    epoch = records_into(tmp_path, 50)
    write_station(tmp_path, broker.port)
    watch = Watch(broker.port)
    process = publisher_of(tmp_path)
    watch.until(lambda: len(watch.sequences()) == 50)
    watch.until(lambda: read_cursor(tmp_path / "outbox.sqlite", epoch).acknowledged == 50)
    process.kill()
    process.wait()
    watch.until(lambda: [p.state for p in watch.of("presence")] == ["online", "offline"])
    with opened(tmp_path / "outbox.sqlite") as outbox:
        outbox.append(inspection_for(outbox))
    process = publisher_of(tmp_path)
    watch.until(lambda: 51 in watch.sequences())
    stopped(process)
    assert watch.sequences() == list(range(1, 52)), "the cursor was on disk: nothing twice"


def test_corrupt_cursor_sends_all_again_rather_than_nothing(tmp_path, broker):
    epoch = records_into(tmp_path, 20)
    write_station(tmp_path, broker.port)
    cursor_path_of(tmp_path / "outbox.sqlite").write_bytes(b'{"station_epoch":"')
    watch = Watch(broker.port)
    process = publisher_of(tmp_path)
    watch.until(lambda: watch.sequences() == list(range(1, 21)))
    stopped(process)
    assert read_cursor(tmp_path / "outbox.sqlite", epoch).acknowledged == 20


def test_publisher_waits_for_broker_and_outbox_that_are_not_there_yet(tmp_path):
    port = free_port()
    write_station(tmp_path, port)
    process = publisher_of(tmp_path)
    while b"waiting for the inspector" not in (line := process.stderr.readline()):
        assert line
    records_into(tmp_path, 10)
    while b"expected an MQTT 5 broker" not in (line := process.stderr.readline()):
        assert line
    with running_broker(tmp_path / "broker", port) as broker:
        watch = Watch(broker.port)
        watch.until(lambda: watch.sequences() == list(range(1, 11)))
        stopped(process)


def test_publisher_follows_the_inspector_into_a_new_epoch(tmp_path, broker):
    first = records_into(tmp_path, 5)
    write_station(tmp_path, broker.port)
    watch = Watch(broker.port)
    process = publisher_of(tmp_path)
    watch.until(lambda: len(watch.sequences()) == 5)
    for path in tmp_path.glob("outbox.sqlite*"):
        if path.suffix in (".sqlite", ".sqlite-wal", ".sqlite-shm"):
            path.unlink()
    second = records_into(tmp_path, 3)
    watch.until(lambda: len(watch.sequences()) == 8)
    stopped(process)
    epochs = [i.station_epoch for i in watch.of("inspection")]
    assert epochs == [first] * 5 + [second] * 3


def test_second_publisher_of_the_station_is_refused(tmp_path, broker):
    records_into(tmp_path, 1)
    station = station_from_toml(write_station(tmp_path, broker.port))
    process = publisher_of(tmp_path)
    while b"connected" not in process.stderr.readline():
        assert process.poll() is None
    with pytest.raises(MachineError, match="no other publisher"):
        run_publisher(station, Event())
    stopped(process)


@needs_mosquitto
@pytest.mark.parametrize("limit", ["max_packet_size 2000", "message_size_limit 2000"])
def test_record_over_the_brokers_limit_is_quarantined_and_the_rest_arrives(tmp_path, limit):
    """The first limit is announced; the second shows only in that the broker hangs up."""
    broker = configured_broker(tmp_path, limit)
    try:
        epoch = records_into(tmp_path, 40, large=[7])
        write_station(tmp_path, broker.port)
        watch = Watch(broker.port)
        process = publisher_of(tmp_path)
        watch.until(lambda: 40 in watch.sequences(), 45)
        said = stopped(process)
    finally:
        broker.stop()
    assert set(watch.sequences()) == set(range(1, 41)) - {7}
    assert "record 7 quarantined" in said
    cursor = read_cursor(tmp_path / "outbox.sqlite", epoch)
    assert (cursor.acknowledged, cursor.counters["quarantined"]) == (40, 1)
    [line] = (tmp_path / "outbox.sqlite.quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["record"]["sequence"] == 7


@needs_mosquitto
def test_record_that_the_brokers_acl_refuses_is_kept_and_sent_when_it_may(tmp_path):
    acl = tmp_path / "acl"
    acl.write_text("topic read orin-inspect/#\ntopic write orin-inspect/v1/+/+/+/+/presence\n")
    acl.chmod(0o600)
    broker = configured_broker(tmp_path, f"acl_file {acl}")
    try:
        epoch = records_into(tmp_path, 5)
        write_station(tmp_path, broker.port)
        watch = Watch(broker.port)
        process = publisher_of(tmp_path)
        while b"refused (0x87)" not in (line := process.stderr.readline()):
            assert line
        assert b"/inspection; let the station write there in the broker's ACL" in line
        assert read_cursor(tmp_path / "outbox.sqlite", epoch).acknowledged == 0
        assert wait_until(
            lambda: (
                (way := read_status(tmp_path / "outbox.sqlite", PublisherHealth, fresh_s=5))
                and way.state == "away"
                and "refused (0x87): not authorised to publish to" in way.reason
            )
        )
        acl.write_text("topic readwrite orin-inspect/#\n")
        broker._process.send_signal(signal.SIGHUP)
        watch.until(lambda: set(watch.sequences()) == {1, 2, 3, 4, 5})
        states = [p.state for p in watch.of("presence")]
        stopped(process)
    finally:
        broker.stop()
    assert read_cursor(tmp_path / "outbox.sqlite", epoch).counters["refused"] >= 1
    assert states[:3] == ["online", "offline", "online"], "away while it waits to try again"


@pytest.mark.parametrize(
    ("broker", "words"),
    [
        ('username = "s1"\npassword_file = "secret"', "secret"),
        ('ca_file = "ca.pem"', "ca.pem"),
    ],
)
def test_missing_file_of_ours_is_named_before_there_is_anything_to_send(tmp_path, broker, words):
    station = station_from_toml(write_station(tmp_path, broker=broker))
    with pytest.raises(InputError, match=rf"{words}.*No such file"):
        run_publisher(station, Event())
    said = read_status(tmp_path / "outbox.sqlite", PublisherHealth, fresh_s=5)
    assert said.state == "stopped"
    assert words in said.reason


@needs_mosquitto
def test_refused_credentials_end_the_agent_with_status_2_and_no_secret(tmp_path):
    broker = configured_broker(tmp_path, password_for(tmp_path, "s1", "right"))
    try:
        records_into(tmp_path, 1)
        (tmp_path / "secret").write_text("wrong-s3cret\n")
        write_station(tmp_path, broker.port, broker='username = "s1"\npassword_file = "secret"')
        process = publisher_of(tmp_path)
        said = process.communicate(timeout=15)[1].decode()
        assert process.returncode == 2
        assert "user 's1'" in said
        assert "s3cret" not in said
        subscriber = Subscriber(BrokerAddress("127.0.0.1", broker.port, "s1", "wrong"))
        with pytest.raises(InputError, match="lets us in"):
            next(received_from(subscriber, Event(), wait_for_broker=True))
        (tmp_path / "secret").write_text("right\n")
        link = Link(BrokerAddress("127.0.0.1", broker.port, "s1", "right"), "w")
        link.open()
        link.close()
        process = publisher_of(tmp_path)
        while b"connected" not in process.stderr.readline():
            assert process.poll() is None
        stopped(process)
    finally:
        broker.stop()


def test_will_is_said_when_the_connection_is_cut(broker):
    topic = "orin-inspect/v1/a/b/c/d/presence"
    watch = Watch(broker.port)
    will = b'{"will":1}'
    link = Link(BrokerAddress("127.0.0.1", broker.port), "mortal", will=Will(topic, will))
    link.open()
    link._client.socket().close()
    watch.until(lambda: [m.payload for _, m in watch.heard] == [will])


def test_full_disk_under_the_cursor_is_no_loss(tmp_path, broker):
    epoch = records_into(tmp_path, 10)
    write_station(tmp_path, broker.port)
    cursor_path_of(tmp_path / "outbox.sqlite").with_name("outbox.sqlite.cursor.new").mkdir()
    watch = Watch(broker.port)
    process = publisher_of(tmp_path)
    watch.until(lambda: len(watch.sequences()) == 10)
    assert "could not be saved" in stopped(process)
    assert read_cursor(tmp_path / "outbox.sqlite", epoch) == Cursor(epoch, 0, {})
    (tmp_path / "outbox.sqlite.cursor.new").rmdir()
    write_cursor(tmp_path / "outbox.sqlite", Cursor(epoch, 4, {}))
    process = publisher_of(tmp_path)
    watch.until(lambda: len(watch.sequences()) == 16)
    stopped(process)


def configured_broker(folder, line) -> EmbeddedBroker:
    """Start Mosquitto with one more line of configuration."""
    (folder / "broker").mkdir()
    broker = EmbeddedBroker(free_port(), folder / "broker", "mosquitto")
    command = broker._command()
    config = Path(command[-1])
    text = config.read_text() + line + "\n"
    if line.startswith("password_file"):
        text = text.replace("allow_anonymous true", "allow_anonymous false")
    config.write_text(text)
    broker._command = lambda: command
    broker.start()
    return broker


def password_for(folder, user, password) -> str:
    tool = shutil.which("mosquitto_passwd") or "/usr/bin/mosquitto_passwd"
    path = folder / "users"
    subprocess.run([tool, "-b", "-c", path, user, password], check=True, capture_output=True)
    return f"password_file {path}"


def test_cut_and_half_open_links_cost_duplicates_and_nothing_else(tmp_path, broker):
    """Half open: the broker's answers vanish, and only the keepalive can tell."""
    epoch = records_into(tmp_path, 20)
    proxy = Proxy(broker.port)
    write_station(tmp_path, proxy.port, broker="keepalive_s = 1")
    watch = Watch(broker.port)
    process, outbox_path = publisher_of(tmp_path), tmp_path / "outbox.sqlite"
    try:
        watch.until(lambda: len(watch.sequences()) == 20)
        for mishap in ("cut", "half open", "cut"):
            with opened(tmp_path / "outbox.sqlite") as outbox:
                for _ in range(10):
                    outbox.append(inspection_for(outbox))
                last = outbox.next_sequence - 1
            if mishap == "cut":
                proxy.cut()
            proxy.answers_pass = mishap == "cut"
            while b"over:" not in (line := process.stderr.readline()):
                assert line
            proxy.answers_pass = True
            proxy.cut()  # whoever tried to connect meanwhile tries again
            watch.until(lambda last=last: read_cursor(outbox_path, epoch).acknowledged == last, 30)
        stopped(process)
    finally:
        proxy.close()
        process.kill()
    seen = list(dict.fromkeys(watch.sequences()))
    assert seen == list(range(1, 51)), "in order after de-duplication"


def test_inspector_and_publisher_share_nothing_but_the_outbox(tmp_path, broker):
    write_squares(tmp_path / "rec", [GOOD, BAD] * 20, rate=200)
    write_bundle(tmp_path / "bundle")
    # Room for all of them: on a busy machine a loop that is behind is no fault of this test.
    write_station(tmp_path, broker.port, source="[loop]\nqueue = 64")
    watch = Watch(broker.port)
    inspector = edge("agent", "inspector", "--station", tmp_path / "station.toml", stderr=-1)
    assert inspector.wait(20) == 0, inspector.stderr.read()
    process = publisher_of(tmp_path)
    watch.until(lambda: watch.sequences() == list(range(1, 41)))
    stopped(process)
    assert [i.decision for i in watch.of("inspection")] == ["pass", "fail"] * 20
