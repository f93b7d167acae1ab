"""`edge demo`: the whole line once, on a simulated recording, by the commands a person would type.

Each step is a second process running the printed command, so that what the demo shows is what a
person gets by typing it.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from edge.errors import AnswerIsNo, InputError

_QUICKER = ("--set", "targets.copies=3")  # half the teacher's work, for a demo's patience
_INSPECTIONS_PER_SECOND = 10.0
_LISTEN_TIMEOUT_S = 120
_STOP_TIMEOUT_S = 20

_MARKER = ".edge-demo"

_STATION = """\
# One inspection station, as `edge agent` reads it. Paths are relative to this file.
[station]
site = "demo-plant"
area = "machining"
line = "line-1"
station = "station-1"

[source]
recording = "recording"
split = "test"
parts_per_second = {rate}

[model]
bundle = "bundle"

[outbox]
path = "outbox.db"

[broker]
host = "127.0.0.1"
port = {port}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the demo's options."""
    parser.add_argument("--out", type=Path, default=Path("demo-run"), help="folder for everything")
    parser.add_argument("--parts", type=int, default=300, help="parts to simulate (default 300)")
    parser.add_argument("--force", action="store_true", help="replace the folder of an earlier run")


def run(arguments: argparse.Namespace) -> int:
    """Simulate, distil, evaluate, export, verify, then inspect and report over a real broker."""
    started = time.monotonic()
    out: Path = arguments.out
    _make_room(out, force=arguments.force)
    recording, run_folder, bundle = out / "recording", out / "run", out / "bundle"
    steps: tuple[tuple[str, list[object]], ...] = (
        (
            "A recording of a simulated line",
            ["simulate", "--parts", arguments.parts, "--out", recording],
        ),
        ("What is in it", ["recordings", "show", recording]),
        (
            "A student, distilled from a teacher",
            ["distill", recording, "--recipe", "tiny", *_QUICKER, "--out", run_folder],
        ),
        (
            "Its figures on parts it never saw",
            ["evaluate", run_folder, recording, "--picture", out / "evaluation.png"],
        ),
        (
            "An INT8 bundle, held against the student",
            ["export", run_folder, "--calibration", recording, "--out", bundle],
        ),
        ("The same figures from the INT8 bundle", ["evaluate", bundle, recording]),
        ("Is the bundle whole?", ["verify", bundle]),
    )
    for number, (title, words) in enumerate(steps, start=1):
        _step(f"[{number}/{len(steps) + 1}] {title}", words)
    print(f"\n[{len(steps) + 1}/{len(steps) + 1}] Verdicts over a real broker", flush=True)
    inspected = _inspect_and_listen(out)
    _say_what_happened(out, inspected, minutes=(time.monotonic() - started) / 60)
    return 0


def _make_room(out: Path, *, force: bool) -> None:
    marker = out / _MARKER
    if out.exists() and not (force and marker.is_file()):
        raise InputError(
            where=out,
            expected="a path where nothing is yet" + (" or an earlier demo" if force else ""),
            found="an existing folder",
            do="Choose another --out" + ("." if force else ", or say --force to replace a demo."),
        )
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    marker.write_text("Made by `edge demo`; `edge demo --force` may delete this folder.\n")


def _step(title: str, words: list[object]) -> None:
    """Print a command as a person would type it, run it, and stop the demo where it fails."""
    typed = " ".join(["edge", *map(str, words)])
    print(f"\n{title}\n$ {typed}", flush=True)
    status = subprocess.run(_command(words), check=False).returncode
    if status == 128 - signal.SIGINT or status == 128 + signal.SIGINT:
        raise KeyboardInterrupt
    if status != 0:
        raise AnswerIsNo(
            where="edge demo",
            expected=f"`{typed}` to end well",
            found=f"exit status {status}",
            do="Its own message stands above; mend that and run the demo again.",
        )


def _inspect_and_listen(out: Path) -> int:
    """Run both agents against a broker of our own until every inspection has arrived."""
    from device_agents.broker import running_broker
    from edge.recording.format import Recording

    expected = len(Recording.open(out / "recording").rows_in("test"))
    station = out / "station.toml"
    with running_broker(out / "broker") as broker:
        station.write_text(_STATION.format(rate=_INSPECTIONS_PER_SECOND, port=broker.port))
        print(f"Broker: {broker.name} on port {broker.port}. Station file: {station}", flush=True)
        listen: list[object] = ["listen", "--broker", f"mqtt://127.0.0.1:{broker.port}"]
        listen += ["--client-id", "demo"]
        # Subscribed before the agents speak: the broker then queues what comes before we listen.
        subprocess.run(_command([*listen, "--timeout", 0]), check=True)
        with _agent("publisher", station, out), _agent("inspector", station, out):
            _step("", [*listen, "--count", expected, "--timeout", _LISTEN_TIMEOUT_S])
    return expected


@contextlib.contextmanager
def _agent(name: str, station: Path, out: Path) -> Iterator[None]:
    """Run one agent while the block lasts; it stops as systemd would stop it."""
    words: list[object] = ["agent", name, "--station", station]
    log = out / f"{name}.log"
    print(f"$ edge {' '.join(map(str, words))} 2> {log} &", flush=True)
    with log.open("wb") as file:
        agent = subprocess.Popen(_command(words), stdout=file, stderr=file)
        try:
            yield
        finally:
            agent.terminate()
            agent.wait(timeout=_STOP_TIMEOUT_S)


def _command(words: list[object]) -> list[str]:
    return [sys.executable, "-m", "edge.cli.main", *map(str, words)]


def _say_what_happened(out: Path, inspected: int, *, minutes: float) -> None:
    print(
        f"""
Done in {minutes:.1f} minutes: {inspected} parts were inspected by the INT8 bundle (ONNX Runtime on
this CPU) and every verdict arrived over MQTT 5 through the broker named above.
Look next at
  {out}/recording/overview.png   the simulated parts
  {out}/evaluation.png           scores, threshold, and the parts that were judged wrongly
  {out}/bundle/manifest.json     what goes to the Orin: spec, threshold, parity, digests
  {out}/inspector.log, publisher.log, station.toml   how a station is run
and at README.md for the same steps with your own parts."""
    )
