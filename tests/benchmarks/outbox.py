"""The outbox: how long a record takes to be durable, alone and in groups.

Beside it, what a good engineer would write first: one row and one commit in plain SQLite (its
default rollback journal, `synchronous=FULL`), and one line and one fsync in a JSONL file. All of
them in turn, a hundred records each, so that a noisy disk is noisy for all. None of the two
bounds itself, drops by rule, or says after a restart what it has already sent.
"""

import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from device_agents.outbox.writer import Outbox
from edge.messages import Inspection, Timings, encode
from edge.topics import StationId

GROUPS = (1, 8, 64)
_ROUND = 128  # records in one turn; every group size goes into it
_WARM = 3  # turns that are not counted

Write = Callable[[list[Inspection]], object]


def run(*, quick: bool = False) -> dict:
    """Print a table and return its figures; there is nothing here that could be broken."""
    figures = measure(10 if quick else 60)
    print("\noutbox: one record of", figures["payload_bytes"], "bytes, in memory to durable")
    print(f"  a write of 8 KiB and fdatasync: p50 {figures['fsync']['p50_ms']:.3f} ms")
    ours = figures["outbox, 1 at a time"]
    for name, found in figures.items():
        if not isinstance(found, dict) or name == "fsync":
            continue
        print(
            f"  {name:34} p50 {found['p50_ms']:7.3f}  p99 {found['p99_ms']:7.3f} ms a commit, "
            f"{found['records_per_second']:8,.0f} records/s, "
            f"{found['records_per_second'] / ours['records_per_second']:6.2f} x"
        )
    return figures


def measure(rounds: int = 60) -> dict:
    """Return, by contender, p50 and p99 of a commit in milliseconds and records per second."""
    with tempfile.TemporaryDirectory(prefix="outbox-") as name:
        folder = Path(name)
        with Outbox.open(folder / "o.sqlite", max_rows=500_000, max_bytes=512 << 20) as outbox:
            draft = _inspection(outbox.epoch)
            writers = _contenders(folder, outbox)
            spent: dict[str, list[float]] = {label: [] for label in writers}
            for turn in range(rounds + _WARM):
                for label, (group, write) in writers.items():
                    seconds = _one_turn(write, draft, outbox, group)
                    if turn >= _WARM:
                        spent[label] += seconds
        synced = _bare_fsync(folder / "bare")
    figures: dict = {"payload_bytes": len(encode(draft)), "fsync": _figures(synced, 1)}
    for label, (group, _) in writers.items():
        figures[label] = _figures(spent[label], group)
    return figures


def _contenders(folder: Path, outbox: Outbox) -> dict[str, tuple[int, Write]]:
    def ours(inspections: list[Inspection]) -> None:
        assert all(outbox.append_all(inspections))
        outbox.note_acknowledged(outbox.next_sequence - 200)

    plain = sqlite3.connect(folder / "plain.sqlite", isolation_level=None)
    plain.execute("PRAGMA synchronous = FULL")
    plain.execute("CREATE TABLE outbox (sequence INTEGER PRIMARY KEY AUTOINCREMENT, payload BLOB)")
    lines = (folder / "plain.jsonl").open("ab")

    def sqlite(inspections: list[Inspection]) -> None:
        plain.execute("BEGIN")
        rows = [(encode(inspection),) for inspection in inspections]
        plain.executemany("INSERT INTO outbox (payload) VALUES (?)", rows)
        plain.execute("COMMIT")

    def jsonl(inspections: list[Inspection]) -> None:
        for inspection in inspections:
            lines.write(encode(inspection) + b"\n")
        lines.flush()
        os.fsync(lines.fileno())

    return {
        f"{label}, {group} at a time": (group, write)
        for label, write in (("outbox", ours), ("plain SQLite", sqlite), ("JSONL and fsync", jsonl))
        for group in GROUPS
    }


def _one_turn(write: Write, draft: Inspection, outbox: Outbox, group: int) -> list[float]:
    """Write one turn's records in groups; return the seconds of each commit."""
    seconds = []
    for _ in range(_ROUND // group):
        first = outbox.next_sequence
        records = [
            msgspec.structs.replace(draft, inspection_id=f"{outbox.epoch}-{n}", sequence=n)
            for n in range(first, first + group)
        ]
        began = time.perf_counter()
        write(records)
        seconds.append(time.perf_counter() - began)
    return seconds


def _bare_fsync(path: Path) -> list[float]:
    """What this disk takes for the least that is durable: overwrite two pages, and wait."""
    seconds = []
    with path.open("wb", buffering=0) as file:
        file.write(bytes(1 << 20))
        os.fsync(file.fileno())
        for turn in range(500):
            began = time.perf_counter()
            os.pwrite(file.fileno(), b"x" * 8192, turn % 128 * 8192)
            os.fdatasync(file.fileno())
            seconds.append(time.perf_counter() - began)
    return seconds


def _figures(seconds: list[float], group: int) -> dict[str, float]:
    return {
        "p50_ms": statistics.median(seconds) * 1e3,
        "p99_ms": float(np.quantile(seconds, 0.99)) * 1e3,
        "records_per_second": group * len(seconds) / sum(seconds),
    }


def _inspection(epoch: str) -> Inspection:
    return Inspection(
        inspection_id=f"{epoch}-1",
        station=StationId("north", "milling", "l1", "s1"),
        station_epoch=epoch,
        sequence=1,
        sample_id="p00000001",
        part_id="part00000001",
        captured_at="2026-11-21T08:30:00.000000Z",
        inspected_at="2026-11-21T08:30:00.012345Z",
        decision="pass",
        label="good",
        anomaly_score=0.1234,
        threshold=0.5,
        class_scores={"good": 0.98, "scratch": 0.01, "dent": 0.01},
        modalities=("image", "sensor"),
        reason="",
        bundle_digest="d" * 64,
        engine="onnxruntime 1.31 CPUExecutionProvider int8",
        timings=Timings(0.4, 3.2, 3.9, 0.1),
    )
