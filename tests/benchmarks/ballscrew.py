"""The acceptance run on real images: import, distil, export, and the INT8 bundle's figures.

Images and masks are real; the pairing with vibration windows is synthetic (see the data's README),
so every figure here is one of "synthetic pairing".
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from device_agents.engine.load import engine_from_bundle
from distill.checkpoint import scorer_from_run
from edge.bundle import Bundle
from edge.prepare import model_inputs
from edge.recording.format import Recording
from edge.scorer import Scorer
from export.judge import judged_by

DATA = Path(os.environ.get("EDGE_DATA", Path(__file__).parents[3] / "shared" / "data"))
# What the project promises on this set, of the INT8 bundle, split `test`.
LEAST_AUROC = 0.985
LEAST_BY_LABEL = {"pitting": 0.97, "subsurface": 0.98}
MOST_AUROC_DIFFERENCE = 0.002
MOST_FLIPS = 0.005
_TIMED_SAMPLES = 100
_TIMED_THREADS = 2


def run() -> bool:
    """Print the table; return whether every promise was kept."""
    if not (DATA / "ballscrew").is_dir():
        print(f"ballscrew: SKIPPED, no {DATA / 'ballscrew'} (set EDGE_DATA to the data's folder)")
        return True
    with tempfile.TemporaryDirectory() as folder:
        return _run_in(Path(folder))


def _run_in(folder: Path) -> bool:
    recording, trained, bundle = folder / "rec", folder / "run", folder / "bundle"
    sensors = ["--sensor", "drive_end:g:12000", "fan_end:g:12000"]
    seconds = {
        "import": _edge("import", "folder", DATA / "ballscrew", *sensors, "--out", recording),
        "distill": _edge("distill", recording, "--recipe", "tiny", "--out", trained),
        # Its pictures are of several sizes, which only the station can bring to one.
        "export": _edge(
            *("export", trained, "--calibration", recording, "--frame", "model", "--out", bundle)
        ),
    }
    student, int8 = _evaluation(trained, recording), _evaluation(bundle, recording)
    flips = _flips(trained, bundle, recording)
    print("\nballscrew, split test (synthetic pairing)")
    print("  " + ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()))
    for name in ("auroc", "auroc_image_only", "auroc_sensor_only", "aupro"):
        print(f"  {name:20} student {student[name]:.4f}   INT8 bundle {int8[name]:.4f}")
    for label, value in int8["auroc_by_label"].items():
        print(f"  {label:20} student {student['auroc_by_label'][label]:.4f}   INT8 {value:.4f}")
    for rate in ("escape_rate", "overkill_rate"):
        r = int8[rate]
        print(f"  {rate:20} {r['value']:.4f} ({r['low']:.4f} to {r['high']:.4f}, n {r['n']})")
    print(f"  verdict flips        {flips} of {int8['n']}")
    _print_latencies(trained, bundle, recording)
    return _all_kept(student, int8, flips)


def _all_kept(student: dict, int8: dict, flips: int) -> bool:
    single = max(int8["auroc_image_only"], int8["auroc_sensor_only"])
    promises = {
        f"auroc at least {LEAST_AUROC}": int8["auroc"] >= LEAST_AUROC,
        "better than either modality alone": int8["auroc"] > single,
        f"AUROC within {MOST_AUROC_DIFFERENCE} of the student": (
            abs(int8["auroc"] - student["auroc"]) <= MOST_AUROC_DIFFERENCE
        ),
        f"verdict flips at most {MOST_FLIPS:.1%}": flips <= MOST_FLIPS * int8["n"],
    }
    for label, least in LEAST_BY_LABEL.items():
        promises[f"{label} at least {least}"] = int8["auroc_by_label"][label] >= least
    for promise, kept in promises.items():
        print(f"  {'kept  ' if kept else 'BROKEN'} {promise}")
    return all(promises.values())


def _edge(*words: object) -> float:
    """Run one command, its own output shown; return its wall seconds."""
    command = [sys.executable, "-m", "edge.cli.main", *map(str, words)]
    print("$ edge " + " ".join(map(str, words)), flush=True)
    started = time.monotonic()
    subprocess.run(command, check=True)
    return time.monotonic() - started


def _evaluation(model: Path, recording: Path) -> dict:
    command = [sys.executable, "-m", "edge.cli.main", "evaluate", model, recording, "--json"]
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def _flips(trained: Path, bundle: Path, recording_folder: Path) -> int:
    """Count test samples on which student and INT8 bundle decide differently, ties included."""
    recording = Recording.open(recording_folder)
    with scorer_from_run(trained) as student, engine_from_bundle(Bundle.open(bundle)) as int8:
        scorers = {"student": student, "int8": int8}
        judged = judged_by(scorers, recording, recording.rows_in("test"))
    pairs = zip(judged["student"], judged["int8"], strict=True)
    return sum(a.verdict.decision != b.verdict.decision for a, b in pairs)


def _print_latencies(trained: Path, bundle: Path, recording_folder: Path) -> None:
    """Time one sample at a time through each form, in turn, on two threads."""
    recording = Recording.open(recording_folder)
    opened = Bundle.open(bundle)
    rows = recording.rows_in("test")[:_TIMED_SAMPLES]
    samples = [model_inputs(recording.read_sample(row), opened.manifest.spec) for row in rows]
    torch.set_num_threads(_TIMED_THREADS)
    with (
        scorer_from_run(trained) as student,
        engine_from_bundle(opened, form="fp32", threads=_TIMED_THREADS) as fp32,
        engine_from_bundle(opened, form="int8", threads=_TIMED_THREADS) as int8,
    ):
        forms: dict[str, Scorer] = {"torch": student, "onnx-fp32": fp32, "onnx-int8": int8}
        spent: dict[str, list[float]] = {form: [] for form in forms}
        for inputs in samples:
            for form, scorer in forms.items():
                started = time.perf_counter()
                scorer.score(inputs)
                spent[form].append((time.perf_counter() - started) * 1e3)
    medians = {form: statistics.median(times) for form, times in spent.items()}
    for form, median in medians.items():
        ratio = medians["torch"] / median
        print(f"  {form:20} p50 {median:6.2f} ms a sample, {ratio:.2f} x torch (CPU, 2 threads)")
