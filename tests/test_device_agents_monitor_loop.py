"""The monitor: what it tells, what it survives, and what it never does to the others."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from small_station import edge
from watched_station import (
    bundle_digest,
    free_port,
    monitored,
    scraped,
    write_records,
    write_statuses,
    write_watched,
)

from device_agents.health import health_of
from device_agents.monitor.loop import run_monitor
from device_agents.outbox.cursor import Cursor, write_cursor
from device_agents.outbox.reader import OutboxReader
from device_agents.outbox.writer import Outbox
from device_agents.status import read_status, status_path_of
from edge.errors import MachineError
from edge.messages import Health

PLACE = {"site": "north", "area": "milling", "line": "l1", "station": "s1"}


def figures(port: int) -> dict[tuple, float]:
    """Every sample by (name, its labels beyond the place)."""
    found = {}
    for family in text_string_to_metric_families(scraped(port)):
        for sample in family.samples:
            assert PLACE.items() <= sample.labels.items(), sample
            own = {value for key, value in sample.labels.items() if key not in PLACE}
            found[(sample.name.removeprefix("orin_inspect_"), *sorted(own))] = sample.value
    return found


def filled(folder: Path, station) -> str:
    """Write five records, two of them acknowledged, and both statuses; return the epoch."""
    path = Path(station.outbox.path)
    with Outbox.open(path, max_rows=100, max_bytes=1 << 20) as outbox:
        write_records(station, outbox)
        outbox.count("lost_behind", 3)
        outbox.raise_to("late_max_ms", 250)
        outbox.count("something_new", 7)
        epoch = outbox.epoch
    write_cursor(path, Cursor(epoch, 2, {"published": 2, "refused": 1}))
    write_statuses(station, bundle_digest(folder))
    return epoch


def test_everything_the_station_knows_is_told(tmp_path):
    station = write_watched(tmp_path, free_port())
    epoch = filled(tmp_path, station)
    with monitored(station, tmp_path / "root"):
        time.sleep(0.5)
        seen = figures(station.monitor.port)
    assert seen["inspections_total", "pass"] == 3
    assert seen["inspections_total", "fail"] == 1
    assert seen["losses_total", "lost_behind"] == 3
    assert seen["losses_total", "quarantined"] == 0  # known, and none yet
    assert seen["events_total", "refused"] == 1
    assert seen["events_total", "something_new"] == 7  # a counter that the table does not know
    assert seen[("late_max_seconds",)] == 0.25
    assert seen[("outbox_records",)] == 3
    assert seen["outbox_info", epoch] == 1
    assert abs(seen[("outbox_oldest_timestamp_seconds",)] - time.time()) < 60
    assert seen["inspector_state", "ready"] == 1
    assert seen["inspector_state", "gone"] == 0
    assert seen["publisher_state", "connected"] == 1
    assert seen["latency_seconds", "0.99", "durable"] == 0.031
    assert seen[("budget_seconds",)] == 0.1
    assert seen[("false_alarm_budget_ratio",)] == 0.01
    assert seen["drift_flag", "focus"] == 1
    assert seen[("gpu_load_ratio",)] == 0.937
    assert seen["throttled_by", "gpu-throttle"] == 1
    assert seen["clock_hertz", "gpu"] == 1300.5e6
    assert seen["temperature_celsius", "tj"] == 47.406
    assert seen["network_bytes_total", "sent"] == 1005
    health = read_status(Path(station.outbox.path), Health, fresh_s=60)
    assert health.station_epoch == epoch
    assert health.outbox_depth == 3
    assert health.counters["published"] == 2
    assert health.machine.gpu_load_percent == 93.7
    assert health.inspector.state == "ready"


def test_agents_that_stopped_are_gone_and_their_figures_with_them(tmp_path):
    station = write_watched(tmp_path, free_port())
    filled(tmp_path, station)
    for path in tmp_path.glob("outbox.sqlite.*.json"):
        os.utime(path, (time.time() - 60, time.time() - 60))
    with monitored(station, tmp_path / "root"):
        seen = figures(station.monitor.port)
    assert seen["inspector_state", "gone"] == 1
    assert seen["publisher_state", "gone"] == 1
    assert ("parts_per_second",) not in seen
    assert seen["inspections_total", "pass"] == 3  # the outbox still tells


def test_station_before_its_first_inspection(tmp_path):
    station = write_watched(tmp_path, free_port())
    with monitored(station, tmp_path / "root"):
        seen = figures(station.monitor.port)
        assert seen[("outbox_readable",)] == 0
        assert ("inspections_total", "pass") not in seen
        filled(tmp_path, station)  # the inspector starts, and the monitor finds it
        until_s = time.monotonic() + 10
        while seen[("outbox_readable",)] == 0 and time.monotonic() < until_s:
            time.sleep(0.1)
            seen = figures(station.monitor.port)
    assert seen["inspections_total", "pass"] == 3


def test_new_epoch_starts_the_counters_anew(tmp_path):
    station = write_watched(tmp_path, free_port())
    first = filled(tmp_path, station)
    with monitored(station, tmp_path / "root"):
        assert figures(station.monitor.port)["outbox_info", first] == 1
        for path in tmp_path.glob("outbox.sqlite*"):
            if not path.name.endswith("monitor.lock"):
                path.unlink(missing_ok=True)
        second = filled(tmp_path, station)
        until_s = time.monotonic() + 10
        while ("outbox_info", second) not in figures(station.monitor.port):
            assert time.monotonic() < until_s
            time.sleep(0.1)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b'{"state": 7}', b"\xff" * 4096])
def test_broken_status_files_are_as_none(tmp_path, content):
    station = write_watched(tmp_path, free_port())
    filled(tmp_path, station)
    for path in tmp_path.glob("outbox.sqlite.*.json"):
        path.write_bytes(content)
    write_path = Path(station.outbox.path + ".cursor")
    write_path.write_bytes(content)
    with monitored(station, tmp_path / "root"):
        seen = figures(station.monitor.port)
    assert seen["inspector_state", "gone"] == 1
    assert seen[("outbox_records",)] == 5


def test_outbox_that_is_no_outbox_is_unreadable_and_survived(tmp_path):
    station = write_watched(tmp_path, free_port())
    Path(station.outbox.path).write_bytes(os.urandom(100_000))
    with monitored(station, tmp_path / "root"):
        assert figures(station.monitor.port)[("outbox_readable",)] == 0


def test_outbox_that_breaks_while_it_is_read_is_no_count_of_zero(tmp_path):
    station = write_watched(tmp_path, None)
    filled(tmp_path, station)
    reader = OutboxReader.open(Path(station.outbox.path))
    reader.close()  # every use of it fails from now on, as on a disk that went away
    health = health_of(station, reader, None, None, None)
    assert health.station_epoch == ""
    assert health.counters == {}


def test_publisher_that_knows_more_than_its_file_is_believed(tmp_path):
    station = write_watched(tmp_path, None)
    epoch = filled(tmp_path, station)
    reader = OutboxReader.open(Path(station.outbox.path))
    own = Cursor(epoch, 4, {"published": 4})
    health = health_of(station, reader, None, None, None, cursor=own)
    assert health.outbox_depth == 1
    assert health.counters["published"] == 4
    assert health.counters["lost_behind"] == 3
    reader.close()


def test_health_file_that_cannot_be_written_is_counted_and_survived(tmp_path):
    station = write_watched(tmp_path, free_port())
    filled(tmp_path, station)
    status_path_of(Path(station.outbox.path), Health).mkdir()
    with monitored(station, tmp_path / "root"):
        time.sleep(0.5)
        assert figures(station.monitor.port)["monitor_faults_total", "health_not_written"] >= 1


def test_port_that_is_taken_is_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        station = write_watched(tmp_path, port)
        with pytest.raises(MachineError, match=rf"127.0.0.1:{port}.*in use.*monitor.port"):
            run_monitor(station, threading.Event(), root=tmp_path / "root")


def test_address_of_another_machine_is_named(tmp_path):
    station = write_watched(tmp_path, free_port(), more='address = "192.0.2.1"')
    with pytest.raises(MachineError, match=r"192\.0\.2\.1.*monitor\.address"):
        run_monitor(station, threading.Event(), root=tmp_path / "root")


def test_second_monitor_of_a_station_is_refused(tmp_path):
    station = write_watched(tmp_path, free_port())
    with monitored(station, tmp_path / "root"), pytest.raises(MachineError, match="monitor"):
        run_monitor(station, threading.Event(), root=tmp_path / "root")


def test_hostile_clients_do_not_keep_prometheus_out(tmp_path):
    station = write_watched(tmp_path, free_port())
    filled(tmp_path, station)
    at = ("127.0.0.1", station.monitor.port)
    with monitored(station, tmp_path / "root"), contextlib.ExitStack() as clients:
        for garbage in (
            *(
                b"\0" * 10_000,
                os.urandom(5000),
                b"GET " + b"a" * 100_000,
                b"POST / HTTP/1.1\r\n\r\n",
            ),
            *(b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 1000, b"\r\n\r\n"),
        ):
            with socket.create_connection(at, timeout=5) as client, contextlib.suppress(OSError):
                client.sendall(garbage)
                client.shutdown(socket.SHUT_WR)
                client.recv(100)
        silent = [clients.enter_context(socket.create_connection(at)) for _ in range(40)]
        assert len(silent) == 40
        # The silent ones are turned away or time out; meanwhile the loop goes on, and then:
        until_s, seen = time.monotonic() + 20, None
        while seen is None and time.monotonic() < until_s:
            with contextlib.suppress(OSError):
                seen = figures(station.monitor.port)
            time.sleep(0.2)
        assert seen["monitor_faults_total", "connections_refused"] >= 24
        threads = [t for t in threading.enumerate() if "process_request" in t.name]
        assert len(threads) <= 17


def test_station_without_a_port_writes_health_and_listens_nowhere(tmp_path):
    station = write_watched(tmp_path, None)
    replace = msgspec.structs.replace
    station = replace(station, monitor=replace(station.monitor, port=None))
    filled(tmp_path, station)
    with monitored(station, tmp_path / "root"):
        until_s = time.monotonic() + 10
        while read_status(Path(station.outbox.path), Health, fresh_s=60) is None:
            assert time.monotonic() < until_s
            time.sleep(0.05)


def test_agent_says_ready_beats_and_stops_for_systemd(tmp_path):
    """The real process, with a notify socket as systemd gives one."""
    station = write_watched(tmp_path, free_port())
    filled(tmp_path, station)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "WATCHDOG_USEC": "400000",
        }
        command = [sys.executable, "-m", "edge.cli.main", "agent", "monitor", "--station"]
        process = subprocess.Popen([*command, str(tmp_path / "station.toml")], env=environment)
        try:
            heard: list[str] = []
            while heard.count("WATCHDOG=1") < 3:
                heard.append(systemd.recv(4096).decode())
            assert "READY=1" in heard[: heard.index("WATCHDOG=1")]
            assert any(line.startswith("STATUS=inspector") for line in heard)
            assert "orin_inspect_uptime_seconds" in scraped(station.monitor.port)
            process.send_signal(signal.SIGTERM)
            while heard[-1] != "STOPPING=1":
                heard.append(systemd.recv(4096).decode())
            assert process.wait(timeout=10) == 0
        finally:
            process.kill()
            process.wait()


def test_agent_refuses_a_taken_port_with_status_3(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        write_watched(tmp_path, taken.getsockname()[1])
        agent = edge("agent", "monitor", "--station", tmp_path / "station.toml", stderr=-1)
        _, said = agent.communicate(timeout=30)
    assert agent.returncode == 3
    assert re.search(r"found .*in use", said.decode())


def test_health_is_plain_json_for_whoever_looks_at_the_file(tmp_path):
    station = write_watched(tmp_path, free_port())
    filled(tmp_path, station)
    with monitored(station, tmp_path / "root"):
        path = status_path_of(Path(station.outbox.path), Health)
        assert json.loads(path.read_text())["machine"]["power_mode"] == "MODE_50W"
