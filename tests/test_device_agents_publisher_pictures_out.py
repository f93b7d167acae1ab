"""Commands in, pictures out, through a real broker: answered, bounded, and never in the way."""

import contextlib
import io
import threading
import time
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Thread

import numpy as np
import pytest
from PIL import Image
from small_station import needs_mosquitto, write_station
from test_device_agents_outbox_writer import STATION, inspection_for, opened
from test_device_agents_publisher_loop import Watch, configured_broker, publisher_of, stopped

from device_agents.broker import running_broker
from device_agents.outbox.cursor import read_cursor
from device_agents.outbox.kept import KeptPictures
from device_agents.outbox.kept_part import KeptPart
from device_agents.outbox.reader import OutboxReader
from device_agents.publisher.commands import MOST_WAITING
from device_agents.publisher.loop import Publisher
from device_agents.publisher.picture_desk import MOST_BY_RULE, PictureDesk
from device_agents.publisher.way_status import WayStatus
from device_agents.station import Pictures, station_from_toml
from edge.messages import Command, Picture, decode, encode
from edge.topics import topic_of

pytestmark = needs_mosquitto


@dataclass
class Part:
    """What `device_agents.outbox.kept` would have."""

    pixels: np.ndarray | None
    heat_map: np.ndarray | None


def noisy_part(size=(96, 128)) -> Part:
    random = np.random.default_rng(7)
    pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
    return Part(pixels, np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8))


@pytest.fixture
def broker(tmp_path):
    with running_broker(tmp_path / "broker", kind="mosquitto") as running:
        yield running


def records_into(folder, decisions: str) -> str:
    names = {"p": "pass", "f": "fail"}
    with opened(folder / "outbox.sqlite") as outbox:
        for letter in decisions:
            assert outbox.append(inspection_for(outbox, names[letter]))
        return outbox.epoch


@contextlib.contextmanager
def publishing(folder, port, read, pictures=""):
    """The publisher in this process, with `read` in the place of the kept pictures."""
    path = write_station(folder, port)
    path.write_text(path.read_text() + f"\n[pictures]\n{pictures}\n")
    outbox, stop, made = folder / "outbox.sqlite", Event(), SimpleQueue()
    station = station_from_toml(path)

    def live() -> None:  # SQLite's objects stay in the thread that made them
        publisher = Publisher(station, OutboxReader.open(outbox), WayStatus(outbox), read)
        made.put(publisher)
        publisher.run(stop)

    thread = Thread(target=live)
    thread.start()
    try:
        yield made.get(timeout=10)
    finally:
        stop.set()
        thread.join(10)
        assert not thread.is_alive()


def ask(watch, *commands, retain=False):
    for command in commands:
        payload = command if isinstance(command, bytes) else encode(command)
        watch.link.publish(topic_of(STATION, "command"), payload, qos=1, retain=retain)


def pictures(watch) -> list[Picture]:
    return [decode(m.payload, Picture) for kind, m in watch.heard if kind == "picture"]


def online(watch):
    return watch.until(lambda: watch.of("health"))


def test_command_is_answered_with_the_pictures_that_were_kept(tmp_path, broker):
    epoch = records_into(tmp_path, "pf")
    part = noisy_part()
    kept = {f"{epoch}-2": part}
    watch = Watch(broker.port)
    with publishing(tmp_path, broker.port, kept.get) as publisher:
        online(watch)
        ask(watch, Command(request_id="r1", inspection_id=f"{epoch}-2"))
        ask(watch, Command(request_id="r2", inspection_id=f"{epoch}-2", want=("heat_map",)))
        ask(watch, Command(request_id="r3", inspection_id=f"{epoch}-99", want=("image",)))
        watch.until(lambda: len(pictures(watch)) == 4)
        watch.until(lambda: publisher.counters.get("pictures_published") == 4)
    found = pictures(watch)
    assert [(p.request_id, p.shows, bool(p.data)) for p in found] == [
        ("r1", "image", True),
        ("r1", "heat_map", True),
        ("r2", "heat_map", True),
        ("r3", "image", False),
    ]
    assert found[3].reason == "no image was kept"
    assert Image.open(io.BytesIO(found[0].data)).size == (128, 96)
    assert publisher.counters["commands_answered"] == 3
    assert watch.sequences() == [1, 2]


