"""What one agent tells the others of itself: a small file beside the outbox, written in place.

The agents are processes of their own; none waits for another. The inspector and the publisher
write how they are doing about once a second; the monitor adds the machine and writes the whole
`Health`; the publisher sends it. A file that is not there, not whole, or older than `fresh_s` is
no status: its writer is gone or stuck. Only "stopped" and "failed" are an agent's last words, and
stay true until it is started again.

The file has room for more than is ever said and is written over, never made anew: a full disk must
not keep the inspector from saying that the disk is full.
"""

from __future__ import annotations

import contextlib
import os
import time
import zlib
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
_ROOM_BYTES = 32 << 10  # a Health with every counter and many sources has about 6 KiB
FRESH_S = 10.0  # a status that was written longer ago tells of an agent that ended or hangs
_SEAL_BYTES = 32
_READS = 5  # of a file that is just being written
_LAST_WORDS = ("stopped", "failed")


def status_path_of(outbox: Path, kind: type) -> Path:
    """Return where the status of this kind lies, such as `outbox.sqlite.inspector.json`."""
    return outbox.with_name(f"{outbox.name}.{_NAMES[kind]}.json")


def write_status(outbox: Path, status: InspectorHealth | PublisherHealth | Health) -> None:
    """Write over the status file. Not made durable: after a power cut it means nothing anyway.

    Raises OSError where the file cannot even be made; the caller counts it and goes on.
    """
    # One write of the whole file, and yet a reader may come between two pages of it. Half of each
    # of two statuses can be JSON, but not with its seal, and is read again (`read_status`).
    said = msgspec.json.encode(status)
    content = (said + b"\n" + _seal_of(said)).ljust(_ROOM_BYTES)
    file = os.open(status_path_of(outbox, type(status)), os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(file, content, 0)
        os.ftruncate(file, len(content))
    finally:
        os.close(file)


def read_status(outbox: Path, kind: type[S], *, fresh_s: float) -> S | None:
    """Return the status, or None: not there, not readable, or written over `fresh_s` ago."""
    path = status_path_of(outbox, kind)
    for _ in range(_READS):
        with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # A clock that jumps makes a status look stale for one period, never fresh for ever.
            is_fresh = abs(time.time() - path.stat().st_mtime) <= fresh_s
            status = msgspec.json.decode(_whole_line(path.read_bytes()), type=kind)
            return status if is_fresh or _is_last_word(status) else None
        if not path.exists():
            return None
    return None


def _whole_line(content: bytes) -> bytes:
    """Return the JSON; raises DecodeError where it is not what was written at once."""
    said, _, rest = content.partition(b"\n")
    if rest[:_SEAL_BYTES] != _seal_of(said):
        raise msgspec.DecodeError("half of one status and half of another")
    return said


def _seal_of(said: bytes) -> bytes:
    """Return the CRC-32 in blanks and tabs, which JSON may end in: the file stays plain JSON."""
    return (
        format(zlib.crc32(said), f"0{_SEAL_BYTES}b").replace("0", " ").replace("1", "\t").encode()
    )


def _is_last_word(status: InspectorHealth | PublisherHealth | Health) -> bool:
    return not isinstance(status, Health) and status.state in _LAST_WORDS
