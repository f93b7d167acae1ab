"""A broker killed with kill -9 forgets what it acknowledged; the station sends it again."""

import time
from queue import SimpleQueue
from threading import Event, Thread

from small_station import needs_mosquitto, write_station
from test_device_agents_publisher_loop import records_into

from device_agents.broker import running_broker
from device_agents.consumer.listener import Subscriber, received_from
from device_agents.mqtt.address import BrokerAddress
from device_agents.outbox.cursor import read_cursor
from device_agents.outbox.reader import OutboxReader
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


@needs_mosquitto
def test_killed_broker_that_forgot_is_told_again(tmp_path):
    """The consumer is away, so the records are in the broker's memory alone when it dies."""
    outbox, made, stop = tmp_path / "outbox.sqlite", SimpleQueue(), Event()
    with running_broker(tmp_path / "broker", kind="mosquitto") as broker:
        heard_by(broker.port, 0.5)
        time.sleep(2.5)  # until the broker has saved that there is such a consumer
        epoch = records_into(tmp_path, RECORDS)
        station = station_from_toml(write_station(tmp_path, broker.port, broker="resend_s = 4"))

        def live():
            publisher = Publisher(
                station, OutboxReader.open(outbox), WayStatus(outbox), lambda _: None
            )
            made.put(publisher)
            publisher.run(stop)

        thread = Thread(target=live)
        thread.start()
        publisher = made.get(timeout=10)
        try:
            while publisher._records.acknowledged < RECORDS:
                time.sleep(0.005)
            broker.stop(kill=True)
            assert read_cursor(outbox, epoch).acknowledged == 0, "the inspector must not delete yet"
            broker.start()
            sequences = heard_by(broker.port, 20)
            deadline = time.monotonic() + 10
            while read_cursor(outbox, epoch).acknowledged < RECORDS:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            stop.set()
            thread.join(10)
    assert publisher.counters["sent_again"] == RECORDS
    assert list(dict.fromkeys(sequences)) == list(range(1, RECORDS + 1)), "in order, none missing"
