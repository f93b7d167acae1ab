"""A pipeline and the thread that reads what it gives: started, watched for silence, and ended.

The thread empties the pipe at all times, so that the time of arrival of what comes is its own, and
nothing stale piles up in it. What went wrong there is raised to whoever waits for it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from threading import Thread
from typing import TypeVar

from device_agents.streams.matroska import BrokenStream, MatroskaStream, Track
from device_agents.streams.pipeline import GstPipeline, Launch
from edge.errors import MachineError

_FIRST_WITHIN_S = 15.0  # a camera or a sound card may take this long to give something

R = TypeVar("R", bound="PipelineReader")


class PipelineReader(ABC):
    """One run of a pipeline. Use it as a context manager.

    `expected` says in words what it gives. Nothing for `stalled_after_s` is a failure.
    """

    def __init__(self, launch: Launch, *, expected: str, stalled_after_s: float) -> None:
        self._launch = launch
        self._expected = expected
        self._stalled_after_s = stalled_after_s
        self._fault: MachineError | None = None
        self._begun = False

    def __enter__(self: R) -> R:
        self._pipeline = GstPipeline(self._launch)
        self._heard_ns = time.monotonic_ns()  # when something came last, by the monotonic clock
        self._thread = Thread(target=self._read, name=self._launch.where, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipeline.close()
        self._thread.join()
        self._pipeline.output.close()

    @property
    def process_id(self) -> int:
        """The process that runs the pipeline."""
        return self._pipeline.process_id

    @abstractmethod
    def _refuse_other(self, track: Track) -> None:
        """Raise BrokenStream where the stream is not of the kind that was asked for."""

    @abstractmethod
    def _take_block(self, stream: MatroskaStream, track: Track) -> None:
        """Read one block and set `_heard_ns`: the thread's work, again and again."""

    def _raise_failure(self) -> None:
        """Raise MachineError where nothing will come any more, or nothing came for too long."""
        if self._fault is not None:
            raise self._fault
        silent_s = (time.monotonic_ns() - self._heard_ns) / 1e9
        limit_s = self._stalled_after_s
        if silent_s > (limit_s if self._begun else max(_FIRST_WITHIN_S, limit_s)):
            raise self._pipeline.failure(self._expected, f"none for {silent_s:.1f} s")

    def _read(self) -> None:
        try:
            stream = MatroskaStream(self._pipeline.output)
            track = stream.track()
            self._refuse_other(track)
            while True:
                self._take_block(stream, track)
                self._begun = True
        except EOFError:
            self._fault = self._pipeline.failure(self._expected, self._pipeline.how_it_ended())
        except (BrokenStream, ValueError) as error:
            self._fault = self._pipeline.failure(self._expected, str(error))