def test_station_that_may_send_inspections_alone_says_what_else_is_refused(tmp_path, caplog):
    acl = tmp_path / "acl"
    acl.write_text("topic read orin-inspect/#\ntopic write orin-inspect/v1/+/+/+/+/inspection\n")
    acl.chmod(0o600)
    broker = configured_broker(tmp_path, f"acl_file {acl}")
    try:
        records_into(tmp_path, "pf")
        watch, part = Watch(broker.port), noisy_part()
        with publishing(tmp_path, broker.port, lambda _: part, 'publish = "fail"') as publisher:
            watch.until(lambda: publisher.counters.get("pictures_refused") == 2)
            watch.until(lambda: watch.sequences() == [1, 2])
    finally:
        broker.stop()
    for kind in ("presence", "picture"):
        said = f"{kind} refused (0x87): not authorised to publish to {topic_of(STATION, kind)};"
        assert any(text.startswith(said) for text in caplog.messages), caplog.messages
    assert publisher.counters["published"] == 2, "records go all the same"


def test_hostile_bytes_on_the_command_topic_are_counted_and_survived(tmp_path, broker):
    epoch = records_into(tmp_path, "f")
    hostile = [b"", b"\x00" * 300, b"{" * 3000, b'{"schema":1}', b"\xff\xfe", b"x" * 7000]
    watch, random = Watch(broker.port), np.random.default_rng(3)
    hostile += [random.bytes(int(n)) for n in random.integers(1, 3000, 50)]
    kept = {f"{epoch}-1": noisy_part()}
    with publishing(tmp_path, broker.port, kept.get) as publisher:
        online(watch)
        ask(watch, Command(request_id="old", inspection_id=f"{epoch}-1"), retain=True)
        ask(watch, *hostile)
        watch.until(lambda: publisher.counters.get("commands_refused", 0) >= len(hostile))
        ask(watch, Command(request_id="r", inspection_id=f"{epoch}-1", want=("image",)))
        watch.until(lambda: [p for p in pictures(watch) if p.request_id == "r"])
        # More than the broker may send us at all: dropped there, the link stands.
        ask(watch, b"x" * 50_000)
        watch.until(lambda: watch.of("health")[-1].counters.get("commands_refused", 0) > 50)
    assert publisher.counters.get("connections_lost", 0) == 0
    # The retained one came live first, and was answered; a new connection gets it as retained.
    late = Watch(broker.port)
    before = publisher.counters["commands_refused"]
    with publishing(tmp_path, broker.port, kept.get) as publisher:
        late.until(lambda: publisher.counters["commands_refused"] == before + 1)
    assert not [p for p in pictures(late) if p.request_id == "old"]


def test_more_commands_than_may_wait_are_refused_and_counted(tmp_path, broker):
    epoch = records_into(tmp_path, "f")
    gate, part = threading.Event(), noisy_part()

    def slow(_):
        gate.wait(10)
        return part

    watch, many = Watch(broker.port), 3 * MOST_WAITING
    with publishing(tmp_path, broker.port, slow) as publisher:
        online(watch)
        for number in range(many):
            ask(watch, Command(request_id=str(number), inspection_id="e-1", want=("image",)))
        # One is being worked on while the others wait.
        watch.until(lambda: publisher.counters.get("commands_refused") == many - MOST_WAITING - 1)
        with opened(tmp_path / "outbox.sqlite") as outbox:  # the loop goes on meanwhile
            outbox.append(inspection_for(outbox))
        watch.until(lambda: watch.sequences() == [1, 2])
        gate.set()
        watch.until(lambda: len(pictures(watch)) == MOST_WAITING + 1)
    assert [p.request_id for p in pictures(watch)] == [str(n) for n in range(MOST_WAITING + 1)]
    assert read_cursor(tmp_path / "outbox.sqlite", epoch).acknowledged == 2


def test_failed_parts_send_their_pictures_by_rule_after_their_inspection(tmp_path, broker):
    """The second one's picture is written late, the third was never kept."""
    epoch = records_into(tmp_path, "pfpf")
    kept, began_s = {f"{epoch}-2": noisy_part()}, time.monotonic()

    def read(inspection_id):
        if time.monotonic() - began_s > 1.0:
            kept[f"{epoch}-4"] = Part(noisy_part().pixels, None)
        return kept.get(inspection_id)

    watch = Watch(broker.port)
    with publishing(tmp_path, broker.port, read, 'publish = "fail"') as publisher:
        watch.until(lambda: len(pictures(watch)) == 3)
        watch.until(lambda: publisher.counters.get("pictures_published") == 3)
    assert [(p.inspection_id, p.shows, p.request_id) for p in pictures(watch)] == [
        (f"{epoch}-2", "image", ""),
        (f"{epoch}-2", "heat_map", ""),
        (f"{epoch}-4", "image", ""),
    ]
    kinds = [kind for kind, _ in watch.heard if kind in ("inspection", "picture")]
    assert kinds == ["inspection"] * 4 + ["picture"] * 3, "inspections first"


