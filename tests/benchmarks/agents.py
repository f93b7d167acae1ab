"""How soon each agent is ready, and what memory it takes: the promises of a station's start.

Readiness is what systemd sees (`READY=1` on its socket), not what the agent's log says. Memory
"without the model" is the inspector's with a model of a few operators at the same input sizes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from device_agents.broker import free_port, running_broker
from edge.bundle import Bundle
from tests.benchmarks import work
from tests.benchmarks.machine import Usage

STARTS = 5
READY_BUDGET_S, RSS_BUDGET_MIB = 2.0, 150.0
_GIVE_UP_S = 20.0
_LOOK_AFTER_S = 3.0  # of work, before memory is read
_RATE = 20.0


def run(*, quick: bool = False) -> dict:
    """Print the table and return its figures."""
    figures = measure(1 if quick else STARTS)
    print(
        f"\nagents: start to READY=1, and memory after {_LOOK_AFTER_S:g} s at {_RATE:g} parts/s\n"
        f"  {'':28}  ready s median (highest)   RSS MiB"
    )
    for name, f in figures["agents"].items():
        if f["ready_s"]:
            median = f"{statistics.median(f['ready_s']):5.2f} ({max(f['ready_s']):.2f})"
        else:
            median = f"never within {_GIVE_UP_S:g} s"
        print(f"  {name:28}  {median:>24}  {f['rss_mib']:8.0f}")
    for promise, kept in figures["promises"].items():
        print(f"  {'kept  ' if kept else 'BROKEN'} {promise}")
    return figures


def measure(starts: int = STARTS) -> dict:
    """Start each agent so many times; return seconds to READY=1 and resident memory by agent."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="agents-") as name:
        folder = Path(name)
        bundles = {"tiny": work.tiny_bundle(), "instant": work.instant_bundle(folder / "instant")}
        with running_broker(folder / "broker") as broker:
            for model, bundle in bundles.items():
                classes = Bundle.open(bundle).manifest.spec.classes
                recording = work.write_frames(folder / f"rec-{model}", classes, _RATE)
                station = _write_station(folder, model, bundle, recording, broker.port)
                label = f"inspector, {'tiny' if model == 'tiny' else 'without the model'}"
                found[label] = _starts("inspector", station, starts)
            for agent in ("publisher", "monitor"):
                found[agent] = _starts(agent, station, starts)
    ready = [seconds for f in found.values() for seconds in f["ready_s"] or [float("inf")]]
    light = [f["rss_mib"] for name, f in found.items() if name != "inspector, tiny"]
    promises = {
        f"every agent ready in under {READY_BUDGET_S:g} s": max(ready) < READY_BUDGET_S,
        f"under {RSS_BUDGET_MIB:g} MiB each without the model": max(light) < RSS_BUDGET_MIB,
    }
    return {"agents": found, "promises": promises}


def _write_station(folder: Path, name: str, bundle: Path, recording: Path, port: int) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(
        'station = { site = "bench", area = "a", line = "l", station = "s" }\n'
        f'[source]\nrecording = "{recording}"\nparts_per_second = {_RATE}\nrepeat = true\n'
        f'[model]\nbundle = "{bundle}"\n[outbox]\npath = "{name}.sqlite"\n'
        f'[broker]\nhost = "127.0.0.1"\nport = {port}\n[monitor]\nport = {free_port()}\n'
    )
    return path


def _starts(agent: str, station: Path, starts: int) -> dict:
    ready_s, rss_mib = [], 0.0
    for number in range(starts):
        is_last = number == starts - 1
        with _started(agent, station) as (child, notices, began_s):
            took_s = _ready_after(notices, child, began_s)
            if took_s is not None:
                ready_s.append(took_s)
            if is_last:
                time.sleep(_LOOK_AFTER_S)
                rss_mib = Usage.of(child.pid).rss_bytes / 2**20
                if child.poll() is not None:
                    raise RuntimeError(f"{agent} ended with {child.returncode}: {_last(station)}")
    return {"ready_s": ready_s, "rss_mib": rss_mib}


@contextlib.contextmanager
def _started(
    agent: str, station: Path
) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket, float]]:
    command = [sys.executable, "-m", "edge.cli.main", "agent", agent, "--station", str(station)]
    address = f"orin-inspect-bench-{os.getpid()}-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
        notices.bind(f"\0{address}")
        environment = {**os.environ, "NOTIFY_SOCKET": f"@{address}"}
        with (station.parent / "agent.log").open("wb") as log:
            began_s = time.monotonic()
            child = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            yield child, notices, began_s
        finally:
            child.terminate()
            try:
                child.wait(15)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _ready_after(
    notices: socket.socket, child: subprocess.Popen[bytes], began_s: float
) -> float | None:
    """Return the seconds from the start to READY=1; None where it never came."""
    notices.settimeout(0.1)
    while time.monotonic() - began_s < _GIVE_UP_S and child.poll() is None:
        with contextlib.suppress(TimeoutError):
            if b"READY=1" in notices.recv(4096):
                return time.monotonic() - began_s
    return None


def _last(station: Path) -> str:
    return (station.parent / "agent.log").read_text(errors="replace")[-400:]
