"""What the kernel says of the machine: temperatures, power, clocks, load, memory, disk, throttling.

The paths are those of L4T R36 on an Orin; on any other Linux what is not there is left out. A file
that does not exist, is asleep (`EAGAIN` from the thermal zone of an idle CV cluster) or holds
something else than a number is "not known", never an error and never 0.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from edge.messages import MachineHealth

_READ_LIMIT_BYTES = 64 << 10  # one small file of sysfs, nvpmodel.conf included
_ASLEEP_CELSIUS = -255.0  # older kernels say -256 for a zone that is switched off
# The GPU's load in per mille, from the newest place to the oldest.
_GPU_LOADS = (
    "sys/devices/platform/bus@0/17000000.gpu/load",
    "sys/devices/platform/17000000.gpu/load",
    "sys/devices/platform/gpu.0/load",
    "sys/devices/gpu.0/load",
)
# The kernel's counters of power events on Orin (its driver's name is soctherm_oc).
_POWER_EVENTS = {
    "oc1_event_cnt": "under-voltage (oc1)",
    "oc2_event_cnt": "average over-current (oc2)",
    "oc3_event_cnt": "instantaneous over-current (oc3)",
}


class Machine:
    """Reads sysfs and procfs below `root`; remembers what it needs to tell a change.

    `reading` is the path that is being read now, so that another thread can name the file that
    does not answer; paths in `given_up` are not read again.
    """

    def __init__(self, root: Path, disk: Path) -> None:
        self._root = root
        self._disk = disk
        self._cpu_ticks: tuple[int, int] | None = None  # busy and all, since boot
        self._power_events: dict[str, int] | None = None
        self.reading = ""
        self.given_up: set[str] = set()

    def read(self) -> MachineHealth:
        """Read everything once. May take as long as the slowest file does."""
        memory_total, memory_used = self._memory()
        disk_total, disk_free = self._disk_bytes()
        throttled_by = self._throttled_by()
        return MachineHealth(
            read_from="sysfs",
            module=self.module(),
            power_mode=self.power_mode(),
            temperatures_celsius=dict(self._temperatures()),
            power_watts=self.power_watts(),
            clocks_mhz=dict(self._clocks()),
            gpu_load_percent=self._gpu_load(),
            cpu_load_percent=self._cpu_load(),
            memory_used_bytes=memory_used,
            memory_total_bytes=memory_total,
            disk_free_bytes=disk_free,
            disk_total_bytes=disk_total,
            network_sent_bytes=self._network("tx_bytes"),
            network_received_bytes=self._network("rx_bytes"),
            throttled=None if throttled_by is None else bool(throttled_by),
            throttled_by=throttled_by or (),
            uptime_s=_first_number(self._text("proc/uptime")),
        )

    def _text(self, path: str | Path) -> str | None:
        """Return a file's text, or None: absent, asleep, given up. `path` is below the root."""
        whole = self._root / path
        if str(whole) in self.given_up:
            return None
        self.reading = str(whole)
        try:
            # os.read, not Path.read_text: the latter turns EAGAIN into an error of another kind.
            file = os.open(whole, os.O_RDONLY | os.O_CLOEXEC)
            try:
                return os.read(file, _READ_LIMIT_BYTES).decode(errors="replace").strip(" \n\0")
            finally:
                os.close(file)
        except OSError:
            return None
        finally:
            self.reading = ""

    def _integer(self, path: str | Path) -> int | None:
        text = self._text(path)
        return int(text) if text is not None and re.fullmatch(r"-?\d{1,18}", text) else None

    def _folders(self, pattern: str) -> list[Path]:
        return sorted(path.relative_to(self._root) for path in self._root.glob(pattern))

    def module(self) -> str | None:
        """Return what the device tree calls the board; None where there is none (a PC)."""
        return self._text("proc/device-tree/model") or None

    def power_mode(self) -> str | None:
        """Name the mode: nvpmodel keeps its number, its configuration the name."""
        status = re.search(r"pmode:(\d+)", self._text("var/lib/nvpmodel/status") or "")
        if status is None:
            return None
        number = int(status[1])
        name = re.search(
            rf"<\s*POWER_MODEL\s+ID={number}\s+NAME=([^\s>]+)",
            self._text("etc/nvpmodel.conf") or "",
        )
        return name[1] if name else f"mode {number}"

    def power_watts(self) -> dict[str, float]:
        """Return the power of each rail that is measured, in watts."""
        return dict(self._power())

    def _temperatures(self) -> Iterator[tuple[str, float]]:
        for zone in self._folders("sys/class/thermal/thermal_zone*"):
            name, millidegrees = self._text(zone / "type"), self._integer(zone / "temp")
            if name and millidegrees is not None and millidegrees / 1e3 > _ASLEEP_CELSIUS:
                yield name.removesuffix("-thermal").removesuffix("-therm"), millidegrees / 1e3

    def _power(self) -> Iterator[tuple[str, float]]:
        """INA3221 monitors: millivolts times milliamperes, three rails each."""
        for chip in self._folders("sys/class/hwmon/hwmon*"):
            if self._text(chip / "name") != "ina3221":
                continue
            for channel in (1, 2, 3):
                rail = self._text(chip / f"in{channel}_label")
                millivolts = self._integer(chip / f"in{channel}_input")
                milliamperes = self._integer(chip / f"curr{channel}_input")
                connected = rail and rail != "NC"
                if rail and connected and millivolts is not None and milliamperes is not None:
                    yield rail, round(millivolts * milliamperes / 1e6, 3)

    def _clocks(self) -> Iterator[tuple[str, float]]:
        for device in self._folders("sys/class/devfreq/*"):
            hertz = self._integer(device / "cur_freq")
            if hertz is not None:
                yield device.name.rpartition(".")[2], hertz / 1e6
        for policy in self._folders("sys/devices/system/cpu/cpufreq/policy*"):
            kilohertz = self._integer(policy / "scaling_cur_freq")
            if kilohertz is not None:
                yield policy.name.replace("policy", "cpu"), kilohertz / 1e3

    def _gpu_load(self) -> float | None:
        for path in _GPU_LOADS:
            permille = self._integer(path)
            if permille is not None:
                return permille / 10
        return None

    def _cpu_load(self) -> float | None:
        """Percent of all cores since the last reading; None at the first."""
        words = (self._text("proc/stat") or "").splitlines()[:1]
        ticks = [int(word) for word in words[0].split()[1:9] if word.isdecimal()] if words else []
        if len(ticks) < 8:
            return None
        total, idle = sum(ticks), ticks[3] + ticks[4]  # idle, and waiting for the disk
        before, self._cpu_ticks = self._cpu_ticks, (total - idle, total)
        if before is None or total <= before[1]:
            return None
        return round(100 * max(0, total - idle - before[0]) / (total - before[1]), 1)

    def free_memory_bytes(self) -> int | None:
        """Return what a program may still take; on an Orin the GPU takes it from the same."""
        total, used = self._memory()
        return None if total is None or used is None else total - used

    def _memory(self) -> tuple[int | None, int | None]:
        """Total and used bytes; on an Orin the GPU's are among them."""
        found = dict(
            re.findall(
                r"^(MemTotal|MemAvailable):\s+(\d+) kB", self._text("proc/meminfo") or "", re.M
            )
        )
        if len(found) < 2:
            return None, None
        total = int(found["MemTotal"]) << 10
        return total, total - (int(found["MemAvailable"]) << 10)

    def _disk_bytes(self) -> tuple[int | None, int | None]:
        """Total bytes of the outbox's disk, and what an unprivileged user may still write."""
        if str(self._disk) in self.given_up:
            return None, None
        self.reading = str(self._disk)
        try:
            disk = os.statvfs(self._disk)
        except OSError:
            return None, None
        finally:
            self.reading = ""
        return disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize

    def _network(self, name: str) -> int | None:
        found = [
            self._integer(interface / "statistics" / name)
            for interface in self._folders("sys/class/net/*")
            if interface.name != "lo"
        ]
        known = [count for count in found if count is not None]
        return sum(known) if known else None

    def _throttled_by(self) -> tuple[str, ...] | None:
        """What holds the clocks down now; None where nothing could tell.

        Thermal: an alert cooling device that is not in state 0 (`cpufreq` and `devfreq` ones are
        no sign: a power mode's own limit looks the same there). Electrical: an event counter that
        grew since the last reading.
        """
        alerts, told = [], False
        for device in self._folders("sys/class/thermal/cooling_device*"):
            kind, state = self._text(device / "type"), self._integer(device / "cur_state")
            if kind and kind.endswith("-alert") and state is not None:
                told = True
                alerts += [kind.removesuffix("-alert")] * (state > 0)
        events: dict[str, int] = {}
        for chip in self._folders("sys/class/hwmon/hwmon*"):
            for name in _POWER_EVENTS:
                count = self._integer(chip / name)
                if count is not None:
                    events[name] = events.get(name, 0) + count
        before, self._power_events = self._power_events, events
        if before is not None:
            alerts += [_POWER_EVENTS[name] for name in events if events[name] > before.get(name, 0)]
        return tuple(alerts) if told or events else None


def _first_number(text: str | None) -> float | None:
    try:
        return float((text or "").split()[0])
    except (IndexError, ValueError):
        return None
