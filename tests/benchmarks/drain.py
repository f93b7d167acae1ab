"""An hour of records piled up while the broker was away: how fast they drain, at what cost.

    python -m tests.benchmarks.drain [RECORDS]     360,000 unless told

Mosquitto, the publisher, a subscriber that counts, and an inspector-like writer (100 appends per
second, each with its fsync) share this machine. Beside it, on the same broker, records and
subscriber: what a program with plain paho does, one publish awaited at a time, and paho's own
queue and thread.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Event, Thread

import msgspec
import paho.mqtt.client as paho

from device_agents.broker import EmbeddedBroker, running_broker
from device_agents.mqtt.address import BrokerAddress
from device_agents.mqtt.link import Link
from device_agents.outbox.cursor import read_cursor
from device_agents.outbox.reader import OutboxReader
from device_agents.outbox.writer import Outbox
from edge.messages import Inspection, Timings, encode
from edge.topics import StationId, filter_for, topic_of

HOUR = 360_000
LIVE_PER_SECOND = 100.0
CALM_S = 5.0  # how long the writer runs alone first
GROUP = 2_000
ROOMY = {"max_rows": 2 * HOUR, "max_bytes": 4 << 30}
PLAIN_RECORDS = 20_000  # at most, for the alternatives
STATION = StationId("plant", "hall", "line", "drain")


class Seen(msgspec.Struct):
    """What the judge reads of a record."""

    inspection_id: str
    sequence: int


def measure(records: int = HOUR, limit: float | None = None) -> dict[str, object]:
    """Drain `records`; return rates per second, latencies in ms and the judge's counts.

    `limit` is the station's broker.max_messages_per_second.
    """
    with tempfile.TemporaryDirectory(prefix="drain-") as name:
        folder = Path(name)
        outbox = folder / "outbox.sqlite"
        fill(outbox, records)
        with running_broker(folder / "broker", kind="mosquitto") as broker:
            found = drain(folder, outbox, broker, records, limit)
            few = min(records, PLAIN_RECORDS)
            payloads = first_payloads(outbox, few) or [encode(record(1, "e"))] * few
            for label, publish in (("one_at_a_time", one_at_a_time), ("paho_queue", paho_queue)):
                found[f"{label}_per_second"] = plain(broker, payloads, publish)
    for label in ("one_at_a_time", "paho_queue"):
        found[f"ratio_to_{label}"] = found["drained_per_second"] / found[f"{label}_per_second"]
    return found


def fill(outbox: Path, records: int) -> None:
    """Write the backlog as the inspector would, but in large groups."""
    with Outbox.open(outbox, **ROOMY) as writer:
        while records > 0:
            first, many = writer.next_sequence, min(records, GROUP)
            group = [record(number, writer.epoch) for number in range(first, first + many)]
            assert all(writer.append_all(group))
            records -= many


def record(sequence: int, epoch: str) -> Inspection:
    """Make one inspection of the usual size (about 800 bytes)."""
    return Inspection(
        inspection_id=f"{epoch}-{sequence}",
        station=STATION,
        station_epoch=epoch,
        sequence=sequence,
        sample_id=f"p{sequence:08d}",
        part_id=f"part{sequence:08d}",
        captured_at="2026-11-21T08:30:00.000000Z",
        inspected_at="2026-11-21T08:30:00.012345Z",
        decision="pass",
        label="good",
        anomaly_score=random.random(),
        threshold=0.5,
        class_scores={"good": 0.98, "scratch": 0.01, "dent": 0.01},
        modalities=("image", "sensor"),
        reason="anomaly score 0.1234 is below the threshold 0.5",
        bundle_digest="d" * 64,
        engine="onnxruntime 1.31 CPUExecutionProvider int8",
        timings=Timings(0.4, 3.2, 3.9, 0.1),
    )


def drain(
    folder: Path, outbox: Path, broker: EmbeddedBroker, records: int, limit: float | None
) -> dict[str, object]:
    """Run writer, judge and publisher as processes until the backlog is with the judge."""
    station = folder / "station.toml"
    station.write_text(
        f'station = {{ site = "{STATION.site}", area = "{STATION.area}", line = "{STATION.line}", '
        f'station = "{STATION.station}" }}\n[source]\nrecording = "none"\n[model]\n'
        f'bundle = "none"\n[broker]\nhost = "127.0.0.1"\nport = {broker.port}\n'
        + ("" if limit is None else f"max_messages_per_second = {limit}\n")
    )
    judge = _child("judge", str(broker.port), str(records), stdout=subprocess.PIPE)
    assert judge.stdout is not None
    assert judge.stdout.readline() == b"ready\n"
    # First alone: the same appends with no publisher beside them.
    writer = _child("writer", str(outbox), stdout=subprocess.PIPE)
    time.sleep(CALM_S)
    # Nice as its unit starts it.
    command = ["nice", "-n", "5", sys.executable, "-m", "edge.cli.main", "agent", "publisher"]
    command += ["--station", str(station)]
    with (folder / "publisher.log").open("wb") as log:
        publisher = subprocess.Popen(command, stderr=log)
    started_s, processor_s, resident_mb = time.monotonic(), 0.0, 0.0
    try:
        said = judge.stdout.readline()
        took_s = time.monotonic() - started_s
        processor_s, resident_mb = _processor_s(publisher.pid), _resident_mb(publisher.pid)
    finally:
        writer.terminate()
        publisher.terminate()
        publisher.wait(10)
        judge.kill()
    found: dict[str, object] = json.loads(said)
    seconds = found.pop("seconds")
    assert isinstance(seconds, float)
    found["drained_per_second"] = records / seconds  # from the first record to the last
    found["with_start_seconds"] = took_s
    found["publisher_processor_share"] = processor_s / took_s
    found["publisher_resident_mb"] = resident_mb
    found["writer_ms"] = _latencies(writer, started_s)
    return found


def _latencies(writer: subprocess.Popen[bytes], started_s: float) -> dict[str, dict[str, float]]:
    stamps = json.loads(writer.communicate()[0])
    parts = {
        "alone": [ms for at, ms in stamps if at < started_s],
        "during": [ms for at, ms in stamps if at >= started_s],
    }
    return {
        name: {"p50": _at(ms, 0.5), "p99": _at(ms, 0.99), "max": max(ms), "appends": len(ms)}
        for name, ms in parts.items()
        if ms
    }


def _at(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def _processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _child(*words: str, stdout: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.benchmarks.drain", "--part", *words]
    return subprocess.Popen(command, stdout=stdout)


def judge(port: str, records: str) -> None:
    """Count what arrives until the last of the backlog did; print what was seen."""
    link = Link(BrokerAddress("127.0.0.1", int(port)), "judge")
    link.open()
    link.subscribe(filter_for("inspection"))
    while not link.is_subscribed():
        link.step(0.1)
    print("ready", flush=True)
    decoder = msgspec.json.Decoder(Seen)
    seen: set[str] = set()
    received = in_order = last = 0
    began_s = 0.0
    while last < int(records):
        link.step(0.2)
        for message in link.take_received():
            began_s = began_s or time.monotonic()
            found = decoder.decode(message.payload)
            received += 1
            if found.inspection_id not in seen:
                seen.add(found.inspection_id)
                in_order += found.sequence == last + 1
                last = max(last, found.sequence)
            link.acknowledge(message)
    counts = {"sent": int(records), "received": received, "distinct": len(seen)}
    seconds = time.monotonic() - began_s
    print(json.dumps(counts | {"in_order": in_order, "seconds": seconds}), flush=True)


def writer(outbox: str) -> None:
    """Append at the station's rate until told to stop; print when each was asked and took."""
    stop = Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stamps = []
    path = Path(outbox)
    with Outbox.open(path, **ROOMY) as box:
        due_s = time.monotonic()
        while not stop.is_set():
            due_s += 1 / LIVE_PER_SECOND
            stop.wait(max(0.0, due_s - time.monotonic()))
            if len(stamps) % 20 == 0:
                box.note_acknowledged(read_cursor(path, box.epoch).acknowledged)
            inspection = record(box.next_sequence, box.epoch)
            begin_s = time.monotonic()
            assert box.append(inspection)
            stamps.append((begin_s, (time.monotonic() - begin_s) * 1e3))
    print(json.dumps(stamps))


