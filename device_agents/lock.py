"""One process at a time: a lock file, held until the process ends however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from edge.errors import MachineError


def hold(path: Path, holder: str) -> int:
    """Lock `path` for this process and return the open file; closing it lets go.

    Raises MachineError when another process of the same kind (`holder`, in words) holds it.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise MachineError(
            where=path,
            expected=f"no other {holder} of this station",
            found=f"another {holder} at work on the same outbox",
            do="Stop the other one, or give this station an outbox.path of its own.",
        ) from None
    return lock
