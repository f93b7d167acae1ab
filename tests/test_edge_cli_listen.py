"""`edge listen` against a real broker: what it shows, counts and survives."""

import io
import json
import os
import pty
import signal
import subprocess
import time

import pytest
from rich.console import Console
from small_station import edge, needs_broker, needs_mosquitto
from test_device_agents_ledger import OTHER, STATION, inspection
from test_device_agents_publisher import configured_broker, password_for

from device_agents.broker import free_port, running_broker
from device_agents.ledger import Ledger
from device_agents.mqtt_link import BrokerAddress, Link
from edge.cli.listen import table_of
from edge.messages import Health, Presence, encode
from edge.topics import StationId, topic_of

pytestmark = needs_broker
TOPIC = topic_of(STATION, "inspection")


@pytest.fixture
def broker(tmp_path):
    with running_broker(tmp_path / "broker") as running:
        yield running


def listen(url, *words, **options):
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return edge("listen", "--broker", url, *words, **given)


def connected(process):
    """Wait until it listens."""
    while b"connected" not in (line := process.stderr.readline()):
        assert line, "it ended before it was connected"
    return process


def ended(process, seconds=20) -> tuple[int, str, str]:
    out, said = process.communicate(timeout=seconds)
    assert b"Traceback" not in said, said.decode()
    return process.returncode, out.decode(), said.decode()


def send(port, *messages):
    """Publish (topic, payload) pairs and wait until the broker has them."""
    with Link(BrokerAddress("127.0.0.1", port), "sender") as link:
        link.open()
        waiting = {link.publish(topic, payload, qos=1) for topic, payload in messages}
        deadline = time.monotonic() + 10
        while waiting and time.monotonic() < deadline:
            link.step(0.05)
            waiting -= {message_id for message_id, _ in link.take_acknowledged()}
        assert not waiting


def inspections(*sequences, **fields):
    return [(TOPIC, encode(inspection(sequence, **fields))) for sequence in sequences]


def test_jsonl_gives_each_inspection_once_and_counts_the_rest(broker):
    process = connected(listen(broker.url, "--jsonl", "--count", 4))
    send(
        broker.port,
        (TOPIC, b"\xff not a message"),
        (f"{TOPIC}/deeper", b"not even our topic"),
        (topic_of(STATION, "presence"), encode(Presence(station=STATION, state="online"))),
        *inspections(1, 2, 2, 1, 4),
        (TOPIC, json.dumps({"schema": 2, "inspection_id": "x"}).encode()),
        *inspections(5),
    )
    status, out, said = ended(process)
    assert status == 0
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["kind"] for line in lines] == ["presence", *["inspection"] * 4]
    assert [line["sequence"] for line in lines[1:]] == [1, 2, 4, 5]
    assert (
        "4 inspections of 1 stations; 2 came twice, 1 missing, 0 out of order, 2 payloads" in said
    )
    assert "schema 1 expected, found 2" in said


def test_plain_lines_cannot_steer_the_terminal(broker):
    process = connected(listen(broker.url, "--count", 2))
    health = Health(
        station=STATION, station_epoch="e", sent_at="", outbox_depth=7, counters={"pass": 3}
    )
    send(
        broker.port,
        (topic_of(STATION, "health"), encode(health)),
        *inspections(1, sample_id="\x1b[2J\x1b]0;owned\x07part"),
        *inspections(2, decision="fail", reason="two\nlines"),
    )
    status, out, _ = ended(process)
    assert status == 0
    assert "\x1b" not in out
    assert "health: 7 waiting; pass 3" in out
    assert "#2 p2 fail 0.100 (threshold 0.500) [two?lines]" in out


def test_live_table_shows_stations_on_a_terminal(broker):
    screen, terminal = pty.openpty()
    environment = {"TERM": "xterm", "COLUMNS": "160", "LINES": "40"}
    os.environ.update(environment)
    process = listen(broker.url, "--count", 3, stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = b""
    while b"connected" not in shown:
        shown += os.read(screen, 10_000)
    send(
        broker.port,
        *inspections(1, 3, decision="fail"),
        (topic_of(OTHER, "inspection"), encode(inspection(9, station=OTHER, sample_id="[bold]"))),
    )
    try:
        while chunk := os.read(screen, 10_000):
            shown += chunk
    except OSError:  # the terminal is closed: the command ended
        pass
    assert process.wait(10) == 0
    text = shown.decode(errors="replace")
    assert "north/milling/l1/s1" in text
    assert "north/milling/l1/s2" in text
    assert "[bold]" in text, "markup from the network is text"
    assert "3 inspections of 2 stations" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("width", [80, 109, 110, 160])
def test_table_can_be_read_at_any_usual_width(width):
    ledger = Ledger()
    far = StationId("north-plant", "milling", "line-07", "a-station-with-a-long-name")
    scored = {"decision": "fail", "label": "scratch", "sample_id": "[bold]_" + "long" * 9}
    for station, count in ((STATION, 1_200), (OTHER, 3), (far, 2)):
        for sequence in range(1, count + 1):
            message = inspection(sequence, station=station, **scored)
            assert ledger.take(topic_of(station, "inspection"), encode(message)) is not None
        presence = encode(Presence(station=station, state="offline"))
        ledger.take(topic_of(station, "presence"), presence)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table_of(ledger, width))
    lines = console.export_text().splitlines()
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    head = next(line for line in lines if "station" in line and "verdict" in line)
    for word in ("station", "presence", "pass", "fail", "invalid", "last verdict"):
        assert word in head
    assert ("waiting" in head) == (width >= 110)
    for line in lines:
        if "offline" in line:
            assert "north" in line
            assert "fail scratch" in line
    assert "1200" in text
    assert "[bold]" in text or width < 160, "markup from the network is text"
    names = "".join(line.split("│")[1].strip() for line in lines if line[:1] == "│")
    assert names == f"{STATION}{OTHER}{far}", "folded where it must be, never cut"


