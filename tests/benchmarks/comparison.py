"""Ours beside the plain loop and beside a product, on the same frames and the same ONNX file.

Each contestant has frames of 1280x960 and windows of 2x2048 in memory, takes them at a stated
rate, resizes, infers with onnxruntime on one thread, decides, and sends one JSON message per part
at QoS 1 over MQTT 5 to the same Mosquitto. Milliseconds count from the frame in memory:

- `verdict`: until it is decided;
- `safe`: until the record outlives its maker. Ours: durable in the outbox, on this machine's disk
  (the broker has it a moment later). The others: the broker's PUBACK, which is the first moment at
  which anything but their own memory knows of the part.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from device_agents.broker import broker_kind, running_broker
from device_agents.outbox.reader import OutboxReader
from device_agents.status import read_status
from edge.bundle import INT8_FILE, Bundle
from edge.errors import MachineError
from edge.messages import InspectorHealth, Percentiles
from tests.benchmarks import node_red, work
from tests.benchmarks.machine import Usage, Watch, percentiles

SECONDS = 60.0  # a minute is what the station's own percentiles cover
_QUICK_SECONDS = 6.0
_THREADS = 1
_START_WITHIN_S = 60.0
_SAMPLE_EVERY_S = 0.1
_WARM_UP_S = 1.0  # left out of everybody's percentiles
# Which model, and how many parts a second: 100 are the promise; a CPU holds fewer with `tiny`.
_MODELS = (("instant", 100.0), ("tiny", 20.0))
# OpenCV's own default aliases: fast, and not the pixels that the model was trained on.
_RESAMPLING = {"plain loop": "INTER_AREA", "plain, aliased": "INTER_LINEAR"}
_SAFE = {
    "ours": "durable on this machine's disk; then at least once to the broker",
    "plain loop": "the broker's PUBACK. Until then in memory alone: kill -9 or a power cut loses "
    "it; no bound while the broker is away; no sequence, so nobody sees a gap; NaN and stale "
    "readings are judged",
    "plain, aliased": "as above, and resized by OpenCV's default: other pixels than in training",
    "Node-RED": "the broker's PUBACK. Until then in memory alone; messages pile up without bound "
    "where inference is slower than the camera; no sequence; NaN and stale readings are judged",
}


@dataclass(frozen=True)
class Task:
    """One comparison: the model, the frames, the pace."""

    name: str
    bundle: Bundle
    recording: Path
    rate: float
    seconds: float
    port: int
    folder: Path

    def asked(self, **more: object) -> dict[str, object]:
        """Write the task for a contestant that knows nothing of this project."""
        spec = self.bundle.manifest.spec
        assert spec.rule is not None
        return {
            "onnx": str(self.bundle.path_of(INT8_FILE)),
            "files": str(self.recording / "files"),
            "frames": work.FRAMES,
            "width": spec.takes.width,
            "height": spec.takes.height,
            "threshold": spec.rule.threshold.value,
            "threads": _THREADS,
            "port": self.port,
            "rate": self.rate,
            "parts": round(self.rate * (self.seconds + _WARM_UP_S)),
            **more,
        }


def run(*, quick: bool = False) -> dict:
    """Print a table for each model and return all figures."""
    try:
        if broker_kind() != "mosquitto":
            raise ModuleNotFoundError("Mosquitto is not installed")
        import cv2  # noqa: F401, PLC0415
    except (MachineError, ModuleNotFoundError) as error:
        print(f"comparison: SKIPPED, {error}")
        return {"skipped": str(error)}
    figures = {}
    for name, rate in _MODELS:
        figures[name] = measure(name, rate, _QUICK_SECONDS if quick else SECONDS)
        _print(name, rate, figures[name])
    return figures


def measure(model: str, rate: float, seconds: float) -> dict[str, dict]:
    """Run every contestant on one model, one after the other; return figures by contestant."""
    with tempfile.TemporaryDirectory(prefix="comparison-") as name:
        folder = Path(name)
        path = work.instant_bundle(folder / "m") if model == "instant" else work.tiny_bundle()
        bundle = Bundle.open(path)
        recording = work.write_frames(folder / "rec", bundle.manifest.spec.classes, rate)
        with running_broker(folder / "broker", kind="mosquitto") as broker:
            task = Task(model, bundle, recording, rate, seconds, broker.port, folder)
            found = {"ours": _ours(task)}
            found |= {name: _plain(task, name) for name in _RESAMPLING}
            installed, why_not = node_red.installed()
            if installed is None:
                print(f"comparison: Node-RED is SKIPPED, {why_not}")
                found["Node-RED"] = {"skipped": why_not}
            else:
                found["Node-RED"] = _node_red(task, installed)
    return found


def _print(model: str, rate: float, found: dict[str, dict]) -> None:
    print(
        f"\ncomparison, model {model} at {rate:g} parts/s, frames 1280x960, {_THREADS} thread\n"
        f"  {'':14}  verdict ms p50/p99   safe ms p50/p99   parts/s  CPU ms/part    RSS MiB"
    )
    ours = _row(found["ours"])
    for name, figures in found.items():
        if "skipped" in figures:
            print(f"  {name:14}  SKIPPED: {figures['skipped']}")
            continue
        print(f"  {name:14}" + _line(_row(figures), " "))
        if name != "ours":
            ratios = [
                a / b if b else float("nan") for a, b in zip(_row(figures), ours, strict=True)
            ]
            print(f"  {'/ ours':>14}" + _line(ratios, "x"))
    for name in found:
        print(f"  safe, {name}: {_SAFE[name]}")


def _row(f: dict) -> list[float]:
    v, s = f["verdict_ms"], f["safe_ms"]
    spent = [f["parts_per_second"], f["cpu_ms_per_part"], f["rss_mib"]]
    return [v["p50"], v["p99"], s["p50"], s["p99"], *spent]


def _line(values: list[float], unit: str) -> str:
    widths = (10, 8, 9, 8, 9, 12, 10)
    return "".join(f"{value:{w}.2f}{unit}" for value, w in zip(values, widths, strict=True))


def _ours(task: Task) -> dict:
    """Inspector and publisher as systemd runs them; their own Health gives the percentiles."""
    station, outbox = task.folder / "station.toml", task.folder / "outbox.sqlite"
    station.write_text(
        'station = { site = "bench", area = "a", line = "l", station = "s" }\n'
        f'[source]\nrecording = "{task.recording}"\nparts_per_second = {task.rate}\nrepeat = true\n'
        f'[model]\nbundle = "{task.bundle.folder}"\nthreads = {_THREADS}\n'
        f"[pictures]\nmax_bytes = 0\n"  # nobody else keeps any
        f'[outbox]\npath = "{outbox}"\n[broker]\nhost = "127.0.0.1"\nport = {task.port}\n'
    )
    publishes = ("edge.cli.main", "agent", "publisher", "--station")
    with (
        _child(publishes, station) as publisher,
        _child(("tests.benchmarks.our_inspector",), station) as inspector,
    ):
        _wait_until(lambda: _judged(outbox) > task.rate, inspector)  # warm, and a second in
        agents, began_s, began = (inspector, publisher), time.monotonic(), _judged(outbox)
        before = [Usage.of(agent.pid) for agent in agents]
        watches = [Watch(agent.pid, _SAMPLE_EVERY_S) for agent in agents]
        time.sleep(task.seconds)
        took_s, parts = time.monotonic() - began_s, _judged(outbox) - began
        spent = [Usage.of(a.pid).since(b) for a, b in zip(agents, before, strict=True)]
        health = read_status(outbox, InspectorHealth, fresh_s=10.0)
        for watch in watches:
            watch.close()
    return {
        "verdict_ms": _of_health(health.latency if health else None),
        "safe_ms": _of_health(health.durable if health else None),
        "parts_per_second": parts / took_s,
        "parts": parts,
        "cpu_ms_per_part": sum(used.cpu_s for used in spent) * 1e3 / max(1, parts),
        "inspector_cpu_ms_per_part": spent[0].cpu_s * 1e3 / max(1, parts),
        "rss_mib": sum(watch.highest_mib for watch in watches),
        "inspector_rss_mib": watches[0].highest_mib,
        "safe_means": _SAFE["ours"],
    }


def _plain(task: Task, name: str) -> dict:
    out = task.folder / f"{name}.json"
    asked = json.dumps(task.asked(out=str(out), resampling=_RESAMPLING[name]))
    command = [sys.executable, "-m", "tests.benchmarks.plain_loop", asked]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == b"ready\n", "the plain loop did not start"
        child.stdin.write(b"go\n")
        child.stdin.flush()
        return _until_done(task, name, child, out)
    finally:
        _end(child)


def _node_red(task: Task, installed: Path) -> dict:
    folder = task.folder / "node-red"
    out, ready, go = (task.folder / f"node.{kind}" for kind in ("json", "ready", "go"))
    asked = task.asked(out=str(out), ready=str(ready), go=str(go))
    node_red.write_station(folder, asked)
    child = node_red.start(installed, folder)
    try:
        _wait_until(ready.exists, child)
        time.sleep(2.0)  # its MQTT node connects on its own time
        go.touch()
        figures = _until_done(task, "Node-RED", child, out)
    finally:
        _end(child)
    return {**figures, "version": node_red.version(installed)}


def _until_done(task: Task, name: str, child: subprocess.Popen[bytes], out: Path) -> dict:
    """Wait for a contestant's figures, looking meanwhile what it spends."""
    before = last = Usage.of(child.pid)
    highest, deadline = 0, time.monotonic() + 3 * task.seconds + _START_WITHIN_S
    while not _is_json(out) and time.monotonic() < deadline:
        now = Usage.of(child.pid)
        if now.cpu_s >= last.cpu_s and now.rss_bytes:
            last, highest = now, max(highest, now.rss_bytes)
        time.sleep(_SAMPLE_EVERY_S)
    figures = json.loads(out.read_text())  # raises where it never came
    parts, warm = len(figures["verdict_ms"]), round(task.rate * _WARM_UP_S)
    return {
        "verdict_ms": percentiles(np.asarray(figures["verdict_ms"][warm:])),
        "safe_ms": percentiles(np.asarray(figures["safe_ms"][warm:])),
        "parts_per_second": parts / figures["took_s"],
        "parts": parts,
        "cpu_ms_per_part": last.since(before).cpu_s * 1e3 / max(1, parts),
        "rss_mib": highest / 2**20,
        "safe_means": _SAFE[name],
    }


@contextlib.contextmanager
def _child(module: tuple[str, ...], station: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (station.parent / f"{module[-1]}.log").open("wb") as log:
        command = [sys.executable, "-m", *module, str(station)]
        child = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield child
    finally:
        _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(15)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


def _wait_until(is_so, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_WITHIN_S
    while not is_so():
        if child.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{child.args} did not come up (status {child.poll()})")
        time.sleep(0.05)


def _judged(outbox: Path) -> int:
    """Count the parts that got a verdict; those that gave way to newer ones did not."""
    reader = OutboxReader.open(outbox)
    if reader is None:
        return 0
    try:
        counters = reader.counters()
        return counters.get("inspected", 0) - counters.get("invalid_behind", 0)
    finally:
        reader.close()


def _of_health(told: Percentiles | None) -> dict[str, float]:
    if told is None:
        return percentiles(np.asarray([]))
    return {"p50": told.p50_ms, "p90": told.p90_ms, "p99": told.p99_ms, "max": told.max_ms}


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return True
