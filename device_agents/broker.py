"""A broker for the demo and the tests: Mosquitto where it is installed, else one from a package.

A plant runs its own broker. What a lossless one needs is in `MOSQUITTO_CONFIG`: persistence (else
sessions and queues die with a restart) and a queue per absent consumer beyond the default of 1,000
messages, past which Mosquitto drops silently. Mosquitto saves at a clean stop and, by default,
every 30 minutes; `autosave_interval` brings down to a second what a killed broker may forget.
"""

from __future__ import annotations

import contextlib
import importlib.util
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from edge.errors import MachineError

# `user root` matters only to root: Mosquitto would else become a user that cannot write the folder.
MOSQUITTO_CONFIG = """\
listener {port} 127.0.0.1
allow_anonymous true
user root
persistence true
persistence_location {folder}/
autosave_interval 1
max_queued_messages 100000
max_queued_bytes 0
"""
_RUMQTTD_CONFIG = """\
id = 0

[router]
id = 0
max_connections = 100
max_outgoing_packet_count = 200
max_segment_size = 104857600
max_segment_count = 10

[v5.1]
name = "v5-1"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1

[v5.1.connections]
connection_timeout_ms = 5000
max_payload_size = 1048576
max_inflight_count = 200
"""
_READY_WITHIN_S = 10.0
# The child ends with its parent: it reads the pipe that only the parent holds open. rumqttd logs
# every packet as an error, so its logger is silenced.
_IOTCORE_CHILD = (
    "import logging, os, sys, threading; from iotcore import IotCoreBroker; "
    "logging.getLogger('rumqttd').setLevel(logging.CRITICAL); "
    "threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start(); "
    "IotCoreBroker(config_path=sys.argv[1]).run_forever()"
)
_PORTS = range(20_000, 32_000)  # see `free_port`


class EmbeddedBroker:
    """A broker on 127.0.0.1 that can be stopped and started again, as in a plant's bad night."""

    def __init__(self, port: int, folder: Path, kind: str | None = None) -> None:
        self.port = port
        self.kind = kind or broker_kind()  # "mosquitto" or "iotcore"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address for `edge listen --broker`."""
        return f"mqtt://127.0.0.1:{self.port}"

    @property
    def name(self) -> str:
        """Which broker it is, for people."""
        if self.kind == "mosquitto":
            return "Mosquitto"
        return "iotcore (rumqttd; Mosquitto is not installed)"

    def start(self) -> None:
        """Start and wait until it listens. Raises MachineError."""
        with (self._folder / "broker.log").open("ab") as output:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.PIPE, stdout=output, stderr=output
            )
        deadline = time.monotonic() + _READY_WITHIN_S
        while not _listens(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                said = (self._folder / "broker.log").read_text(errors="replace").strip()
                raise MachineError(
                    where=f"127.0.0.1:{self.port}",
                    expected=f"{self.name} to listen within {_READY_WITHIN_S:g} s",
                    found=said[-300:] or "nothing in its log",
                    do="Free the port or choose another.",
                )
            time.sleep(0.05)

    def stop(self, *, kill: bool = False) -> None:
        """Stop it: cleanly, so that Mosquitto saves sessions and queues, or with `kill -9`."""
        process, self._process = self._process, None
        if process is None:
            return
        if kill:
            process.kill()
        else:
            process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()

    def _command(self) -> list[str]:
        config = self._folder / f"{self.kind}.toml"
        if self.kind == "mosquitto":
            config.write_text(MOSQUITTO_CONFIG.format(port=self.port, folder=self._folder))
            return [str(_mosquitto()), "-c", str(config)]
        config.write_text(_RUMQTTD_CONFIG.format(port=self.port))
        return [sys.executable, "-c", _IOTCORE_CHILD, str(config)]


@contextlib.contextmanager
def running_broker(
    folder: Path, port: int | None = None, kind: str | None = None
) -> Iterator[EmbeddedBroker]:
    """Yield a running broker on `port` (None: a free one); it ends with the block.

    `folder` takes its configuration, log and database. `kind` asks for one of the two brokers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    broker = EmbeddedBroker(port or free_port(), folder.resolve(), kind)
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()


def broker_kind() -> str:
    """Return "mosquitto" or "iotcore", whichever this machine has. Raises MachineError."""
    if _mosquitto() is not None:
        return "mosquitto"
    if importlib.util.find_spec("iotcore") is not None:
        return "iotcore"
    raise MachineError(
        where="MQTT broker",
        expected="Mosquitto, or the package iotcore",
        found="neither",
        do="Install one: `apt-get install mosquitto`, or `pip install iotcore`.",
    )


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nothing listens on.

    It lies below the range from which Linux draws the ports of outgoing connections (32768 and
    up): while the broker is away, a client that tries to reach it could be given that very port,
    connect to itself, and keep the broker from coming back.
    """
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise MachineError(
        where="127.0.0.1",
        expected=f"a free port from {_PORTS.start} to {_PORTS.stop - 1}",
        found="none",
        do="Stop what listens there.",
    )


def _mosquitto() -> Path | None:
    # Debian puts it into /usr/sbin, which is not on every user's PATH.
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    return Path(found) if found else None


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0
