"""A broker that dies forgets what it acknowledged; the station sends it again."""

import contextlib
import time
from queue import SimpleQueue
from threading import Event, Thread

import pytest
from small_station import Proxy, needs_mosquitto, write_station
from test_device_agents_outbox_writer import inspection_for, opened
from test_device_agents_publisher_loop import records_into

from device_agents.broker import running_broker
from device_agents.consumer.listener import Subscriber, received_from
from device_agents.mqtt.address import BrokerAddress
from device_agents.outbox.cursor import read_cursor
from device_agents.outbox.reader import OutboxReader
from device_agents.publisher import records_out
from device_agents.publisher.loop import Publisher
from device_agents.publisher.way_status import WayStatus
from device_agents.station import station_from_toml
from edge.messages import Inspection, decode

RECORDS = 300


def heard_by(port, seconds, enough=RECORDS) -> list[int]:
    """Be the consumer with a queue at the broker, until it has `enough` or the time is over."""
    subscriber = Subscriber(BrokerAddress("127.0.0.1", port), "judge", 600)
    stop, sequences, until_s = Event(), [], time.monotonic() + seconds
    for message in received_from(subscriber, stop, wait_for_broker=True):
        if message is not None and message.topic.endswith("/inspection"):
            sequences.append(decode(message.payload, Inspection).sequence)
        if len(set(sequences)) >= enough or time.monotonic() > until_s:
            stop.set()
    return sequences


def until(condition, seconds=15):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.005)


@contextlib.contextmanager
def publishing(folder, port, broker):
    """The publisher in this process, in a thread of its own."""
    station = station_from_toml(write_station(folder, port, broker=broker))
    outbox, made, stop = folder / "outbox.sqlite", SimpleQueue(), Event()

    def live():  # SQLite's objects stay in the thread that made them
        publisher = Publisher(station, OutboxReader.open(outbox), WayStatus(outbox), lambda _: None)
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


@needs_mosquitto
def test_killed_broker_that_forgot_is_told_again(tmp_path):
    """The consumer is away, so the records are in the broker's memory alone when it dies."""
    outbox = tmp_path / "outbox.sqlite"
    with running_broker(tmp_path / "broker", kind="mosquitto") as broker:
        heard_by(broker.port, 0.5)
        time.sleep(2.5)  # until the broker has saved that there is such a consumer
        epoch = records_into(tmp_path, RECORDS)
        with publishing(tmp_path, broker.port, "resend_s = 4\nkeepalive_s = 2") as publisher:
            until(lambda: publisher._records.acknowledged == RECORDS)
            broker.stop(kill=True)
            assert read_cursor(outbox, epoch).acknowledged == 0, "the inspector must not delete yet"
            broker.start()
            sequences = heard_by(broker.port, 20)
            until(lambda: read_cursor(outbox, epoch).acknowledged == RECORDS)
    assert publisher.counters["sent_again"] == RECORDS
    assert list(dict.fromkeys(sequences)) == list(range(1, RECORDS + 1)), "in order, none missing"


@needs_mosquitto
@pytest.mark.parametrize("noticed_by", ["the keepalive", "records that wait for their answer"])
def test_broker_that_falls_silent_ripens_nothing_and_is_told_again(
    tmp_path, monkeypatch, noticed_by
):
    """Its power is cut: no RST comes, and the silence is longer than `resend_s`."""
    resend_s, settings = 1.0, "resend_s = 1.0\nkeepalive_s = 1"
    if noticed_by != "the keepalive":
        monkeypatch.setattr(records_out, "_STALLED_S", 1.5)
        settings = "resend_s = 1.0\nkeepalive_s = 60"
    outbox, epoch = tmp_path / "outbox.sqlite", records_into(tmp_path, 20)
    with running_broker(tmp_path / "broker", kind="mosquitto") as broker:
        proxy = Proxy(broker.port)
        try:
            with publishing(tmp_path, proxy.port, settings) as publisher:
                until(lambda: publisher._records.acknowledged == 20)
                proxy.answers_pass = False
                silent_s = time.monotonic()
                with opened(outbox) as inspector:
                    assert inspector.append(inspection_for(inspector))
                until(lambda: publisher.counters.get("sent_again", 0))
                assert time.monotonic() - silent_s > resend_s, "else our clock was not put to test"
                assert publisher.counters["sent_again"] == 20
                assert read_cursor(outbox, epoch).acknowledged == 0, "the rows must stay"
                proxy.answers_pass = True
                proxy.cut()
                until(lambda: publisher._records.acknowledged == 21, 30)
        finally:
            proxy.close()


@needs_mosquitto
def test_idle_station_moves_its_cursor_by_the_answers_to_its_pings(tmp_path):
    outbox, epoch = tmp_path / "outbox.sqlite", records_into(tmp_path, 20)
    with running_broker(tmp_path / "broker", kind="mosquitto") as broker:  # noqa: SIM117
        with publishing(tmp_path, broker.port, "resend_s = 1.5\nkeepalive_s = 1") as publisher:
            until(lambda: publisher._records.acknowledged == 20)
            until(lambda: read_cursor(outbox, epoch).acknowledged == 20)
    assert "sent_again" not in publisher.counters


@needs_mosquitto
def test_clean_leave_sends_nothing_again_while_it_lasts(tmp_path):
    records_into(tmp_path, 20)
    with running_broker(tmp_path / "broker", kind="mosquitto") as broker:  # noqa: SIM117
        with publishing(tmp_path, broker.port, "resend_s = 60") as publisher:
            until(lambda: publisher._records.acknowledged == 20)
    assert "sent_again" not in publisher.counters
    assert publisher._records.acknowledged == 20