def test_pictures_that_the_inspector_kept_are_what_the_plant_gets(tmp_path, broker):
    """Two processes and the folder between them, as in life."""
    outbox, part = tmp_path / "outbox.sqlite", noisy_part((240, 320))
    flat = np.full_like(part.pixels, (200, 30, 30))
    with opened(outbox) as writer:
        inspection = inspection_for(writer, "fail")
        assert writer.append(inspection)
    kept = KeptPictures.open(outbox, Pictures())
    assert kept.keep(KeptPart(inspection, flat, part.heat_map, None, ("fail",)))
    path = write_station(tmp_path, broker.port)
    path.write_text(path.read_text() + '\n[pictures]\npublish = "fail"\n')
    watch = Watch(broker.port)
    process = publisher_of(tmp_path)
    watch.until(lambda: len(pictures(watch)) == 2)
    ask(watch, Command(request_id="r", inspection_id=inspection.inspection_id, want=("image",)))
    watch.until(lambda: len(pictures(watch)) == 3)
    stopped(process)
    unasked, heat, asked = pictures(watch)
    assert [p.request_id for p in (unasked, heat, asked)] == ["", "", "r"]
    assert unasked.data == asked.data
    shown = np.asarray(Image.open(io.BytesIO(asked.data))).astype(int)
    assert np.abs(shown - flat).max() < 12
    levels = np.asarray(Image.open(io.BytesIO(heat.data))) / 255.0
    np.testing.assert_allclose(levels, part.heat_map, atol=0.005)


def test_no_picture_goes_by_rule_where_the_station_did_not_ask(tmp_path, broker):
    epoch = records_into(tmp_path, "ff")
    watch = Watch(broker.port)
    with publishing(tmp_path, broker.port, {f"{epoch}-1": noisy_part()}.get) as publisher:
        watch.until(lambda: len(watch.of("health")) == 3)
    assert pictures(watch) == []
    assert publisher.counters["published"] == 2


@pytest.mark.parametrize("limit", ["max_packet_size 6000", "message_size_limit 6000"])
def test_pictures_stay_below_what_the_broker_takes(tmp_path, limit):
    """Announced: made to fit. Not announced: the broker hangs up once, and no record is blamed."""
    broker = configured_broker(tmp_path, limit)
    try:
        epoch = records_into(tmp_path, "fp")
        kept = {f"{epoch}-1": noisy_part((480, 640))}
        watch = Watch(broker.port)
        cap = "max_message_bytes = 20000"
        with publishing(tmp_path, broker.port, kept.get, cap) as publisher:
            online(watch)
            number = 0
            while not [p for p in pictures(watch) if p.data]:
                number += 1
                wanted = Command(
                    request_id=str(number), inspection_id=f"{epoch}-1", want=("image",)
                )
                ask(watch, wanted)
                seen = len(watch.of("health"))
                watch.until(lambda seen=seen: len(watch.of("health")) > seen + 2)
            with opened(tmp_path / "outbox.sqlite") as outbox:
                outbox.append(inspection_for(outbox))
            watch.until(lambda: set(watch.sequences()) == {1, 2, 3})
    finally:
        broker.stop()
    first = next(p for p in pictures(watch) if p.data)
    assert first.reason.startswith("made smaller to fit")
    assert publisher.counters.get("quarantined", 0) == 0
    lost = publisher.counters.get("connections_lost", 0)
    assert lost == 0 if limit.startswith("max_packet") else 1 <= lost <= 3


def test_broken_picture_file_is_counted_and_the_next_command_answered(tmp_path, broker):
    epoch = records_into(tmp_path, "f")
    part = noisy_part()

    def read(inspection_id):
        if inspection_id == "broken-1":
            raise ValueError("not a picture")
        return part

    watch = Watch(broker.port)
    with publishing(tmp_path, broker.port, read) as publisher:
        online(watch)
        ask(watch, Command(request_id="a", inspection_id="broken-1", want=("image",)))
        ask(watch, Command(request_id="b", inspection_id=f"{epoch}-1", want=("image",)))
        watch.until(lambda: pictures(watch))
    assert [p.request_id for p in pictures(watch)] == ["b"]
    assert publisher.counters["pictures_failed"] == 1


def test_pictures_by_rule_are_bounded_and_the_newest_stay():
    counts: list[str] = []
    desk = PictureDesk(STATION, lambda _: noisy_part((8, 8)), counts.append)
    for number in range(MOST_BY_RULE + 5):
        desk.send_unasked(f"e-{number}")
    deadline, first = time.monotonic() + 10, None
    while first is None:
        assert time.monotonic() < deadline
        first = desk.next_message(1 << 20)
    desk.close()
    assert counts == ["pictures_dropped"] * 5
    assert decode(first, Picture).inspection_id == "e-5"
