"""How the way to the broker is doing: told to the monitor and to systemd once a second."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from threading import Event
from typing import Literal

from device_agents import notify
from device_agents.clock import now_iso
from device_agents.status import write_status
from edge.messages import PublisherHealth

_EVERY_S = 1.0

log = logging.getLogger("publisher")


class WayStatus:
    """The publisher's status file and its watchdog. Whoever may wait long waits by `wait`."""

    def __init__(self, outbox: Path) -> None:
        self._outbox = outbox
        self._state: Literal["connected", "away", "stopped"] = "away"
        self._reason = "starting"
        self._since = now_iso()
        self._due_s = 0.0
        self._fault = ""
        self.acknowledged = 0

    @property
    def health(self) -> PublisherHealth:
        """The way's part of `Health`."""
        return PublisherHealth(
            state=self._state,
            reason=self._reason,
            since=self._since,
            acknowledged=self.acknowledged,
        )

    def now(self, state: Literal["connected", "away", "stopped"], reason: str = "") -> None:
        """Note a new state, and write it at once."""
        if state != self._state:
            self._since = now_iso()
        self._state, self._reason = state, reason
        self._due_s = 0.0
        notify.status(f"{state}: {reason}" if reason else state)
        self.beat()

    def beat(self) -> None:
        """Write the file and feed the watchdog, once a second however often it is called."""
        now_s = time.monotonic()
        if now_s < self._due_s:
            return
        self._due_s = now_s + _EVERY_S
        notify.watchdog()
        try:
            write_status(self._outbox, self.health)
            self._fault = ""
        except OSError as error:  # it means nothing to the records
            if str(error) != self._fault:
                log.warning("the publisher's status could not be written: %s", error)
            self._fault = str(error)

    def wait(self, seconds: float, stop: Event) -> None:
        """Wait until `stop` is set or the time is over, and go on telling."""
        until_s = time.monotonic() + seconds
        while not stop.is_set() and (left_s := until_s - time.monotonic()) > 0:
            self.beat()
            stop.wait(min(_EVERY_S, left_s))
