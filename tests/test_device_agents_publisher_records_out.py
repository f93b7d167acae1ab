"""The records' way out without a network: what becomes of failed parts, and an unreadable file."""

import os
import sqlite3
import stat
from types import SimpleNamespace

import pytest
from small_station import needs_broker, write_station
from test_device_agents_outbox_writer import inspection_for, opened
from test_device_agents_publisher_loop import Watch, publisher_of, records_into, stopped
from test_device_agents_publisher_wishes import status_of, until

from device_agents.broker import running_broker
from device_agents.outbox.reader import OutboxReader
from device_agents.publisher.picture_desk import MOST_BY_RULE
from device_agents.publisher.quarantine import put_aside, quarantine_path_of
from device_agents.publisher.records_out import RecordsOut
from device_agents.station import station_from_toml


class Paper:
    """A link to nowhere: every message is taken and gets a number."""

    largest_packet_bytes = None
    send_at_once = 65_535
    heard_s = 1.0

    def __init__(self) -> None:
        self.last_id = 0

    def publish(self, *_, **__) -> int:
        self.last_id += 1
        return self.last_id


@pytest.fixture
def way_of(tmp_path):
    """Make the way out of an outbox of so many failed parts, whose pictures go out by rule."""

    def make(count) -> RecordsOut:
        records_into(tmp_path, count)
        path = write_station(tmp_path)
        path.write_text(path.read_text() + '\n[pictures]\npublish = "fail"\n')
        reader = OutboxReader.open(tmp_path / "outbox.sqlite")
        records = RecordsOut(station_from_toml(path), reader)
        records.begin()
        return records

    return make


def test_failed_parts_of_a_long_backlog_are_bounded_and_what_is_dropped_counted(way_of):
    """No picture leaves while records wait, so nobody takes their names for hours."""
    records, link, more = way_of(MOST_BY_RULE + 30), Paper(), 30
    while records.send(link, 20):
        pass
    for message_id in range(1, link.last_id + 1):
        assert not records.settle(message_id, 0)
    taken = records.take_failed()
    assert len(taken) == MOST_BY_RULE
    assert records.counters["pictures_dropped"] == more
    assert taken[0].endswith(f"-{more + 1}"), "the newest stay"
    assert records.take_failed() == []


def test_picture_of_a_record_that_was_refused_for_good_is_not_sent(way_of):
    records, link = way_of(3), Paper()
    records.send(link, 3)
    for message_id, code in ((1, 0), (2, 0x99), (3, 0x10)):
        assert not records.settle(message_id, code)
    assert [name[-2:] for name in records.take_failed()] == ["-1", "-3"]
    assert records.counters["quarantined"] == 1


def test_records_refused_for_rights_name_the_acl_and_do_not_fill_the_log(way_of, caplog):
    records, link = way_of(40), Paper()
    records.send(link, 40)
    for message_id in range(1, 40):
        assert records.settle(message_id, 0x87)
    said = [text for text in caplog.messages if "refused" in text]
    assert len(said) == 10
    topic = "orin-inspect/v1/north/milling/l1/s1/inspection"
    assert said[0].startswith(f"record 1 refused (0x87): not authorised to publish to {topic};")
    assert f"ACL (Mosquitto: topic write {topic})" in said[0]
    assert records.counters["refused"] == 39
    # Once one got through, the next refusal is news again.
    assert not records.settle(40, 0)
    assert records.settle(1, 0x97)
    assert "quota" in caplog.messages[-1]


def test_outbox_that_cannot_be_read_is_named_and_forgotten_when_it_can(way_of, tmp_path):
    records, link = way_of(2), Paper()
    db = sqlite3.connect(tmp_path / "outbox.sqlite", isolation_level=None)
    for _ in range(2):  # the same fault a second time is news again
        db.execute("ALTER TABLE outbox RENAME TO gone")
        assert records.send(link, 1) == 0
        assert "the outbox cannot be read: no such table" in records.read_fault
        db.execute("ALTER TABLE gone RENAME TO outbox")
        assert records.send(link, 1) == 1
        assert records.read_fault == ""
        records._ahead.clear()  # what was read ahead would hide the next fault
    db.close()


@needs_broker
def test_unreadable_outbox_stands_in_the_publishers_status(tmp_path):
    with running_broker(tmp_path / "broker") as broker:
        records_into(tmp_path, 2)
        write_station(tmp_path, broker.port)
        watch, process = Watch(broker.port), publisher_of(tmp_path)
        watch.until(lambda: watch.sequences() == [1, 2])
        db = sqlite3.connect(tmp_path / "outbox.sqlite", isolation_level=None)
        db.execute("ALTER TABLE outbox RENAME TO gone")
        health = until(lambda: (s := status_of(tmp_path)) and s.reason and s)
        db.execute("ALTER TABLE gone RENAME TO outbox")
        db.close()
        until(lambda: (s := status_of(tmp_path)) and not s.reason)
        with opened(tmp_path / "outbox.sqlite") as outbox:
            assert outbox.append(inspection_for(outbox))
        watch.until(lambda: watch.sequences() == [1, 2, 3])
        said = stopped(process)
    assert health.state == "connected"
    assert "the outbox cannot be read" in health.reason
    assert "the outbox can be read again" in said


def test_quarantined_record_and_its_file_are_on_the_disk_before_the_cursor_moves(
    tmp_path, monkeypatch
):
    flushed, fsync = [], os.fsync

    def noted(file):
        found = os.fstat(file)
        flushed.append(("folder" if stat.S_ISDIR(found.st_mode) else "file", found.st_size))
        fsync(file)

    monkeypatch.setattr(os, "fsync", noted)
    outbox = tmp_path / "outbox.sqlite"
    put_aside(outbox, 1, "too large", b"{}")
    first = quarantine_path_of(outbox).stat().st_size
    assert [kind for kind, _ in flushed] == ["file", "folder"], "its name too, where it is new"
    assert flushed[0][1] == first, "all of it was there to be flushed"
    put_aside(outbox, 2, "too large", b"{}")
    assert flushed[2:] == [("file", 2 * first)]


def test_refused_record_is_aside_before_it_is_settled(way_of, monkeypatch):
    records, link, seen = way_of(1), Paper(), []

    def put(outbox, sequence, why, payload):
        seen.append(SimpleNamespace(sequence=sequence, cursor=records.acknowledged))

    monkeypatch.setattr("device_agents.publisher.records_out.put_aside", put)
    link.largest_packet_bytes = 100
    records.send(link, 1)
    assert seen == [SimpleNamespace(sequence=1, cursor=0)]
    assert records.acknowledged == 1