def test_broker_that_is_not_there_is_status_3_or_waited_for(tmp_path):
    port = free_port()
    status, _, said = ended(listen(f"mqtt://127.0.0.1:{port}"))
    assert status == 3
    assert "expected an MQTT 5 broker" in said
    process = listen(f"mqtt://127.0.0.1:{port}", "--wait", "--count", 1)
    assert b"expected an MQTT 5 broker" in process.stderr.readline()
    with running_broker(tmp_path / "broker", port):
        connected(process)
        send(port, *inspections(1))
        assert ended(process)[0] == 0


def test_time_is_up_before_the_count(broker):
    status, _, said = ended(listen(broker.url, "--count", 5, "--timeout", 0.5))
    assert status == 1
    assert "expected 5 inspections, found 0" in said
    assert ended(listen(broker.url, "--timeout", 0.2))[0] == 0
    port = free_port()
    absent = listen(f"mqtt://127.0.0.1:{port}", "--wait", "--count", 1, "--timeout", 0.5)
    assert ended(absent)[0] == 1, "the time is kept while waiting for a broker too"


def test_ctrl_c_ends_with_the_summary(broker):
    process = connected(listen(broker.url))
    send(broker.port, *inspections(1))
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    status, _, said = ended(process)
    assert status == 0
    assert "1 inspections of 1 stations" in said


def test_what_came_while_the_listener_was_away_is_kept_for_it(broker):
    named = ("--jsonl", "--client-id", "judge")
    assert ended(listen(broker.url, *named, "--timeout", 0.5))[0] == 0
    send(broker.port, *inspections(*range(1, 51)))
    status, out, _ = ended(listen(broker.url, *named, "--count", 50, "--timeout", 15))
    assert status == 0
    assert [json.loads(line)["sequence"] for line in out.splitlines()] == list(range(1, 51))
    status, out, _ = ended(listen(broker.url, *named, "--timeout", 0.7))
    assert out == "", "acknowledged to the last one"


@needs_mosquitto
def test_listener_that_is_killed_misses_nothing(broker):
    named = ("--jsonl", "--client-id", "judge")
    process = connected(listen(broker.url, *named))
    send(broker.port, *inspections(*range(1, 31)))
    first = [json.loads(process.stdout.readline())["sequence"] for _ in range(10)]
    process.kill()
    rest = process.stdout.read().splitlines()
    process.wait()
    first += [json.loads(line)["sequence"] for line in rest]
    send(broker.port, *inspections(*range(31, 61)))
    process = listen(broker.url, *named, "--timeout", 2)
    second = [json.loads(line)["sequence"] for line in ended(process)[1].splitlines()]
    assert set(first) | set(second) == set(range(1, 61))


@needs_mosquitto
def test_listener_comes_back_after_a_broker_restart(broker):
    process = connected(listen(broker.url, "--jsonl", "--client-id", "judge", "--count", 2))
    send(broker.port, *inspections(1))
    broker.stop()
    broker.start()
    send(broker.port, *inspections(2))
    status, _, said = ended(process)
    assert status == 0
    assert "session resumed" in said


@needs_mosquitto
def test_refused_credentials_are_status_2(tmp_path):
    broker = configured_broker(tmp_path, password_for(tmp_path, "plant", "right"))
    try:
        assert ended(listen(broker.url))[0] == 2
        (tmp_path / "secret").write_text("wr0ng")
        words = ("--username", "plant", "--password-file", tmp_path / "secret")
        status, _, said = ended(listen(broker.url, *words, "--wait"))
        assert status == 2
        assert "user 'plant'" in said
        assert "wr0ng" not in said
        (tmp_path / "secret").write_text("right")
        assert ended(listen(broker.url, *words, "--timeout", 0.3))[0] == 0
    finally:
        broker.stop()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("mqtt://u:s3cret@host",), "a password in it"),
        (("mqtts://host",), "mqtt://HOST:PORT"),
        (("http://host:1883",), "mqtt://HOST:PORT"),
        (("mqtt://host:99999",), "mqtt://HOST:PORT"),
        (("mqtt://",), "mqtt://HOST:PORT"),
        (("mqtt://host", "--session-expiry", "60"), "--client-id beside it"),
        (("mqtt://host", "--password-file", "/nowhere"), "/nowhere"),
    ],
)
def test_impossible_address_or_option_is_status_2(words, found):
    status, out, said = ended(listen(*words))
    assert (status, out) == (2, "")
    assert found in said
    assert "s3cret" not in said