def first_payloads(outbox: Path, count: int) -> list[bytes]:
    """Return what is left in the outbox, or nothing."""
    reader = OutboxReader.open(outbox)
    assert reader is not None
    found = [payload for _, payload in reader.records_after(0, count)]
    reader.close()
    return found if len(found) == count else []


def plain(broker: EmbeddedBroker, payloads: list[bytes], publish) -> float:
    """Publish the payloads with plain paho while a subscriber listens; records per second."""
    stop = Event()
    link = Link(BrokerAddress("127.0.0.1", broker.port), "beside")
    link.open()
    link.subscribe(filter_for("inspection"))

    def listen() -> None:
        while not stop.is_set():
            link.step(0.05)
            for message in link.take_received():
                link.acknowledge(message)

    listening = Thread(target=listen)
    listening.start()
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    try:
        started_s = time.monotonic()
        publish(client, topic_of(STATION, "inspection"), payloads)
        return len(payloads) / (time.monotonic() - started_s)
    finally:
        client.disconnect()
        client.loop_stop()
        stop.set()
        listening.join()
        link.close()


def one_at_a_time(client: paho.Client, topic: str, payloads: list[bytes]) -> None:
    """Wait for each acknowledgement before the next: the loop most programs have."""
    for payload in payloads:
        client.publish(topic, payload, qos=1).wait_for_publish(10)


def paho_queue(client: paho.Client, topic: str, payloads: list[bytes]) -> None:
    """Hand all to paho at once: fast, and lost with the process."""
    for info in [client.publish(topic, payload, qos=1) for payload in payloads]:
        info.wait_for_publish(60)


def run() -> bool:
    """Print the table for `make bench`; True when the judge missed nothing."""
    return _print(measure(HOUR))


def _print(found: dict[str, object]) -> bool:
    print("drain of a backlog, with a live writer beside it:")
    for name, value in found.items():
        print(f"  {name:28} {value:,.2f}" if isinstance(value, float) else f"  {name:28} {value}")
    return found["distinct"] == found["received"] == found["in_order"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", nargs="?", type=int, default=HOUR)
    parser.add_argument("--limit", type=float, help="the station's max_messages_per_second")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        {"judge": judge, "writer": writer}[arguments.part[0]](*arguments.part[1:])
        return 0
    return 0 if _print(measure(arguments.records, arguments.limit)) else 1


if __name__ == "__main__":
    sys.exit(main())
