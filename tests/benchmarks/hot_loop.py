"""The hot loop: frame in memory to record durable, with the real inspector and the real outbox.

    python -m tests.benchmarks.hot_loop                 one minute of each variant
    python -m tests.benchmarks.hot_loop --seconds 600   the promise: ten minutes

Frames of 1280x960 and windows of 2x2048 lie in memory; the scorer returns at once, so that what is
measured is everything but the model. Each run is a process of its own on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event, Timer

import numpy as np

from device_agents.inspector.judge import Judge
from device_agents.inspector.latency import LastMinute
from device_agents.inspector.loop import Inspector
from device_agents.outbox.kept import KeptPictures
from device_agents.outbox.writer import Outbox
from device_agents.parts import Reading, Shot
from device_agents.station import Broker, Model, Pictures, StationFile
from edge.model_spec import ImageInput, ModelSpec, SensorInput
from edge.sample import Channel, Frame, Window
from edge.scorer import ModelInputs, Scores
from edge.topics import StationId
from edge.verdict import DecisionRule, Threshold

HEIGHT, WIDTH = 960, 1280
READINGS = 2048
CHANNELS = (Channel("drive_end", "g", 12_000.0), Channel("fan_end", "g", 12_000.0))
MAP_HEIGHT, MAP_WIDTH, EMBEDDING = 12, 16, 64
CORES = 2
P50_BUDGET_MS, P99_BUDGET_MS = 1.5, 5.0
NOT_JUDGED = (
    *("invalid_behind", "lost_behind", "dropped_free_running", "lost_disk", "dropped_at_stop"),
)
VARIANTS: dict[str, dict[str, float]] = {
    "no resize": {},
    "resize to 256x192": {"model_height": 192, "model_width": 256},
    "4 sources, batch 4": {"sources": 4, "batch": 4},
    "every part fails": {"fail_share": 1.0},
}
_FRAMES = 8  # distinct ones, played in turn
_WINDOWS = 101  # the same one for two parts running would be a stuck sensor, whoever was dropped
_FIRST_S = 0.5  # from the start of the loop to the first part


def measure(
    seconds: float,
    rate: float = 100.0,
    *,
    sources: int = 1,
    model_height: int = HEIGHT,
    model_width: int = WIDTH,
    batch: int = 1,
    fail_share: float = 0.01,
    pictures: bool = True,
    folder: Path | None = None,
) -> dict[str, float]:
    """Run the inspector for `seconds` at `rate` parts/s in a fresh process; return its figures.

    Milliseconds from frame in memory to record durable (p50_ms, p90_ms, p99_ms, p999_ms, max_ms),
    parts asked for and durable, parts not judged in time, pictures kept and dropped, RSS in bytes
    after the first second and at the end (the benchmark's own frames, rss_of_frames_bytes, are in
    both), CPU and wall seconds; `kept` says that no part was lost. `folder` is where the outbox
    lies: a disk, not a RAM disk.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix="hot-loop-") as scratch:
        options = {
            "seconds": seconds,
            "rate": rate,
            "sources": sources,
            "batch": batch,
            "model_height": model_height,
            "model_width": model_width,
            "fail_share": fail_share,
            "pictures": pictures,
            "folder": scratch,
        }
        command = [sys.executable, "-m", __spec__.name, "--child", json.dumps(options)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def run(*, quick: bool = False) -> dict:
    """Print a minute of each variant and return the figures; `kept`: no part of them was lost."""
    return report(5.0 if quick else 60.0)


def report(seconds: float) -> dict:
    print(f"\nhot loop: 1280x960, 2x{READINGS}, 100 parts/s, {seconds:g} s, {CORES} cores")
    found = {name: measure(seconds, **options) for name, options in VARIANTS.items()}
    for name, r in found.items():
        print(
            f"  {name:20} p50 {r['p50_ms']:6.2f}  p90 {r['p90_ms']:6.2f}  p99 {r['p99_ms']:6.2f}  "
            f"max {r['max_ms']:7.2f} ms  durable {r['durable']}/{r['asked']}  "
            f"not judged {r['not_judged']}  RSS {r['rss_start_bytes'] / 2**20:.1f} -> "
            f"{r['rss_end_bytes'] / 2**20:.1f} MiB  CPU {r['cpu_s'] / r['wall_s']:.1%}  "
            f"pictures {r['pictures_kept']}, dropped {r['pictures_dropped']}"
        )
    first = found["no resize"]
    met = first["p50_ms"] <= P50_BUDGET_MS and first["p99_ms"] <= P99_BUDGET_MS
    print(f"  budget p50 {P50_BUDGET_MS} ms, p99 {P99_BUDGET_MS} ms: {'met' if met else 'NOT MET'}")
    return {"variants": found, "budget_met": met, "kept": all(r["kept"] for r in found.values())}


class AtOnce:
    """A scorer that returns at once; evenly spread, `fail_share` of the parts are defects."""

    def __init__(self, spec: ModelSpec, fail_share: float) -> None:
        self.spec = spec
        self._fail_share = fail_share
        self._parts = 0
        draw = np.random.default_rng(1)
        self._embedding = draw.normal(size=EMBEDDING).astype(np.float32)
        self._map = draw.random((MAP_HEIGHT, MAP_WIDTH), dtype=np.float32)
        self._normal = draw.random(1_000) * 0.3

    def score(self, inputs: ModelInputs) -> Scores:
        before, self._parts = self._parts, self._parts + 1
        fails = int(self._parts * self._fail_share) > int(before * self._fail_share)
        score = 0.9 if fails else float(self._normal[before % len(self._normal)])
        both = np.array([1 - score, score], dtype=np.float32)
        return Scores(both, score, self._map, self._embedding)

    def score_batch(self, several: Sequence[ModelInputs]) -> list[Scores]:
        return [self.score(inputs) for inputs in several]


class InMemory:
    """A source whose frames and windows lie in memory; each part is taken at its due time."""

    def __init__(self, name: str, first_s: float, rate: float, parts: int) -> None:
        self.name = name
        self.parts_per_second = rate
        self.tolerance_ms = 1e3 / rate / 4
        self.silent_after_s = 60.0
        self._first_s = first_s
        self._parts = parts
        self._frames, self._windows = frames_and_windows()

    def parts(self, stop: Event) -> Iterator[tuple[Shot, Reading]]:
        began_s = time.monotonic() + self._first_s
        for number in range(self._parts):
            due_s = began_s + number / self.parts_per_second
            if stop.wait(max(0.0, due_s - time.monotonic())):
                return
            which, now_ns, name = number % _FRAMES, time.time_ns(), f"p{number:06d}"
            reading = Reading(Window(self._windows[number % _WINDOWS], CHANNELS, now_ns))
            late_ms = (time.monotonic() - due_s) * 1e3
            frame = Frame(self._frames[which], now_ns)
            yield Shot(name, name, None, frame, "", late_ms, self.name), reading


class EveryLatency(LastMinute):
    """Keeps each latency beside the last minute's histogram, in a room made before."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self._all_ms = array("d", bytes(8 * parts))
        self.taken = 0

    def take(self, latency_ms: float) -> None:
        super().take(latency_ms)
        self._all_ms[self.taken] = latency_ms
        self.taken += 1

    def at(self, share: float) -> float:
        """Return the latency that `share` of all do not exceed."""
        ordered = sorted(self._all_ms[: self.taken])
        return round(ordered[max(0, math.ceil(share * len(ordered)) - 1)], 3) if ordered else 0.0


def frames_and_windows() -> tuple[list[np.ndarray], np.ndarray]:
    """Return frames with coarse structure and fine noise, and windows of noise."""
    draw = np.random.default_rng(0)
    blocks = draw.integers(0, 256, (_FRAMES, HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8)
    noise = draw.integers(0, 24, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    frames = [block.repeat(16, axis=0).repeat(16, axis=1) // 2 + noise for block in blocks]
    return frames, draw.normal(size=(_WINDOWS, 2, READINGS)).astype(np.float32)


def in_this_process(options: dict) -> dict[str, float]:
    """Run the loop here and return the figures of `measure`."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    spec = ModelSpec(
        name="at-once",
        image=ImageInput(options["model_height"], options["model_width"]),
        sensor=SensorInput(CHANNELS, READINGS),
        classes=("good", "scratch"),
        map_height=MAP_HEIGHT,
        map_width=MAP_WIDTH,
        embedding_size=EMBEDDING,
        rule=DecisionRule(Threshold(0.5, 0.01, 200, True)),
        batch=options["batch"],
    )
    rate = options["rate"] / options["sources"]
    parts = round(options["seconds"] * rate)
    sources = [
        InMemory(f"s{n}", _FIRST_S + n / options["rate"], rate, parts)
        for n in range(options["sources"])
    ]
    path = Path(options["folder"]) / "outbox.sqlite"
    station = StationFile(
        station=StationId("bench", "hot", "loop", "s1"),
        model=Model(bundle="none"),
        broker=Broker(host="none"),
        pictures=Pictures(max_bytes=(256 << 20) if options["pictures"] else 0),
    )
    judge = Judge(AtOnce(spec, options["fail_share"]), engine_name="none", bundle_digest="none")
    rss_start: list[int] = []
    timer = Timer(_FIRST_S + 1.0, lambda: rss_start.append(rss_bytes()))
    with Outbox.open(path, max_rows=500_000, max_bytes=512 << 20) as outbox:
        inspector = Inspector(
            *(station, sources, judge, outbox, Event()),
            pictures=KeptPictures.open(path, station.pictures),
        )
        latencies = inspector.recorder.durable = EveryLatency(parts * len(sources))
        timer.start()
        before_cpu_s, began_s = cpu_s(), time.monotonic()
        inspector.run()
        spent_s, wall_s = cpu_s() - before_cpu_s, time.monotonic() - began_s
        counters = dict(outbox.counters)
    timer.cancel()
    lost = sum(counters.get(name, 0) for name in NOT_JUDGED)
    percents = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99, "p999_ms": 0.999, "max_ms": 1.0}
    return {
        **{name: latencies.at(share) for name, share in percents.items()},
        "asked": parts * len(sources),
        "durable": latencies.taken,
        "not_judged": lost,
        "kept": lost == 0 and latencies.taken == parts * len(sources),
        "pictures_kept": counters.get("pictures_kept", 0),
        "pictures_dropped": counters.get("pictures_skipped", 0),
        "rss_start_bytes": rss_start[0] if rss_start else 0,
        "rss_end_bytes": rss_bytes(),
        "rss_of_frames_bytes": len(sources)
        * (_FRAMES * HEIGHT * WIDTH * 3 + _WINDOWS * 2 * READINGS * 4),
        "cpu_s": round(spent_s, 3),
        "wall_s": round(wall_s, 3),
        "counters": counters,
    }


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(in_this_process(json.loads(given.child))))
    else:
        sys.exit(0 if report(given.seconds)["kept"] else 1)
