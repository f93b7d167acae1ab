"""jetson-stats: read where it runs, and every way in which it does not."""

import importlib
import importlib.util
import sys
import time

import pytest
from jtop_stand_in import set_mood, write_jtop
from orin_sysfs import write_orin

from device_agents.monitor.jetson import Jetson
from device_agents.monitor.machine import Machine
from device_agents.monitor.machine_reader import MachineReader
from edge.messages import MachineHealth

needs_jetson_stats = pytest.mark.skipif(
    importlib.util.find_spec("jtop") is None,
    reason="jetson-stats is not installed: that its attributes have the names that we read is NOT "
    "checked here (pip install jetson-stats)",
)
USED = ("board", "nvpmodel", "uptime", "temperature", "power", "gpu", "memory")


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A `jtop` of our own on sys.path."""
    write_jtop(tmp_path / "path", "well")
    for name in [name for name in sys.modules if name.split(".")[0] == "jtop"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path / "path"))
    yield tmp_path / "path"
    sys.modules.pop("jtop", None)


def test_jtop_is_read_over_sysfs(stand_in, tmp_path):
    machine = Machine(write_orin(tmp_path / "root"), tmp_path).read()
    health = Jetson(1.0).over(machine)
    assert health.read_from == "jtop"
    assert health.reason == ""
    assert health.module == "NVIDIA Jetson AGX Orin (64GB ram)"
    assert health.power_mode == "MAXN"
    assert health.temperatures_celsius == {"cpu": 50.5, "gpu": 48.0}
    assert health.power_watts == {"VDD_GPU_SOC": 7.961, "total": 12.0}
    assert health.gpu_load_percent == 0.0
    assert health.clocks_mhz["gpu"] == 1300.5
    assert health.clocks_mhz["emc"] == 3199.0
    assert health.clocks_mhz["cpu0"] == 2201.6  # from sysfs: not asked of jtop
    assert health.memory_total_bytes == 62_800_000 * 1024
    assert health.uptime_s == 77
    assert health.throttled is False  # from sysfs: jtop does not tell


@pytest.mark.parametrize("missing", USED)
def test_attribute_that_a_version_lacks_is_taken_from_sysfs(stand_in, tmp_path, missing):
    delattr(importlib.import_module("jtop").jtop, missing)
    machine = Machine(write_orin(tmp_path / "root"), tmp_path).read()
    health = Jetson(1.0).over(machine)
    assert health.read_from == "jtop"
    assert health.gpu_load_percent in (0.0, 93.7)


def test_service_of_another_version_falls_back_with_its_reason(stand_in, caplog):
    set_mood(stand_in, "refuses")
    sysfs, jetson = MachineHealth(read_from="sysfs", gpu_load_percent=3.0), Jetson(1.0)
    for _ in range(3):
        health = jetson.over(sysfs)
        assert health.read_from == "sysfs"
        assert health.gpu_load_percent == 3.0
        assert "Mismatch version" in health.reason
    assert caplog.text.count("Mismatch version") == 1
    assert "install-service" in caplog.text


def test_lost_service_is_found_again(stand_in):
    sysfs, jetson = MachineHealth(read_from="sysfs"), Jetson(1.0)
    assert jetson.over(sysfs).read_from == "jtop"
    set_mood(stand_in, "lost")
    lost = jetson.over(sysfs)
    assert lost.read_from == "sysfs"
    assert "stopped sending" in lost.reason
    set_mood(stand_in, "well")
    found = [jetson.over(sysfs).read_from for _ in range(20)]
    assert found[0] == "sysfs"  # not tried at each look
    assert found[-1] == "jtop"


def test_service_that_hangs_holds_nobody_up(stand_in, tmp_path):
    set_mood(stand_in, "hangs")
    root = write_orin(tmp_path / "root")
    reader = MachineReader(root, tmp_path, jtop=True, every_s=0.05, patience_s=0.2)
    try:
        health, until_s = None, time.monotonic() + 10
        while health is None and time.monotonic() < until_s:
            health = reader.latest(wait_s=0.1)
        assert health.read_from == "sysfs"
        assert health.gpu_load_percent == 93.7
        assert "no answer from jtop" in health.reason
    finally:
        reader.close()


def test_jetson_stats_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jtop", None)
    health = Jetson(1.0).over(MachineHealth(read_from="sysfs"))
    assert health.read_from == "sysfs"
    assert "jtop" in health.reason


@needs_jetson_stats
def test_real_jetson_stats_has_what_we_call():
    package = importlib.import_module("jtop")
    for name in (*USED, "start", "ok", "close"):
        assert hasattr(package.jtop, name), name
    with pytest.raises(package.JtopException):
        package.jtop(interval=1.0).start()  # no service here


@needs_jetson_stats
def test_real_jetson_stats_without_its_service_falls_back_with_the_reason():
    health = Jetson(1.0).over(MachineHealth(read_from="sysfs"))
    assert health.read_from == "sysfs"
    assert "jtop.service is not active" in health.reason
