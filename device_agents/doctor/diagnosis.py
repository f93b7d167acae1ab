"""The doctor: looks at each part of a station once, and says the next step for each that fails.

Every check is a function of the patient that yields findings. Whatever it does (raises, hangs),
the doctor goes on: a check that takes too long for one finding is left alone in its thread.
Nothing is changed at the station, and nothing that runs is disturbed.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Literal

from device_agents.station import StationFile
from edge.bundle import Bundle
from edge.errors import EdgeError
from edge.scorer import Engine

Outcome = Literal["ok", "warn", "fail", "skipped"]
GoldenProblems = Callable[[Bundle, Engine], list[str]]


@dataclass(frozen=True)
class Finding:
    """What one look showed. `do` is the next step where something is wrong."""

    check: str
    outcome: Outcome
    said: str
    do: str = ""


@dataclass
class Patient:
    """The station under examination. Later checks use what earlier ones opened."""

    station: StationFile
    golden_problems: GoldenProblems
    bundle: Bundle | None = None
    stop: Event = field(default_factory=Event)  # set when a check is given up

    @property
    def outbox(self) -> Path:
        """Where the station's outbox is or will be."""
        return Path(self.station.outbox.path)


@dataclass(frozen=True)
class Check:
    """One check, and how long each of its findings may take."""

    name: str
    look: Callable[[Patient], Iterator[Finding]]
    within_s: float = 15.0


def findings_of(patient: Patient, checks: Sequence[Check]) -> Iterator[Finding]:
    """Make every check in turn and yield what it finds, as it finds it."""
    for check in checks:
        yield from _bounded(patient, check)


def found_wrong(check: str, error: EdgeError, outcome: Outcome = "fail") -> Finding:
    """Turn one of our errors into a finding."""
    said = f"{error.where}: expected {error.expected}, found {error.found}"
    return Finding(check, outcome, said, error.do)


def _bounded(patient: Patient, check: Check) -> Iterator[Finding]:
    found: queue.Queue[Finding | None] = queue.Queue()
    patient.stop = stop = Event()
    Thread(target=_look, args=(patient, check, found), name=check.name, daemon=True).start()
    while True:
        try:
            finding = found.get(timeout=check.within_s)
        except queue.Empty:
            stop.set()
            yield Finding(
                check.name,
                "fail",
                f"no answer within {check.within_s:g} s",
                "Look for a disk, a device or a network that hangs: `dmesg`, `ss -tn`, `df`.",
            )
            return
        if finding is None:
            return
        yield finding


def _look(patient: Patient, check: Check, found: queue.Queue[Finding | None]) -> None:
    try:
        for finding in check.look(patient):
            found.put(finding)
    except EdgeError as error:
        found.put(found_wrong(check.name, error))
    except OSError as error:
        do = "Check the path, its owner and its rights."
        found.put(Finding(check.name, "fail", str(error), do))
    except Exception as error:  # a check that breaks must not hide the others
        said = f"the check itself broke: {type(error).__name__}: {error}"
        found.put(Finding(check.name, "fail", said, "Report this as a bug of `edge doctor`."))
    finally:
        found.put(None)
