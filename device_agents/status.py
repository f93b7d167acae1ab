"""What one agent tells the others of itself: a small file beside the outbox, replaced as a whole.

The agents are processes of their own; none waits for another. The inspector and the publisher
write how they are doing about once a second; the monitor adds the machine and writes the whole
`Health`; the publisher sends it. A file that is not there, not whole, or older than `fresh_s` is
no status: its writer is stopped or stuck.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TypeVar

import msgspec

from edge.messages import Health, InspectorHealth, PublisherHealth

S = TypeVar("S", InspectorHealth, PublisherHealth, Health)
_NAMES: dict[type, str] = {
    InspectorHealth: "inspector",
    PublisherHealth: "publisher",
    Health: "health",
}


def status_path_of(outbox: Path, kind: type) -> Path:
    """Return where the status of this kind lies, such as `outbox.sqlite.inspector.json`."""
    return outbox.with_name(f"{outbox.name}.{_NAMES[kind]}.json")


def write_status(outbox: Path, status: InspectorHealth | PublisherHealth | Health) -> None:
    """Replace the status file. Not made durable: after a power cut it means nothing anyway.

    Raises OSError (a full disk); the caller counts it and goes on.
    """
    path = status_path_of(outbox, type(status))
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(msgspec.json.encode(status))
    fresh.replace(path)


def read_status(outbox: Path, kind: type[S], *, fresh_s: float) -> S | None:
    """Return the status, or None: not there, not readable, or written over `fresh_s` ago."""
    path = status_path_of(outbox, kind)
    try:
        # A clock that jumps makes a status look stale for one period, never fresh for ever.
        if abs(time.time() - path.stat().st_mtime) > fresh_s:
            return None
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
