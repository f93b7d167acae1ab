"""What the doctor looks at in the machine: disk, outbox, clock, rights, port, agents at work."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import sqlite3
import stat
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from urllib.parse import quote

from device_agents.clock import clock_is_set
from device_agents.doctor.diagnosis import Finding, Patient
from device_agents.outbox.cursor import read_cursor
from device_agents.outbox.file import refuse_other_files
from device_agents.outbox.reader import OutboxReader
from device_agents.status import FRESH_S, read_status
from edge.messages import InspectorHealth, PublisherHealth

LOCKS = {"inspector": ".lock", "publisher": ".publisher.lock", "monitor": ".monitor.lock"}
_LEAST_FREE_BYTES = 64 << 20
_SLOW_FSYNC_MS = 20.0
_FSYNCS = 20
_CHECK_OUTBOX_WITHIN_S = 8.0
_TIME_ERROR = 5  # what adjtimex(2) returns while the clock is not synchronised
_TIMEX_BYTES = 512  # more than struct timex has on any 64-bit Linux


def look_at_disk(patient: Patient) -> Iterator[Finding]:
    """The outbox's folder: may we write there, is there room, how long does fsync take?"""
    folder = patient.outbox.parent
    while not folder.exists():  # the inspector makes it
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            times_ms = [_fsync_ms(file.fileno()) for _ in range(_FSYNCS)]
    except OSError as error:
        yield Finding(
            "disk",
            "fail",
            f"{folder} cannot be written: {error.strerror}",
            "Give the folder to the agents' user (chown), free its disk, or change outbox.path.",
        )
        return
    yield _room_in(patient, folder)
    median_ms, worst_ms = statistics.median(times_ms), max(times_ms)
    said = f"a record is durable after {median_ms:.1f} ms (fsync; longest of {_FSYNCS}: "
    said += f"{worst_ms:.1f} ms)"
    if median_ms <= _SLOW_FSYNC_MS:
        yield Finding("disk", "ok", said)
    else:
        do = "Put the outbox on an NVMe disk; on an SD card the loop waits for each record."
        yield Finding("disk", "warn", said, do)


def _room_in(patient: Patient, folder: Path) -> Finding:
    usage = os.statvfs(folder)
    free = usage.f_bavail * usage.f_frsize
    limits = patient.station
    wanted = limits.outbox.max_bytes * 11 // 10 + limits.pictures.max_bytes
    wanted -= _taken_by(patient.outbox)
    said = f"{folder}: {free / 1e9:.1f} GB free"
    if free < _LEAST_FREE_BYTES:
        return Finding("disk", "fail", said, "Free some space: records will soon be lost.")
    if free < wanted:
        do = "Free some, or lower outbox.max_bytes and pictures.max_bytes: the disk fills first."
        said += f", the station's limits allow {wanted / 1e9:.1f} GB more"
        return Finding("disk", "warn", said, do)
    return Finding("disk", "ok", said)


def _taken_by(outbox: Path) -> int:
    """Bytes of the outbox, its journals and its pictures."""
    beside = [outbox.with_name(outbox.name + end) for end in ("", "-wal", "-shm")]
    pictures = outbox.with_name(outbox.name + ".pictures").rglob("*")
    return sum(path.stat().st_size for path in (*beside, *pictures) if path.is_file())


def _fsync_ms(file: int) -> float:
    os.write(file, b"\0" * 4096)
    started_s = time.perf_counter()
    os.fsync(file)
    return (time.perf_counter() - started_s) * 1e3


def look_at_outbox(patient: Patient) -> Iterator[Finding]:
    """The outbox's file: is it ours and sound, and how much waits in it?"""
    path = patient.outbox
    refuse_other_files(path, path.with_name(path.name + LOCKS["inspector"]))
    if not path.exists():
        yield Finding("outbox", "ok", f"none yet at {path}: the inspector makes it")
        return
    if not os.access(path, os.R_OK | os.W_OK):
        do = f"Run the agents as the user who made it, or: chown USER {path}*"
        yield Finding("outbox", "fail", f"{path} is not ours to read and write", do)
        return
    with contextlib.closing(_opened(path)) as db:
        problem = _problem_of(db)
        if not problem:
            yield _depth_of(path, db)
            return
    do = "The inspector will set it aside and start a new one; what was not sent yet stays in the "
    do += "file beside it. Check the disk (`dmesg`, `smartctl`)."
    yield Finding("outbox", "fail", f"{path}: {problem}", do)


def _opened(path: Path) -> sqlite3.Connection:
    """Open for reading, and leave no file beside it where no inspector has any open."""
    journal = path.with_name(path.name + "-wal")
    idle = holder_of(path, "inspector") is None and not journal.exists()
    how = "mode=ro&immutable=1" if idle else "mode=ro"
    return sqlite3.connect(f"file:{quote(str(path))}?{how}", uri=True, timeout=1.0)


def _problem_of(db: sqlite3.Connection) -> str:
    # A large outbox is checked as far as the time allows.
    deadline_s = time.monotonic() + _CHECK_OUTBOX_WITHIN_S
    db.set_progress_handler(lambda: time.monotonic() > deadline_s, 100_000)
    try:
        answer = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
        return "" if answer == "ok" else answer
    except sqlite3.Error as error:
        return "" if str(error) == "interrupted" else str(error)
    finally:
        db.set_progress_handler(None, 0)


