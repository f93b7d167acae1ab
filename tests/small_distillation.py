"""Small recordings made on the spot, and a recipe that trains on them in seconds."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from distill.evaluation.evaluate import Evaluation, evaluation_from, measured_on
from distill.recipe import Recipe, load_recipe
from distill.train import distill
from distill.training.run_folders import RunFolders, make_room
from edge.artefact import digest_of_file
from edge.recording.format import (
    FILES_FOLDER,
    Recording,
    RecordingHeader,
    SampleRow,
    write_recording,
)
from edge.sample import Channel
from edge.scorer import Scorer

ROOT = Path(__file__).resolve().parent.parent
VIBRATION = (Channel("drive_end", "g", 12000.0), Channel("fan_end", "g", 12000.0))
QUICK = (
    "targets.copies=1",
    "teacher.memory_patches=40",
    "teacher.memory_candidates=400",
    "teacher.feature_size=24",
    "student.width=16",
    "student.heads=2",
    "student.hidden=64",
    "student.image_depth=1",
    "sensor.frame_samples=32",
    "train.epochs=2",
    "train.batch=8",
    "train.min_steps_per_epoch=2",
)


def silent(_title: str):
    """A progress that shows nothing."""
    return lambda items: items


def quick_recipe(*overrides: str) -> Recipe:
    return load_recipe("tiny", (*QUICK, *overrides))


@dataclass(frozen=True)
class Order:
    """What a small recording should hold."""

    labels: tuple[str, ...] = ("ok", "scratch", "hum")
    splits: tuple[str, ...] = ("train", "val", "test")
    per_label: int = 6
    size: tuple[int, int] = (64, 64)  # width, height
    grey: bool = False
    channels: tuple[Channel, ...] = VIBRATION
    readings: int = 128
    masks: bool = True


def small_recording(folder: Path, order: Order | None = None, *, seed: int = 0) -> Recording:
    """Textured parts; `scratch` shows in the image, anything else in the sensor window."""
    order = order or Order()
    random = np.random.default_rng(seed)
    (folder / FILES_FOLDER).mkdir(parents=True)
    rows = []
    for split in order.splits:
        for number in range(order.per_label * len(order.labels)):
            label = order.labels[number % len(order.labels)]
            rows.append(_sample(folder / FILES_FOLDER, f"{split}_{number}", label, order, random))
            rows[-1] = _in_split(rows[-1], split, f"{split}-part-{number // 4}")
    header = RecordingHeader("small", order.channels, order.labels, 1.0, "made by a test")
    write_recording(folder, header, rows)
    return Recording.open(folder)


def change_file(recording: Recording, row: SampleRow, kind: str, content: bytes) -> Path:
    """Overwrite one file of a sample, as a bad disk or a bad hand would."""
    path = recording.path_of(getattr(row, kind))
    path.write_bytes(content)
    return path


def changed_rows(recording: Recording, out: Path, change) -> Recording:
    """A copy of a recording whose rows went through `change`; None drops a row."""
    shutil.copytree(recording.folder, out)
    path = out / "samples.jsonl"
    rows = [change(msgspec.json.decode(line)) for line in path.read_bytes().splitlines()]
    kept = b"\n".join(msgspec.json.encode(row) for row in rows if row is not None)
    path.write_bytes(kept + b"\n")
    return Recording.open(out)


def distilled(recording: Recording, out: Path, recipe: Recipe | None = None):
    """Train and return the record."""
    recipe = recipe or quick_recipe()
    folders = RunFolders(out)
    make_room(folders, recipe, resume=False, force=False)
    return distill(recording, recipe, folders, silent)


def evaluated(scorer: Scorer, recording: Recording, split: str) -> Evaluation:
    """Measure a scorer on one split, as `edge evaluate` does."""
    measured = measured_on(scorer, recording, split, silent)
    return evaluation_from(measured, recording, scorer.spec)


def edge(*words: object, **options) -> subprocess.CompletedProcess:
    """Run the real command in a process of its own."""
    return subprocess.run(edge_command(words), capture_output=True, text=True, **options)


def edge_command(words: Iterable[object]) -> list[str]:
    return [sys.executable, "-m", "edge.cli.main", *map(str, words)]


def quick_words(extra: Sequence[str] = ()) -> list[str]:
    """The quick recipe, as a person would say it on the command line."""
    return [word for override in (*QUICK, *extra) for word in ("--set", override)]


def here() -> dict[str, str]:
    """An environment in which a child process finds this working tree."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def _sample(files: Path, name: str, label: str, order: Order, random) -> SampleRow:
    width, height = order.size
    pixels = np.clip(random.normal(120, 12, (height, width)), 0, 255).astype(np.uint8)
    mask = np.zeros((height, width), np.uint8)
    if label == "scratch":
        top, left = random.integers(0, height // 2), random.integers(0, width // 2)
        mask[top : top + height // 4, left : left + width // 3] = 255
        pixels = np.where(mask > 0, 10, pixels).astype(np.uint8)
    picture = Image.fromarray(pixels)
    (picture if order.grey else picture.convert("RGB")).save(files / f"{name}.png")
    masked = order.masks and label == "scratch"
    if masked:
        Image.fromarray(mask).save(files / f"{name}_mask.png")
    sensor = None
    if order.channels:
        sensor = f"{name}.npy"
        time = np.arange(order.readings)
        window = random.normal(0, 1, (len(order.channels), order.readings))
        if label not in ("ok", "good", "scratch"):
            window += 3.0 * np.sin(time * 0.9)
        np.save(files / sensor, window.astype(np.float32))
    return SampleRow(
        sample_id=name,
        image=f"{name}.png",
        image_digest=digest_of_file(files / f"{name}.png"),
        label=label,
        split="",
        part_id="",
        sensor=sensor,
        sensor_digest=sensor and digest_of_file(files / sensor),
        mask=f"{name}_mask.png" if masked else None,
    )


def _in_split(row: SampleRow, split: str, part_id: str) -> SampleRow:
    fields = {name: getattr(row, name) for name in row.__struct_fields__}
    return SampleRow(**{**fields, "split": split, "part_id": part_id})
