"""Counters that several threads of the loop add to, on their way to the outbox."""

from __future__ import annotations

from threading import Lock


class Counts:
    """What happened since the recorder last looked. Only the recorder may touch the outbox."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._added: dict[str, int] = {}
        self._highest: dict[str, int] = {}

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter."""
        if by == 0:
            return
        with self._lock:
            self._added[name] = self._added.get(name, 0) + by

    def raise_to(self, name: str, value: int) -> None:
        """Keep the highest value seen under `name`."""
        with self._lock:
            self._highest[name] = max(self._highest.get(name, 0), value)

    def drain(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return (added, highest) and start anew."""
        with self._lock:
            drained = self._added, self._highest
            self._added, self._highest = {}, {}
        return drained
