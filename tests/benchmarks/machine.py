"""What the benchmarks share of measuring: who this machine is, and what a process spent."""

from __future__ import annotations

import os
import platform
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Usage:
    """What one process has spent so far."""

    cpu_s: float
    rss_bytes: int

    @classmethod
    def of(cls, pid: int) -> Usage:
        """Read /proc; zeros for a process that is gone."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        except OSError:
            return cls(0.0, 0)
        ticks = int(fields[11]) + int(fields[12])
        return cls(ticks / _TICKS_PER_S, int(fields[21]) * _PAGE_BYTES)

    def since(self, before: Usage) -> Usage:
        """Return the CPU spent since `before`, and the memory of now."""
        return Usage(self.cpu_s - before.cpu_s, self.rss_bytes)


class Watch:
    """Samples a process's memory until closed, for its highest and for its growth."""

    def __init__(self, pid: int, every_s: float = 0.5) -> None:
        self._pid, self._every_s = pid, every_s
        self.rss_bytes: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            if rss := Usage.of(self._pid).rss_bytes:
                self.rss_bytes.append(rss)

    @property
    def highest_mib(self) -> float:
        return max(self.rss_bytes, default=0) / 2**20

    @property
    def growth_mib(self) -> float:
        """The median of the last quarter less that of the second: start-up is no growth."""
        if len(self.rss_bytes) < 8:
            return 0.0
        quarter = len(self.rss_bytes) // 4
        early = statistics.median(self.rss_bytes[quarter : 2 * quarter])
        return (statistics.median(self.rss_bytes[-quarter:]) - early) / 2**20


@dataclass(frozen=True)
class Spent:
    """What a program took, with all processes that it started."""

    exit_status: int  # minus the signal where one ended it
    seconds: float
    peak_bytes: int  # the most resident memory of all its processes together
    said: str  # the last of its standard error
    answer: str  # the last line of its standard output

    @property
    def fate(self) -> str:
        """How it ended."""
        if self.exit_status == 0:
            return "finished"
        if self.exit_status == -signal.SIGKILL:
            return "killed, as the system does where memory runs out"
        return f"exit status {self.exit_status}: {self.said}"


def spent_by(
    command: Sequence[object],
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    limit_s: float = 3 * 3600.0,
) -> Spent:
    """Run a program in a session of its own and sample the memory of all its processes.

    Where memory runs out, the system is told to take this program and not the one that waits. A
    resident page that two of its processes share counts for both.
    """
    began, peak = time.monotonic(), 0
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, **(environment or {})},
        cwd=folder,
        start_new_session=True,
    )
    told: list[str] = ["", ""]
    reader = threading.Thread(target=lambda: told.__setitem__(slice(2), process.communicate()))
    _first_to_go(process.pid)
    reader.start()
    while reader.is_alive():
        peak = max(peak, _resident_bytes(process.pid), _highest_bytes(process.pid))
        reader.join(0.1)
        if time.monotonic() - began > limit_s:
            os.killpg(process.pid, signal.SIGKILL)
            limit_s = float("inf")
    seconds = time.monotonic() - began
    said, answer = (text.strip().rpartition("\n")[2] for text in (told[1], told[0]))
    return Spent(process.returncode, seconds, peak, said[-300:], answer)


def _first_to_go(pid: int) -> None:
    try:
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
    except OSError:
        return  # it is over already, or the system does not let us


def _resident_bytes(session: int) -> int:
    """Add up what all processes of a session have in memory now."""
    pages = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(") ")[2].split()
        except OSError:
            continue  # over in the meantime
        if int(fields[3]) == session:
            pages += int(fields[21])
    return pages * _PAGE_BYTES


def _highest_bytes(pid: int) -> int:
    """Return the highest resident memory of one process so far, which no sampling misses."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)


def percentiles(values: NDArray[np.float64]) -> dict[str, float]:
    """Return p50, p90, p99, p99.9 and the highest; NaN where there is nothing."""
    if not len(values):
        return dict.fromkeys(("p50", "p90", "p99", "p99.9", "max"), float("nan"))
    p50, p90, p99, p999 = np.percentile(values, [50, 90, 99, 99.9])
    named = {"p50": p50, "p90": p90, "p99": p99, "p99.9": p999, "max": values.max()}
    return {name: float(value) for name, value in named.items()}


def identity() -> dict[str, str | int]:
    """Say which machine and which versions the figures belong to."""
    processor = platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            processor = line.split(":", 1)[1].strip()
            break
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0].__format__(".2f"),
    }
