"""What the contestants of a comparison are given: frames, windows, ONNX files, a place for them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from edge.artefact import digest_of_file
from edge.bundle import (
    FP32_FILE,
    INT8_FILE,
    Bundle,
    Manifest,
    Provenance,
    entries_of,
    write_manifest,
)
from edge.errors import EdgeError
from edge.model_spec import ImageInput, ModelSpec, SensorInput
from edge.recording.format import FILES_FOLDER, RecordingHeader, SampleRow, write_recording
from edge.sample import Channel
from edge.verdict import DecisionRule, Threshold
from tests.small_station import write_model

HEIGHT, WIDTH, READINGS = 960, 1280, 2048
FRAMES = 8
# Those of `edge simulate`, so that a student of its line can watch these frames too.
CHANNELS = (Channel("vibration", "g", 8000.0), Channel("current", "A", 8000.0))
_DEMO_BUNDLE = Path(__file__).parents[2] / "demo-run" / "bundle"
# The figures here are of time, not of truth: one epoch makes the same operators as eighteen.
_QUICK_STUDENT = ("--set", "targets.copies=1", "--set", "train.epochs=1")


def cache() -> Path:
    """Return the folder, outside of the repository, for what is made or installed once."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "orin-inspect-bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def tiny_bundle() -> Path:
    """Return a bundle of the recipe `tiny`: of `make demo`, of an earlier bench, or made now."""
    made = cache() / "tiny"
    for folder in (os.environ.get("TINY_BUNDLE"), _DEMO_BUNDLE, made / "bundle"):
        if folder and _opens(Path(folder)):
            return Path(folder)
    print(f"making a student of the recipe tiny in {made} (about 2 minutes, once)", flush=True)
    recording, run, bundle = made / "recording", made / "run", made / "bundle"
    for words in (
        ("simulate", "--parts", 60, "--out", recording),
        ("distill", recording, "--recipe", "tiny", *_QUICK_STUDENT, "--out", run, "--force"),
        ("export", run, "--calibration", recording, "--out", bundle),
    ):
        if words[0] == "simulate" and recording.exists():
            continue
        command = [sys.executable, "-m", "edge.cli.main", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"edge {words[0]} failed: {done.stderr[-500:]}")
    return bundle


def _opens(folder: Path) -> bool:
    """Whether this code can use the bundle; one of an older schema cannot be used."""
    try:
        Bundle.open(folder)
    except EdgeError:
        return False
    return True


def instant_bundle(folder: Path) -> Path:
    """Write a bundle of a few operators, with the inputs of `tiny`: it returns almost at once."""
    spec = ModelSpec(
        name="instant",
        image=ImageInput(224, 288),
        sensor=SensorInput(CHANNELS, READINGS),
        classes=("ok", "surface", "bearing"),
        map_height=14,
        map_width=18,
        embedding_size=2,
        rule=DecisionRule(Threshold(0.9, 0.05, 200, True), Threshold(0.9, 0.05, 200, True)),
    )
    folder.mkdir(parents=True)
    write_model(folder / FP32_FILE, spec)
    write_model(folder / INT8_FILE, spec)
    made = Provenance("c" * 64, "t" * 64, "k" * 64, 8, {"bench": "1"}, "2026-11-22T00:00:00Z")
    write_manifest(folder, Manifest(spec, entries_of(folder), (), (), (), made))
    return folder


def write_frames(folder: Path, classes: tuple[str, ...], rate: float) -> Path:
    """Write a recording of a few large frames and windows; also raw, for who reads no BMP.

    Uncompressed, so that a camera's work (a copy) is not measured as a decoder's.
    """
    files = folder / FILES_FOLDER
    files.mkdir(parents=True)
    chance = np.random.default_rng(0)
    rows = []
    for number in range(FRAMES):
        blocks = chance.integers(0, 200, (HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8)
        noise = chance.integers(0, 40, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        pixels = blocks.repeat(16, axis=0).repeat(16, axis=1) + noise
        window = chance.normal(size=(len(CHANNELS), READINGS)).astype(np.float32)
        Image.fromarray(pixels).save(files / f"frame{number}.bmp")
        np.save(files / f"window{number}.npy", window)
        (files / f"frame{number}.rgb").write_bytes(pixels.tobytes())
        (files / f"window{number}.f32").write_bytes(window.tobytes())
        image = f"frame{number}.bmp"
        rows.append(
            SampleRow(
                sample_id=f"p{number:04d}",
                image=image,
                image_digest=digest_of_file(files / image),
                label=classes[0],
                split="test",
                part_id=f"part{number:04d}",
                sensor=f"window{number}.npy",
            )
        )
    write_recording(folder, RecordingHeader("bench", CHANNELS, classes, rate, "bench"), rows)
    return folder
