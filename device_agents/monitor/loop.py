"""The monitor: looks every few seconds at the agents and the machine, and tells what it sees.

    status files, outbox, cursor, machine  -->  Health beside the outbox -->  publisher -->  MQTT
                                           -->  metrics over HTTP        -->  Prometheus

It changes nothing that the others need: without it the line runs, and Health goes out without the
machine.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import msgspec
from prometheus_client.core import CollectorRegistry, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from device_agents import notify
from device_agents.health import health_of
from device_agents.lock import hold
from device_agents.monitor.machine_reader import MachineReader
from device_agents.monitor.metrics import Watched, families_of, unix_s_of
from device_agents.monitor.metrics_server import MetricsServer, served
from device_agents.outbox.cursor import read_cursor
from device_agents.outbox.reader import OutboxReader
from device_agents.station import StationFile
from device_agents.status import FRESH_S, read_status, write_status
from edge.bundle import Bundle
from edge.errors import InputError
from edge.messages import InspectorHealth, PublisherHealth

_FIRST_READING_S = 1.0  # how long the start waits for the machine's first figures
_STALE_AFTER = 3  # looks: metrics older than this are not served as if they were true
_LEAST_STALE_S = 15.0

log = logging.getLogger("monitor")


def run_monitor(station: StationFile, stop: Event, *, root: Path = Path("/")) -> None:
    """Watch until `stop` is set. `root` is where sysfs and procfs begin.

    Raises MachineError where another monitor of this station runs, or the port is taken.
    """
    outbox = Path(station.outbox.path)
    outbox.parent.mkdir(parents=True, exist_ok=True)
    lock = hold(outbox.with_name(outbox.name + ".monitor.lock"), "monitor")
    try:
        monitor = Monitor(station, root)
        with monitor.served() as server:
            if server is not None:
                log.info("metrics on http://%s:%d/metrics", station.monitor.address, server.port)
            monitor.run(stop)
    finally:
        os.close(lock)


class Monitor:
    """One station's monitor. Owns the reader of the machine and one of the outbox."""

    def __init__(self, station: StationFile, root: Path) -> None:
        self._station = station
        self._outbox = Path(station.outbox.path)
        every_s = station.monitor.every_s
        self._machine = MachineReader(
            root, self._outbox.parent, jtop=station.monitor.jtop, every_s=every_s
        )
        self._reader: OutboxReader | None = None
        self._bundle: tuple[str, float | None] = ("", None)  # digest, false-alarm budget
        self._faults = {"health_not_written": 0, "machine_stuck": 0, "connections_refused": 0}
        self._figures = _Figures(max(_LEAST_STALE_S, _STALE_AFTER * every_s))
        self._registry = CollectorRegistry()
        self._registry.register(self._figures)
        self._server: MetricsServer | None = None

    @contextlib.contextmanager
    def served(self) -> Iterator[MetricsServer | None]:
        """Serve the metrics while the block runs, where the station file names a port."""
        settings = self._station.monitor
        if settings.port is None:
            yield None
            return
        with served(
            settings.address, settings.port, lambda: generate_latest(self._registry)
        ) as self._server:
            yield self._server

    def run(self, stop: Event) -> None:
        """Look, tell, wait; until `stop` is set."""
        self._look(_FIRST_READING_S)
        notify.ready()
        log.info("watching %s", self._outbox)
        beat_s = notify.watchdog_every_s() or self._station.monitor.every_s
        due_s = time.monotonic() + self._station.monitor.every_s
        while not stop.wait(min(beat_s, max(0.0, due_s - time.monotonic()))):
            notify.watchdog()
            if time.monotonic() >= due_s:
                due_s = time.monotonic() + self._station.monitor.every_s
                self._look(0.0)
        notify.stopping()
        self._machine.close()
        if self._reader is not None:
            self._reader.close()

    def _look(self, wait_s: float) -> None:
        """Read everything once, write Health and renew the metrics."""
        started_s = time.monotonic()
        inspector = read_status(self._outbox, InspectorHealth, fresh_s=FRESH_S)
        publisher = read_status(self._outbox, PublisherHealth, fresh_s=FRESH_S)
        machine = self._machine.latest(wait_s)
        reader = self._current_reader()
        health = health_of(self._station, reader, inspector, publisher, machine)
        self._faults["machine_stuck"] = self._machine.stuck
        self._faults["connections_refused"] = self._server.refused if self._server else 0
        try:
            write_status(self._outbox, health)
        except OSError as error:
            self._faults["health_not_written"] += 1
            if self._faults["health_not_written"] == 1:
                log.error("Health could not be written beside the outbox: %s", error)
        self._figures.show(
            Watched(
                station=self._station,
                health=health,
                read_at_s=time.time(),
                reading_took_s=time.monotonic() - started_s,
                oldest_waiting_at_s=_oldest_waiting_at_s(self._outbox, reader),
                false_alarm_budget=self._false_alarm_budget(inspector),
                faults=dict(self._faults),
            )
        )
        state = "gone" if inspector is None else inspector.state
        way = "gone" if publisher is None else publisher.state
        notify.status(f"inspector {state}, publisher {way}, {health.outbox_depth} in the outbox")

    def _current_reader(self) -> OutboxReader | None:
        """Return a reader of the file that is there now: a new epoch replaces it."""
        if self._reader is not None and not self._reader.is_current():
            self._reader.close()
            self._reader = None
        if self._reader is None:
            self._reader = OutboxReader.open(self._outbox)
        return self._reader

    def _false_alarm_budget(self, inspector: InspectorHealth | None) -> float | None:
        """Of the bundle that the inspector runs; None where another one lies there."""
        if inspector is None or not inspector.bundle_digest:
            return None
        if self._bundle[0] != inspector.bundle_digest:
            self._bundle = (inspector.bundle_digest, self._budget_of(inspector.bundle_digest))
        return self._bundle[1]

    def _budget_of(self, digest: str) -> float | None:
        try:
            bundle = Bundle.open(Path(self._station.model.bundle))
        except InputError as error:
            log.warning("no false-alarm budget: %s", error)
            return None
        rule = bundle.manifest.spec.rule
        return rule.threshold.false_alarm_budget if rule and bundle.digest == digest else None


class _Figures(Collector):
    """Hands the newest figures to whoever scrapes, from any thread."""

    def __init__(self, stale_after_s: float) -> None:
        self._stale_after_s = stale_after_s
        self._families: list[Metric] = []
        self._shown_s = 0.0

    def show(self, watched: Watched) -> None:
        """Replace the figures."""
        self._families, self._shown_s = list(families_of(watched)), time.monotonic()

    def collect(self) -> list[Metric]:
        """Return the figures; none once they are old: a stuck monitor must look stuck."""
        if time.monotonic() - self._shown_s > self._stale_after_s:
            return []
        return self._families


class _When(msgspec.Struct):
    inspected_at: str


def _oldest_waiting_at_s(outbox: Path, reader: OutboxReader | None) -> float | None:
    """When the oldest record that waits was inspected; None where none waits."""
    if reader is None:
        return None
    try:
        acknowledged = read_cursor(outbox, reader.epoch).acknowledged
        for _, payload in reader.records_after(acknowledged, 1):
            return unix_s_of(msgspec.json.decode(payload, type=_When).inspected_at)
    except (sqlite3.Error, msgspec.DecodeError, RecursionError):
        pass
    return None
