"""Readings of the machine: on an Orin's files, on a plain PC, on files that never answer."""

import os
import time
from pathlib import Path

import pytest
from orin_sysfs import set_alert, set_cpu_ticks, set_power_events, write, write_orin

from device_agents.monitor.machine import Machine
from device_agents.monitor.machine_reader import MachineReader


def test_orin_tells_everything_it_has(tmp_path):
    health = Machine(write_orin(tmp_path / "root"), tmp_path).read()
    assert health.read_from == "sysfs"
    assert health.module == "NVIDIA Jetson AGX Orin Developer Kit"
    assert health.power_mode == "MODE_50W"
    assert health.temperatures_celsius == {
        "cpu": 47.406,
        "gpu": 43.468,
        "soc0": 44.843,
        "tj": 47.406,
        "tboard": 35.25,
    }
    assert health.power_watts == {
        "VDD_GPU_SOC": 7.961,
        "VDD_CPU_CV": 2.909,
        "VIN_SYS_5V0": 3.643,
    }
    assert health.clocks_mhz == {"gpu": 1300.5, "vic": 729.6, "cpu0": 2201.6, "cpu4": 729.6}
    assert health.gpu_load_percent == 93.7
    assert health.memory_total_bytes == 64349696 * 1024
    assert health.memory_used_bytes == 32174848 * 1024
    assert (health.network_sent_bytes, health.network_received_bytes) == (1005, 2006)
    assert 0 < health.disk_free_bytes <= health.disk_total_bytes
    assert health.uptime_s == 3605.12
    assert health.throttled is False
    assert health.throttled_by == ()


def test_cpu_load_is_that_since_the_last_reading(tmp_path):
    machine = Machine(write_orin(tmp_path / "root"), tmp_path)
    assert machine.read().cpu_load_percent is None
    set_cpu_ticks(tmp_path / "root", busy=1300, idle=9100)
    assert machine.read().cpu_load_percent == 75.0
    assert machine.read().cpu_load_percent is None  # no time has passed
    set_cpu_ticks(tmp_path / "root", busy=1, idle=2)  # the counters went back
    assert machine.read().cpu_load_percent is None


def test_heat_and_current_that_throttle_are_named(tmp_path):
    root = write_orin(tmp_path / "root")
    machine = Machine(root, tmp_path)
    assert machine.read().throttled_by == ()  # events from before the start are history
    set_power_events(root, 0, 15, 40)
    set_alert(root, "gpu-throttle-alert", 1)
    health = machine.read()
    assert health.throttled is True
    assert health.throttled_by == ("gpu-throttle", "instantaneous over-current (oc3)")
    set_alert(root, "gpu-throttle-alert", 0)
    assert machine.read().throttled is False


def test_unknown_power_mode_keeps_its_number(tmp_path):
    root = write_orin(tmp_path / "root")
    write(root, "var/lib/nvpmodel/status", "pmode:0009 fmode:quiet")
    assert Machine(root, tmp_path).read().power_mode == "mode 9"


def test_older_kernel_with_the_load_elsewhere(tmp_path):
    write(tmp_path, "sys/devices/gpu.0/load", "125")
    assert Machine(tmp_path, tmp_path).read().gpu_load_percent == 12.5


def test_empty_machine_knows_nothing_and_says_so(tmp_path):
    health = Machine(tmp_path, tmp_path / "no such disk").read()
    assert health.module is None
    assert health.throttled is None
    assert health.gpu_load_percent is None
    assert health.disk_free_bytes is None
    assert health.temperatures_celsius == health.power_watts == health.clocks_mhz == {}


def test_this_machine_can_be_read():
    machine = Machine(Path("/"), Path("/tmp"))
    machine.read()
    health = machine.read()
    assert health.memory_total_bytes > health.memory_used_bytes > 0
    assert health.uptime_s > 0


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\0", b"1e9", b"9" * 100_000, b"-", b"nan\n", b"cpu" + b" x" * 9]
)
def test_nonsense_in_any_file_is_not_known(tmp_path, content):
    root = write_orin(tmp_path / "root")
    for file in [path for path in root.rglob("*") if path.is_file()]:
        file.write_bytes(content)
    health = Machine(root, tmp_path).read()
    assert health.gpu_load_percent is None
    assert health.memory_total_bytes is None
    assert health.cpu_load_percent is None
    assert health.temperatures_celsius == health.power_watts == health.clocks_mhz == {}


def test_file_that_never_answers_is_given_up_and_the_rest_is_read_on(tmp_path, caplog):
    root = write_orin(tmp_path / "root")
    stuck = root / "sys/class/thermal/thermal_zone2/temp"
    stuck.rmdir()
    os.mkfifo(stuck)  # opening it waits for a writer that never comes
    reader = MachineReader(root, tmp_path, jtop=False, every_s=0.05, patience_s=0.2)
    try:
        assert reader.latest(wait_s=0.3) is None  # the first reading hangs
        health, until_s = None, time.monotonic() + 10
        while health is None and time.monotonic() < until_s:
            health = reader.latest(wait_s=0.1)
        assert health.temperatures_celsius["gpu"] == 43.468
        assert "cv0" not in health.temperatures_celsius
        assert str(stuck) in health.reason
        assert reader.stuck == 1
        assert "has not answered" in caplog.text
    finally:
        reader.close()


def test_file_that_stops_answering_later_takes_the_old_figures_with_it(tmp_path):
    root = write_orin(tmp_path / "root")
    reader = MachineReader(root, tmp_path, jtop=False, every_s=0.05, patience_s=0.2)
    try:
        assert reader.latest(wait_s=5.0).gpu_load_percent == 93.7
        load = root / "sys/devices/platform/bus@0/17000000.gpu/load"
        load.unlink()
        os.mkfifo(load)
        until_s = time.monotonic() + 10
        while reader.stuck == 0 and time.monotonic() < until_s:
            reader.latest()
            time.sleep(0.02)
        health = None
        while health is None and time.monotonic() < until_s:
            health = reader.latest(wait_s=0.1)
        assert health.gpu_load_percent is None  # not the last one that was true
        assert str(load) in health.reason
    finally:
        reader.close()


def test_bug_in_reading_is_logged_and_costs_the_figures_not_the_thread(
    tmp_path, monkeypatch, caplog
):
    reader = MachineReader(write_orin(tmp_path / "root"), tmp_path, jtop=False, every_s=0.05)
    try:
        assert reader.latest(wait_s=5.0) is not None
        monkeypatch.setattr(Machine, "_memory", lambda _: 1 / 0)
        until_s = time.monotonic() + 10
        while reader.latest() is not None and time.monotonic() < until_s:
            time.sleep(0.02)
        assert reader.latest() is None
        assert "ZeroDivisionError" in caplog.text
        monkeypatch.undo()
        while reader.latest() is None and time.monotonic() < until_s:
            time.sleep(0.02)
        assert reader.latest().gpu_load_percent == 93.7
    finally:
        reader.close()
