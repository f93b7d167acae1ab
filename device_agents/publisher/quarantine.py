"""Records that the broker will never take: put beside the outbox, for a person to look at."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import msgspec

from device_agents.outbox.file import flush_folder

LIMIT_BYTES = 16 << 20

log = logging.getLogger("publisher")


def quarantine_path_of(outbox: Path) -> Path:
    """Return where the quarantine of an outbox lies: one JSON object per line."""
    return outbox.with_name(outbox.name + ".quarantine.jsonl")


def put_aside(outbox: Path, sequence: int, why: str, payload: bytes | None) -> None:
    """Write one record and the reason; on the disk when this returns, for the cursor passes it.

    `payload` is None where the outbox has dropped it since.
    Past `LIMIT_BYTES` nothing is added, nor where the disk is full: the record is counted all the
    same, and stays a gap that consumers see.
    """
    path = quarantine_path_of(outbox)
    log.error("record %d quarantined in %s: %s", sequence, path, why)
    if payload is None:
        return
    with contextlib.suppress(OSError):
        is_new = not path.exists()
        if not is_new and path.stat().st_size > LIMIT_BYTES:
            return
        with path.open("ab") as file:
            line: dict[str, object] = {"why": why, "record": payload}  # bytes become base64
            with contextlib.suppress(msgspec.DecodeError):  # no JSON: the outbox was tampered with
                msgspec.json.decode(payload)
                line["record"] = msgspec.Raw(payload)
            file.write(msgspec.json.encode(line) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            flush_folder(path.parent)  # a power cut could else leave bytes without a name
