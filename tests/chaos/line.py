"""The line under test: a station's agents, a broker and a disk that can be made full.

Agents are processes of their own, as systemd would run them: one that ends by itself is started
again after a moment, and the judge hears of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from device_agents.broker import free_port
from tests.small_station import BAD, GOOD, write_bundle, write_squares, write_station

_RESTART_AFTER_S = 0.5
_DISK_BYTES = 24 << 20
# What a lossless broker needs beside the product's advice (`device_agents.broker`): no limit on
# what is under way to a consumer that is there. Then Mosquitto writes each record to the
# consumer's socket before it answers the station, and kill -9 finds nothing that only it knew.
BROKER_CONFIG = """\
listener {port} 127.0.0.1
allow_anonymous true
user root
set_tcp_nodelay true
persistence true
persistence_location {folder}/
autosave_interval 1
max_inflight_messages 0
max_queued_messages 1000000
max_queued_bytes 0
"""


class Process:
    """A program that is kept running until it is told otherwise."""

    def __init__(self, name: str, command: list[str], log: Path) -> None:
        self.name = name
        self.log = log
        self.exits: Counter[int] = Counter()  # by exit status, where nobody asked for it
        self._command = command
        self._kept = False  # whether it is to run, as far as the test wants
        self._wanted = threading.Event()  # whether there is a process to watch
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        threading.Thread(target=self._keep_running, daemon=True).start()

    def start(self, *, again: bool = False) -> None:
        """Start it; `again` only where nobody has ended it meanwhile."""
        with self._lock:
            if again and not self._kept:
                return
            self._kept = True
            if self._process is None:
                environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
                with self.log.open("ab") as output:
                    self._process = subprocess.Popen(
                        self._command, stdout=output, stderr=output, env=environment
                    )
            self._wanted.set()

    def end(self, number: int = signal.SIGTERM) -> None:
        """End it and wait; it stays down until `start`."""
        with self._lock:
            self._kept = False
            self._wanted.clear()
            process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            self.exits[-9999] += 1  # it did not stop when asked

    def _keep_running(self) -> None:
        while self._wanted.wait():
            with self._lock:
                if self._process is not None and self._process.poll() is not None:
                    self.exits[self._process.returncode] += 1
                    self._process = None
                    self._wanted.clear()
                    again = threading.Timer(_RESTART_AFTER_S, self.start, kwargs={"again": True})
                    again.start()
            time.sleep(0.05)


class SmallDisk:
    """The folder of the outbox: a small real file system where we may mount one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.is_real = False
        if os.geteuid() == 0 and shutil.which("mount"):
            mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(folder)]
            self.is_real = subprocess.run(mount, capture_output=True).returncode == 0

    def fill(self) -> None:
        """Write until nothing more fits."""
        assert self.is_real, "a person's disk is not ours to fill"
        with contextlib.suppress(OSError), (self.folder / "ballast").open("ab", 0) as file:
            for size in (1 << 20, 4096):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def free(self) -> None:
        (self.folder / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        if self.is_real:
            subprocess.run(["umount", "-l", str(self.folder)], capture_output=True)


class Line:
    """Everything that runs. `proxy_port` is where the station finds the broker."""

    def __init__(self, folder: Path, parts_per_second: float) -> None:
        self.folder = folder
        self.parts_per_second = parts_per_second
        self.broker_port = free_port()
        self.disk = SmallDisk(folder / "disk")
        self.outbox = folder / "disk" / "outbox.sqlite"
        write_squares(folder / "rec", [BAD, *[GOOD] * 9], rate=parts_per_second)
        write_bundle(folder / "bundle")
        self._station = folder / "station.toml"
        self._logs = folder / "logs"
        self._logs.mkdir()
        self.broker = Process("broker", self._broker_command(), self._logs / "broker.log")
        self.inspector = self._agent("inspector")
        self.publisher = self._agent("publisher")
        self.processes = (self.broker, self.inspector, self.publisher)

    def start(self, proxy_port: int) -> None:
        # A link that died in silence is noticed by keepalive; seconds here, for a short test.
        more = f'keepalive_s = 2\n[outbox]\npath = "disk/{self.outbox.name}"\n'
        write_station(self.folder, proxy_port, source="repeat = true", broker=more)
        self.inspector.start()
        self.publisher.start()

    def start_broker(self) -> None:
        """Start it and wait until it listens."""
        self.broker.start()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                probe.settimeout(0.2)
                if probe.connect_ex(("127.0.0.1", self.broker_port)) == 0:
                    return
            time.sleep(0.02)
        raise TimeoutError(f"the broker does not listen; see {self.broker.log}")

    def take_log_away(self) -> None:
        """Have SQLite write its log into the file and cut it to nothing, where it is free to."""
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(sqlite3.connect(self.outbox, timeout=1.0)) as db,
        ):
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def tracebacks(self) -> list[str]:
        """Return the last line of each traceback in the agents' logs: each is a bug."""
        found = []
        for log in sorted(self._logs.glob("*.log")):
            inside = False
            for line in log.read_text(errors="replace").splitlines():
                if line.startswith("Traceback "):
                    inside = True
                elif inside and line and not line[0].isspace():
                    found.append(f"{log.stem}: {line[:200]}")
                    inside = False
        return found

    def close(self) -> None:
        for process in reversed(self.processes):
            process.end()
        self.disk.close()

    def _agent(self, name: str) -> Process:
        agent = [sys.executable, "-m", "edge.cli.main", "agent", name]
        command = [*agent, "--station", str(self._station)]
        return Process(name, command, self._logs / f"{name}.log")

    def _broker_command(self) -> list[str]:
        program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
        assert program, "checked at the door"
        folder = self.folder / "broker"
        folder.mkdir()
        config = folder / "mosquitto.conf"
        config.write_text(BROKER_CONFIG.format(port=self.broker_port, folder=folder))
        return [program, "-c", str(config)]