def _depth_of(path: Path, db: sqlite3.Connection) -> Finding:
    try:
        reader = OutboxReader(path, db, path.stat().st_ino)
        depth = reader.depth_after(read_cursor(path, reader.epoch).acknowledged)
    except sqlite3.Error as error:
        do = "Name another outbox.path: this file is left as it is."
        return Finding("outbox", "fail", f"{path} is not an outbox: {error}", do)
    return Finding("outbox", "ok", f"sound, epoch {reader.epoch[:8]}, {depth} records wait")


def look_at_clock(_: Patient) -> Iterator[Finding]:
    """The clock: could it be right at all, and is it kept right?"""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if not clock_is_set():
        do = "Set it (`timedatectl set-ntp true`, a battery for the RTC): TLS waits for the time."
        yield Finding("clock", "fail", f"{now} is before this software was made", do)
        return
    synchronised = clock_is_synchronised()
    if synchronised is None:
        yield Finding("clock", "warn", f"{now}; nobody here says whether it is synchronised")
    elif synchronised:
        yield Finding("clock", "ok", f"{now}, synchronised")
    else:
        do = "Switch a time service on: timedatectl set-ntp true, or chrony with the plant's server"
        yield Finding("clock", "warn", f"{now}, not synchronised", do)


def clock_is_synchronised() -> bool | None:
    """Ask systemd, else the kernel; None where neither says."""
    timedatectl = which("timedatectl")
    if timedatectl is not None:
        command = [timedatectl, "show", "-p", "NTPSynchronized", "--value"]
        try:
            said = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if said.returncode == 0 and said.stdout.strip() in ("yes", "no"):
            return said.stdout.strip() == "yes"
    try:
        state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else state != _TIME_ERROR


def look_at_rights(patient: Patient) -> Iterator[Finding]:
    """The files of the station: readable by this user, the secret ones by nobody else."""
    broker = patient.station.broker
    sound = 0
    for key in ("password_file", "key_file", "key_password_file", "ca_file", "certificate_file"):
        name = getattr(broker, key)
        if name is None:
            continue
        finding = _rights_of(f"broker.{key}", Path(name), secret=key[:3] in ("pas", "key"))
        sound += finding is None
        if finding is not None:
            yield finding
    who = f"user {os.geteuid()}"
    if os.geteuid() == 0:
        do = "Run it as the agents' user too (sudo -u USER edge doctor ...): root may read all."
        yield Finding("rights", "warn", "run as root, which is refused nothing", do)
        return
    yield Finding("rights", "ok", f"{who}: {sound} files of the broker's readable as they should")


def _rights_of(key: str, path: Path, *, secret: bool) -> Finding | None:
    try:
        with path.open("rb"):
            mode = path.stat().st_mode
    except OSError as error:
        do = f"Put it there, readable by the agents' user, or correct {key}."
        return Finding("rights", "fail", f"{key} {path}: {error.strerror}", do)
    if secret and mode & (stat.S_IROTH | stat.S_IWOTH):
        said = f"{key} {path} can be read by every user of this machine"
        return Finding("rights", "fail", said, f"chmod 600 {path}")
    return None


def look_at_port(patient: Patient) -> Iterator[Finding]:
    """The monitor's port: free, or the monitor's already."""
    monitor = patient.station.monitor
    if monitor.port is None:
        yield Finding("monitor port", "skipped", "monitor.port is 0: no metrics are served")
        return
    place = f"{monitor.address}:{monitor.port}"
    if holder_of(patient.outbox, "monitor") is not None:
        yield Finding("monitor port", "ok", f"{place} is served by the monitor at work")
        return
    family = socket.AF_INET6 if ":" in monitor.address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((monitor.address, monitor.port))
        except (OSError, UnicodeError) as error:
            do = f"Change monitor.port, or stop who listens: ss -ltnp 'sport = :{monitor.port}'"
            yield Finding("monitor port", "fail", f"{place}: {error}", do)
            return
    yield Finding("monitor port", "ok", f"{place} is free")


def look_at_agents(patient: Patient) -> Iterator[Finding]:
    """Which of the station's agents are at work; none of them is disturbed."""
    at_work = []
    for agent in LOCKS:
        holder = holder_of(patient.outbox, agent)
        if holder is not None:
            at_work.append(f"{agent} (process {holder})" if holder else agent)
    yield Finding("agents", "ok", f"at work: {', '.join(at_work) or 'none'}")
    inspector = read_status(patient.outbox, InspectorHealth, fresh_s=FRESH_S)
    if inspector is not None and inspector.state in ("degraded", "failed"):
        yield _unwell("inspector", inspector.state, inspector.reason)
    publisher = read_status(patient.outbox, PublisherHealth, fresh_s=FRESH_S)
    if publisher is not None and publisher.state == "away":
        yield _unwell("publisher", publisher.state, publisher.reason)


def _unwell(agent: str, state: str, reason: str) -> Finding:
    do = f"See its journal: journalctl -u 'orin-inspect-{agent}@*'"
    return Finding("agents", "warn", f"the {agent} is {state}: {reason}", do)


def holder_of(outbox: Path, agent: str) -> int | None:
    """Return the process that holds the agent's lock, 0 where it is hidden, None where none does.

    Read from the kernel's list: to try the lock would make an agent that starts just then fail.
    """
    try:
        inode = outbox.with_name(outbox.name + LOCKS[agent]).stat().st_ino
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    for line in lines:
        words = line.split()
        if "->" not in words and "FLOCK" in words and words[5].endswith(f":{inode}"):
            return max(0, int(words[4]))
    return None
