"""The proof: 1,000 inspections through real processes and a real broker, on a bad day."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest
from small_station import (
    BAD,
    GOOD,
    edge,
    needs_mosquitto,
    write_bundle,
    write_squares,
    write_station,
)

from device_agents.broker import EmbeddedBroker, running_broker
from device_agents.outbox.cursor import read_cursor
from device_agents.outbox.reader import OutboxReader

PARTS = 1_000
RATE = 100.0
BROKER_AWAY_S = 3.0


@dataclass
class BadDay:
    """What came out of it, for the judge."""

    lines: list[dict] = field(default_factory=list)  # what `edge listen --jsonl` printed
    summary: str = ""  # its last words
    publisher_said: str = ""
    away_from: float = 0.0  # Unix time: when the broker was gone
    away_until: float = 0.0

    def of(self, kind: str) -> list[dict]:
        return [line for line in self.lines if line["kind"] == kind]

    def inspection_gaps(self) -> list[tuple[float, float]]:
        """(seconds to the next inspection, Unix time) by the inspector's own stamps."""
        stamps = [
            datetime.fromisoformat(i["inspected_at"].replace("Z", "+00:00")).timestamp()
            for i in self.of("inspection")
        ]
        return [(later - earlier, earlier) for earlier, later in pairwise(stamps)]


def live_through(folder: Path, broker: EmbeddedBroker) -> BadDay:
    """Inspector, publisher and listener as processes; kill -9 for one, a restart for the broker."""
    day = BadDay()
    # Room for a stall of the machine that runs the tests: this proof is about the way out.
    station = write_station(folder, broker.port, source="[loop]\nqueue = 200")
    listener = edge(
        *("listen", "--broker", broker.url, "--jsonl", "--client-id", "judge"),
        *("--count", PARTS, "--timeout", 60),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    # What is sent before somebody listens, nobody misses: the judge must be there first.
    assert "connected" in listener.stderr.readline().decode()
    reading = threading.Thread(
        target=lambda: day.lines.extend(map(json.loads, listener.stdout)), daemon=True
    )
    reading.start()
    publisher = edge("agent", "publisher", "--station", station, stderr=subprocess.PIPE)
    inspector = edge("agent", "inspector", "--station", station, stderr=subprocess.PIPE)
    try:
        wait_for_sequence(folder, 200)
        publisher.kill()  # kill -9 with records under way
        publisher.communicate()
        publisher = edge("agent", "publisher", "--station", station, stderr=subprocess.PIPE)
        wait_for_sequence(folder, 400)
        broker.stop()
        day.away_from = time.time()
        time.sleep(BROKER_AWAY_S)
        day.away_until = time.time()
        broker.start()
        assert inspector.wait(40) == 0, inspector.stderr.read().decode()
        assert listener.wait(60) == 0, listener.stderr.read().decode()
        reading.join(5)
        day.summary = listener.stderr.read().decode().splitlines()[-1]
    finally:
        publisher.terminate()
        day.publisher_said = publisher.communicate(timeout=10)[1].decode()
        for process in (inspector, listener):
            process.kill()
    assert publisher.returncode == 0, day.publisher_said
    return day


@needs_mosquitto
@pytest.mark.timeout(150)
def test_thousand_inspections_survive_a_broker_restart_and_a_killed_publisher(tmp_path):
    write_squares(tmp_path / "rec", [BAD if i % 10 == 0 else GOOD for i in range(PARTS)], rate=RATE)
    write_bundle(tmp_path / "bundle")
    with running_broker(tmp_path / "broker", kind="mosquitto") as broker:
        day = live_through(tmp_path, broker)
    counters = outbox_counters(tmp_path)
    gaps = day.inspection_gaps()
    while_away = [gap for gap, at in gaps if day.away_from <= at <= day.away_until]
    print(
        f"\n{day.summary}\nlongest gap between inspections {max(gaps)[0] * 1e3:.1f} ms, "
        f"{max(while_away) * 1e3:.1f} ms of {len(while_away)} while the broker was away; "
        f"counters {counters}"
    )

    # Every inspection arrived, in order, once each.
    inspections = day.of("inspection")
    assert [i["sequence"] for i in inspections] == list(range(1, PARTS + 1))
    assert [i["sample_id"] for i in inspections] == [f"p{n:04d}" for n in range(PARTS)]
    assert len({i["inspection_id"] for i in inspections}) == PARTS
    assert [i["decision"] for i in inspections] == ["fail", *["pass"] * 9] * (PARTS // 10)
    assert "0 missing, 0 out of order, 0 payloads not understood" in day.summary
    states = [line["state"] for line in day.of("presence")]
    assert states[0] == "online"
    assert "offline" in states, "the last will of the killed publisher"

    # The inspector never stalled. Had it waited for the broker, its own stamps and its lateness
    # would show a gap as long as the broker was away. What a busy test machine's disk takes for
    # an fsync is shorter, and stands in `append_max_ms`.
    assert len(while_away) > BROKER_AWAY_S * RATE / 2
    assert max(while_away) < BROKER_AWAY_S * 0.8
    assert counters["late_max_ms"] < BROKER_AWAY_S * 1e3 * 0.8
    assert (counters["inspected"], counters.get("lost_disk", 0)) == (PARTS, 0)
    assert not [name for name in counters if name.startswith("dropped")]


def wait_for_sequence(folder, sequence):
    """Wait until the broker has acknowledged so many."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        reader = OutboxReader.open(folder / "outbox.sqlite")
        if reader is not None:
            epoch = reader.epoch
            reader.close()
            if read_cursor(folder / "outbox.sqlite", epoch).acknowledged >= sequence:
                return
        time.sleep(0.02)
    raise AssertionError(f"the broker never acknowledged {sequence}")


def outbox_counters(folder):
    reader = OutboxReader.open(folder / "outbox.sqlite")
    counters = reader.counters()
    reader.close()
    return counters
