"""Scalars in a file that TensorBoard reads.

The records are TensorBoard's own; only its writer is not used. That one writes from a thread, which
loses seconds when the process is killed, opens its file anew by name for each flush, and tells of a
full disk by a traceback of its own before anybody can say it in words.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from io import FileIO
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

_VERSION = "brain.Event:2"


class TensorboardFile:
    """One more file in `folder`; TensorBoard hides what earlier ones say from `first_step` on."""

    def __init__(self, folder: Path, first_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        name = f"events.out.tfevents.{now:017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file: FileIO = (folder / name).open("xb", buffering=0)
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=now, step=first_step, file_version=_VERSION))
        begin = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=now, step=first_step, session_log=begin))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append the values of one step and hand them to the system at once. Raises OSError."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def close(self) -> None:
        """Close the file; all of it is written already."""
        self._file.close()

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
