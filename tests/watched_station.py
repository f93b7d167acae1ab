"""A station whose monitor has everything to tell: outbox, statuses, bundle, an Orin's files."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from urllib.request import urlopen

from orin_sysfs import set_alert, set_cpu_ticks, write_orin
from small_station import write_bundle, write_squares, write_station

from device_agents.monitor.loop import run_monitor
from device_agents.outbox.cursor import Cursor, write_cursor
from device_agents.outbox.writer import Outbox
from device_agents.station import StationFile, station_from_toml
from device_agents.status import write_status
from edge.bundle import Bundle
from edge.messages import (
    Inspection,
    InspectorHealth,
    Percentiles,
    PublisherHealth,
    Timings,
)

DECISIONS = ("pass", "pass", "fail", "pass", "invalid")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def write_watched(folder: Path, port: int | None, *, more: str = "") -> StationFile:
    """Write station file, bundle, recording and an Orin's files; return the station."""
    write_squares(folder / "rec", [40, 220])
    write_bundle(folder / "bundle")
    path = write_station(folder)
    at = "" if port is None else f"port = {port}\n"
    path.write_text(f"{path.read_text()}[monitor]\nevery_s = 0.2\n{at}{more}\n")
    root = write_orin(folder / "root")
    set_alert(root, "gpu-throttle-alert", 1)
    return station_from_toml(path)


def inspection(station: StationFile, outbox: Outbox, decision: str) -> Inspection:
    return Inspection(
        inspection_id=f"{outbox.epoch}-{outbox.next_sequence}",
        station=station.station,
        station_epoch=outbox.epoch,
        sequence=outbox.next_sequence,
        sample_id="x",
        part_id="x",
        captured_at=None,
        inspected_at=now_text(),
        decision=decision,
        label="good",
        anomaly_score=None,
        threshold=0.5,
        class_scores={},
        modalities=("image",),
        reason="",
        bundle_digest="",
        engine="",
        timings=Timings(0, 0, 0),
    )


def now_text() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def write_records(station: StationFile, outbox: Outbox, count: int = 5) -> None:
    for number in range(count):
        decision = DECISIONS[number % len(DECISIONS)]
        outbox.count("inspected")
        outbox.count(decision)
        outbox.append(inspection(station, outbox, decision))


def write_statuses(station: StationFile, bundle_digest: str, **inspector: object) -> None:
    outbox = Path(station.outbox.path)
    percentiles = Percentiles(12.5, 20.0, 31.0, 44.0)
    fields = {
        "state": "ready",
        "sources": {"main": "playing"},
        "engine": "onnxruntime cpu int8",
        "bundle_digest": bundle_digest,
        "asked_parts_per_second": 10.0,
        "parts_per_second": 9.98,
        "latency": percentiles,
        "durable": percentiles,
        "queue_depth": 1,
        "queue_room": 8,
        "drift": ("focus",),
        "last_inspection_at": now_text(),
    }
    write_status(outbox, InspectorHealth(**{**fields, **inspector}))
    write_status(outbox, PublisherHealth(state="connected", acknowledged=2))


@contextlib.contextmanager
def monitored(station: StationFile, root: Path) -> Iterator[None]:
    """Run a real monitor in a thread while the block runs."""
    stop, failed = threading.Event(), []

    def watch() -> None:
        try:
            run_monitor(station, stop, root=root)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        if station.monitor.port is not None:
            wait_for_port(station.monitor.port, failed)
        yield
    finally:
        stop.set()
        thread.join(timeout=10)
    assert not thread.is_alive(), "the monitor does not stop"
    assert not failed, failed


def wait_for_port(port: int, failed: list[BaseException]) -> None:
    until_s = time.monotonic() + 10
    while not failed and time.monotonic() < until_s:
        with contextlib.suppress(OSError):
            if b"orin_inspect_monitor_last_reading" in scraped(port).encode():
                return
        time.sleep(0.05)
    raise AssertionError(f"no metrics on port {port}: {failed}")


def scraped(port: int) -> str:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
        return page.read().decode()


@contextlib.contextmanager
def station_at_work(folder: Path, port: int) -> Iterator[StationFile]:
    """Run a monitor over a station on which something happens ten times a second."""
    station = write_watched(folder, port)
    digest = bundle_digest(folder)
    outbox_path = Path(station.outbox.path)
    stop = threading.Event()

    def work() -> None:
        ticks = 1000
        with Outbox.open(outbox_path, max_rows=1000, max_bytes=1 << 20) as outbox:
            while True:
                write_records(station, outbox)
                write_cursor(outbox_path, Cursor(outbox.epoch, 2, {"published": 2}))
                write_statuses(station, digest)
                ticks += 50
                set_cpu_ticks(folder / "root", busy=ticks, idle=3 * ticks)
                if stop.wait(0.1):
                    return

    worker = threading.Thread(target=work)
    worker.start()
    try:
        with monitored(station, folder / "root"):
            yield station
    finally:
        stop.set()
        worker.join()


def bundle_digest(folder: Path) -> str:
    return Bundle.open(folder / "bundle").digest
