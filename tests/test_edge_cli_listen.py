"""`edge listen` against a real broker: what it shows, counts and survives."""

import io
import json
import os
import pty
import signal
import subprocess
import time

import msgspec
import pytest
from certificates import Authority, needs_openssl
from rich.console import Console
from small_station import edge, needs_broker, needs_mosquitto
from test_device_agents_consumer_ledger import OTHER, STATION, inspection
from test_device_agents_publisher_loop import configured_broker, password_for

from device_agents.broker import free_port, running_broker
from device_agents.consumer.ledger import Ledger
from device_agents.consumer.picture_folder import PictureFolder, safe_name
from device_agents.mqtt.address import BrokerAddress
from device_agents.mqtt.link import Link
from device_agents.mqtt.tls import Tls
from edge.cli.received import table_of
from edge.errors import EdgeError
from edge.examples import EXAMPLES
from edge.messages import Command, Health, Picture, Presence, encode
from edge.topics import ROOT, StationId, topic_of

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


def send(port, *messages, tls=None):
    """Publish (topic, payload) pairs and wait until the broker has them."""
    with Link(BrokerAddress("127.0.0.1", port, tls=tls), "sender") as link:
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
        (("mqtts://host",), "mqtts:// without --ca"),
        (("mqtt://host", "--ca", "ca.pem"), "mqtt:// with --ca"),
        (("mqtts://host", "--ca", "/nowhere.pem"), "/nowhere.pem"),
        (("mqtts://host", "--ca", "ca.pem", "--key", "k.pem"), "no --certificate"),
        (("mqtts://host", "--ca", "ca.pem", "--certificate", "c.pem"), "no --key"),
        (("mqtts://host", "--certificate", "c.pem", "--key", "k.pem"), "no --ca"),
        (("mqtt://[host",), "mqtt://HOST:PORT"),
        (("mqtt://host:0",), "mqtt://HOST:PORT"),
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


@needs_mosquitto
@needs_openssl
def test_listener_over_mutual_tls(tmp_path):
    authority = Authority(tmp_path)
    server, ours = authority.pair("server"), authority.pair("plant", password="k3y-s3cret")
    stranger = Authority(tmp_path, "stranger")
    lines = (
        *(f"certfile {server.certificate}", f"keyfile {server.key}"),
        *(f"cafile {authority.certificate}", "require_certificate true"),
    )
    (tmp_path / "secret").write_text("k3y-s3cret\n")
    broker = configured_broker(tmp_path, "\n".join(lines))
    url = f"mqtts://localhost:{broker.port}"
    who = ("--certificate", ours.certificate, "--key", ours.key)
    opened = (*who, "--key-password-file", tmp_path / "secret")
    try:
        process = listen(url, "--ca", authority.certificate, *opened, "--jsonl", "--count", 2)
        connected(process)
        files = (authority.certificate, ours.certificate, ours.key)
        send(broker.port, *inspections(1, 2), tls=Tls(*map(str, files), "k3y-s3cret"))
        status, out, said = ended(process)
        assert (status, len(out.splitlines())) == (0, 2)
        assert "s3cret" not in said
        # Whoever is not who they should be: the broker to us, we to the broker.
        for words, wrong in (
            (("--ca", stranger.certificate, *opened), "certificate"),
            (("--ca", authority.certificate, "--timeout", 3), "certificate"),
            (("--ca", authority.certificate, *who), "password"),
        ):
            status, out, said = ended(listen(url, *words, "--count", 1))
            assert status in (2, 3), words
            assert out == ""
            assert wrong in said
    finally:
        broker.stop()


