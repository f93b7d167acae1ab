"""Reads the machine in a thread of its own, so that a file that never answers holds nobody up.

Some files of sysfs talk to firmware and have been seen to block for ever (a sleeping thermal zone
of an Orin Nano among them). The file that does not answer in time is given up by name, and a fresh
thread reads on without it; the stuck one cannot be ended and is left behind, a few at most.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import msgspec

from device_agents.monitor.jetson import Jetson
from device_agents.monitor.machine import Machine
from edge.messages import MachineHealth

_MOST_THREADS = 8  # stuck ones that may be left behind

log = logging.getLogger("monitor")


class MachineReader:
    """Keeps the newest reading. Owns its thread; `latest` never waits longer than it is told."""

    def __init__(
        self, root: Path, disk: Path, *, jtop: bool, every_s: float, patience_s: float = 5.0
    ) -> None:
        self._root, self._disk = root, disk
        self._every_s, self._patience_s = every_s, patience_s
        self._jetson = Jetson(min(every_s, 1.0)) if jtop else None
        self._given_up: set[str] = set()
        self.stuck = 0  # how often a file did not answer
        self._stop = threading.Event()
        self._start()

    def latest(self, wait_s: float = 0.0) -> MachineHealth | None:
        """Return the newest reading; None while there is none, or none that is still true."""
        reading = self._reading
        if reading.health is None:
            reading.done.wait(wait_s)
        overdue_s = time.monotonic() - reading.started_s - self._patience_s
        if overdue_s > 0 and self.stuck < _MOST_THREADS:
            self._give_up(reading)
        fresh = overdue_s <= 0
        return self._with_reason(reading.health) if reading.health and fresh else None

    def close(self) -> None:
        """Tell the thread to end; a stuck one ends with the process."""
        self._stop.set()
        if self._jetson is not None and not self._reading.in_jtop:
            self._jetson.close()

    def _start(self) -> None:
        self._reading = _Reading(Machine(self._root, self._disk), set(self._given_up))
        thread = threading.Thread(
            target=self._read_on, args=(self._reading,), name="machine", daemon=True
        )
        thread.start()

    def _read_on(self, reading: _Reading) -> None:
        while not self._stop.is_set() and reading is self._reading:
            reading.started_s = time.monotonic()
            try:
                health: MachineHealth | None = self._read_once(reading)
            except Exception:  # a bug, or a file as no kernel writes it: no figures, and on we go
                log.exception("the machine could not be read")
                health = None
            reading.started_s = float("inf")  # nothing is under way
            reading.health = health
            reading.done.set()
            self._stop.wait(self._every_s)

    def _read_once(self, reading: _Reading) -> MachineHealth:
        health = reading.machine.read()
        jetson = self._jetson
        if jetson is None:
            return health
        reading.in_jtop = True
        try:
            return jetson.over(health)
        finally:
            reading.in_jtop = False

    def _give_up(self, reading: _Reading) -> None:
        """Start over without what does not answer."""
        self.stuck += 1
        if reading.in_jtop:
            culprit, self._jetson = "jtop", None
        else:
            culprit = reading.machine.reading
        log.error("%s has not answered for %g s: not read any more", culprit, self._patience_s)
        self._given_up.add(culprit)
        self._start()

    def _with_reason(self, health: MachineHealth) -> MachineHealth:
        if not self._given_up:
            return health
        silent = f"no answer from {', '.join(sorted(self._given_up))}"
        reason = f"{health.reason}; {silent}" if health.reason else silent
        return msgspec.structs.replace(health, reason=reason)


class _Reading:
    """What one thread has read, and what it is reading."""

    def __init__(self, machine: Machine, given_up: set[str]) -> None:
        self.machine = machine
        machine.given_up = given_up
        self.health: MachineHealth | None = None
        self.done = threading.Event()  # the first reading is there
        self.started_s = float("inf")  # monotonic; of the reading under way
        self.in_jtop = False