def test_pictures_and_commands_are_shown_and_saved_under_safe_names(broker, tmp_path):
    hostile = Picture(
        station=STATION, inspection_id="../../e1-1\n", shows="image", data=b"x", media_type="a/b"
    )
    heat_map, none = (example.message for example in EXAMPLES["picture"])
    messages = [
        (topic_of(heat_map.station, "picture"), encode(heat_map)),
        (topic_of(none.station, "picture"), encode(none)),
        (topic_of(STATION, "picture"), encode(hostile)),
        (topic_of(STATION, "command"), encode(Command(request_id="r", inspection_id="e1-1"))),
        *inspections(1),
    ]
    folder = tmp_path / "deep" / "pictures"
    process = connected(listen(broker.url, "--jsonl", "--count", 1, "--pictures", folder))
    plain = connected(listen(broker.url, "--count", 1))
    send(broker.port, *messages)
    status, out, said = ended(process)
    assert status == 0
    assert "2 pictures saved" in said
    assert "3 pictures" in said
    lines = [json.loads(line) for line in out.splitlines()]
    kinds = ["picture", "picture", "picture", "command", "inspection"]
    assert [line["kind"] for line in lines] == kinds
    assert lines[3]["station"]["station"] == "s1", "which its message does not say"
    assert [line.get("data", "") for line in lines] == [""] * 5
    assert [line.get("data_bytes") for line in lines[:3]] == [len(heat_map.data), 0, 1]
    files = [line.get("file") for line in lines[:3]]
    assert files[1] is None
    place = folder / "plant-1" / "machining" / "line-3" / "spindle-check"
    assert files[0] == str(place / f"{heat_map.inspection_id}.heat_map.png")
    assert (place / f"{heat_map.inspection_id}.heat_map.png").read_bytes() == heat_map.data
    saved = [path for path in tmp_path.rglob("*") if path.is_file() and "broker" not in path.parts]
    assert sorted(map(str, saved)) == sorted([files[0], files[2]]), "nothing outside, no rest"
    status, out, _ = ended(plain)
    assert "heat_map of" in out
    assert "[not kept: a plain pass]" in out
    assert "is asked for image and heat_map of e1-1" in out


@pytest.mark.parametrize(
    "text", ["..", ".", "a/b", "a\\b", "", "\0", "ä", "x" * 201, ".hidden", "-rf"]
)
def test_name_from_the_network_is_one_safe_part_of_a_path(text, tmp_path):
    name = safe_name(text)
    assert (tmp_path / name).parent == tmp_path
    (tmp_path / name).write_bytes(b"")
    assert name != text
    assert name.isascii()
    assert name[0] not in ".-"
    assert name != safe_name(text + "x"), "two names do not fall together"


def test_pictures_end_at_their_limit_and_a_full_disk_is_said(tmp_path):
    folder = PictureFolder(tmp_path / "pictures", limit_bytes=20_000)
    pictures = [
        Picture(station=STATION, inspection_id=f"i{n}", shows="image", data=bytes(1_000))
        for n in range(10)
    ]
    assert [folder.save(picture) is not None for picture in pictures] == [True] * 3 + [False] * 7
    assert (folder.saved, folder.over_limit) == (3, 7)
    tiny = [msgspec.structs.replace(picture, data=b"x") for picture in pictures]
    assert [folder.save(picture) is not None for picture in tiny].count(True) == 1, "blocks count"
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EdgeError):
        PictureFolder(tmp_path / "file", 1 << 20).save(pictures[0])


def test_flood_of_anything_is_counted_and_survived(broker):
    process = connected(listen(broker.url, "--jsonl", "--count", 3))
    junk = [b"", b"\xff" * 100, b"{}", b"[" * 50_000, b'{"schema":1}', b"\0" * 70_000]
    places = [f"{ROOT}/a/b/c/d/{kind}" for kind in ("inspection", "health", "order", "picture")]
    flood = [(place, payload) for place in places for payload in junk] * 20
    flood += [(f"{ROOT}/a/b/c/s{n}/inspection", b"{}") for n in range(500)]
    for number in range(1, 4):
        send(broker.port, *flood, *inspections(number))
    status, out, said = ended(process)
    assert status == 0
    assert len(out.splitlines()) == 3
    assert f"{3 * len(flood)} payloads not understood" in said
    assert "3 inspections of 1 stations; 0 came twice, 0 missing" in said


@needs_mosquitto
def test_message_larger_than_any_of_ours_does_not_reach_the_listener(broker):
    process = connected(listen(broker.url, "--jsonl", "--count", 1))
    send(broker.port, (topic_of(STATION, "picture"), bytes(5 << 20)), *inspections(1))
    status, out, said = ended(process)
    assert (status, len(out.splitlines())) == (0, 1)
    assert "0 payloads not understood" in said, "the broker keeps it from us"
