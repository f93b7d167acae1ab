"""The students beside each other: size, arithmetic, latency, and quality at one training budget.

    python -m tests.benchmarks students            everything, within the hour
    python -m tests.benchmarks students --quick    every path, with large students of two blocks

The budget is what two cores can pay, and it is tiny: each training part of ballscrew is seen
`EPOCHS` times, from random weights, on a small image. It says how the large students start, not
how good they are; nobody would train 600 million parameters like this. The pairing of images and
vibration in that data set is synthetic.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from distill.checkpoint import checkpoint_from_run
from distill.evaluation.metrics import auroc
from distill.recipe import Recipe, load_recipe
from distill.students.expert_use import expert_text, expert_use
from distill.students.student import Student
from edge.model_spec import ModelSpec
from edge.prepare import model_inputs
from edge.recording.format import Recording, SampleRow, write_recording
from tests.benchmarks.fresh_students import (
    READINGS,
    SIDE,
    gflop,
    inputs_for,
    p50_ms,
    parameters_m,
    student_for,
)
from tests.benchmarks.trained import THREADS, distil, import_ballscrew, journal, lacking
from tests.benchmarks.utilisation import utilisation

RECIPES = ("tiny", "small", "base", "600m", "600m-sparse")
RIVALS = ("base", "600m", "600m-sparse")
EPOCHS = 1  # how often each training part is seen
BATCH = 16
PIXELS = 9216  # about 96 x 96, instead of the recipes' 256 x 256
HELD_OUT = 12  # parts of split `val`, at least
BUDGET = (
    f"image.pixel_budget={PIXELS}",
    "sensor.time_tokens=2",
    "targets.copies=1",
    f"train.epochs={EPOCHS}",
    f"train.batch={BATCH}",
    "train.min_steps_per_epoch=1",
    "train.warmup_steps=4",
    "train.recompute=false",
    "train.precision=bf16",
    "train.save_every_s=36000",  # gigabytes each time
)
QUICK = ("student.joint_depth=2",)
_TIMED_S = 20.0  # that each student is timed for, about


def run(*, quick: bool = False) -> dict:
    """Print the tables and return their figures; nothing here is promised but the arithmetic."""
    torch.set_num_threads(THREADS)
    overrides = QUICK if quick else ()
    if quick:
        print(f"students: --quick, so large ones have {QUICK[0].partition('=')[2]} blocks each")
    sizes = {
        name: size_and_speed(
            load_recipe(name, overrides if name in RIVALS else ()), 1.0 if quick else _TIMED_S
        )
        for name in RECIPES
    }
    print_sizes(sizes)
    share = sizes["600m-sparse"]["gflop"] / sizes["600m"]["gflop"]
    print(f"  600m-sparse does {share:.1%} of the arithmetic of 600m")
    figures = {
        "sizes": sizes,
        "sparse_share_of_arithmetic": share,
        "quality": quality(overrides),
        "utilisation": utilisation(),
    }
    return {**figures, "kept": quick or share <= 0.4}


def size_and_speed(recipe: Recipe, seconds: float) -> dict:
    """Build the student as its recipe says, count one forward pass, and time it."""
    student, inputs = student_for(recipe), inputs_for()
    figures = {
        "parameters_m": parameters_m(student),
        "gflop": gflop(student, inputs),
        "p50_ms": p50_ms({"": student}, inputs, seconds)[""],
    }
    del student
    gc.collect()
    return figures


def print_sizes(sizes: dict[str, dict]) -> None:
    print(
        f"\nstudents at {SIDE} x {SIDE} and 2 x {READINGS} readings, one part at a time, "
        f"FP32 torch, {THREADS} threads"
    )
    print("               parameters      GFLOP     p50 ms    GFLOP/s")
    for name, one in sizes.items():
        speed = one["gflop"] / one["p50_ms"] * 1e3
        print(
            f"  {name:12} {one['parameters_m']:9.1f} M {one['gflop']:10.1f} {one['p50_ms']:10.1f} "
            f"{speed:10.1f}"
        )


def quality(overrides: Sequence[str]) -> dict | None:
    """Train the rivals on the same number of parts and measure each on split `test`."""
    if lack := lacking():
        print(f"quality: SKIPPED, {lack}")
        return None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        import_ballscrew(folder / "rec")
        recording = _with_few_held_out(Recording.open(folder / "rec"))
        figures = {rival: _trained(rival, overrides, folder) for rival in RIVALS}
    parts = len(recording.rows_in("train")) * EPOCHS
    print(
        f"\nquality on ballscrew, split test (synthetic pairing), from random weights, {parts} "
        f"parts seen in all,\nimages of about {PIXELS} pixels. A look at the start of a training "
        "and no more."
    )
    print("                  auroc  image only  pitting  subsurface  training s  loss at the end")
    for rival, one in figures.items():
        labels = one["auroc_by_label"]
        print(
            f"  {rival:12} {one['auroc']:10.4f} {one['auroc_image_only']:11.4f} "
            f"{labels['pitting']:8.4f} "
            f"{labels['subsurface']:11.4f} {one['training_s']:11.0f} {one['loss']:16.4f}"
        )
    for rival, one in figures.items():
        if one["experts"]:
            print(f"  {rival}: {one['experts']}")
    return figures


def _with_few_held_out(recording: Recording) -> Recording:
    """Thin out split `val`: it sets the threshold, part by part, which is not looked at here."""
    held_out = recording.rows_in("val")
    kept = {row.sample_id for row in held_out[:: len(held_out) // HELD_OUT]}
    rows = [row for row in recording.rows if row.split != "val" or row.sample_id in kept]
    write_recording(recording.folder, recording.header, rows)
    return Recording.open(recording.folder)


def _trained(rival: str, overrides: Sequence[str], folder: Path) -> dict:
    out = folder / "run"
    command_s = distil(folder / "rec", rival, (*BUDGET, *overrides), out, folder / "targets")
    steps = [line for line in journal(out) if line["kind"] == "step"]
    epochs = [line for line in journal(out) if line["kind"] == "epoch"]
    figures = {
        **_test_figures(out, Recording.open(folder / "rec")),
        "command_s": command_s,
        "training_s": sum(BATCH / line["parts_per_second"] for line in steps),
        "loss": epochs[-1]["total"],
        "peak_memory_gib": steps[-1]["peak_memory_bytes"] / 2**30,
    }
    shutil.rmtree(out)  # gigabytes
    return figures


@torch.no_grad()
def _test_figures(trained: Path, recording: Recording) -> dict:
    """Score split `test` in batches and in bf16: one by one, 600m alone would take the hour."""
    checkpoint = checkpoint_from_run(trained)
    student, spec = checkpoint.student, checkpoint.spec
    rows = recording.rows_in("test")
    both, image_alone = [], []
    with torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(rows), BATCH):
            batch = _batch_of(rows[start : start + BATCH], recording, spec)
            both += _scores(student, batch)
            image_alone += _scores(student, batch, without_sensor=True)
        uses = expert_use(student, lambda: student(*_batch_of(rows[:BATCH], recording, spec)))
    normal = recording.normal_class
    labels = sorted({row.label for row in rows} - {normal})
    return {
        "auroc": _auroc(rows, both, normal, labels),
        "auroc_image_only": _auroc(rows, image_alone, normal, labels),
        "auroc_by_label": {label: _auroc(rows, both, normal, [label]) for label in labels},
        "experts": expert_text(uses) if uses else "",
    }


def _scores(
    student: Student, batch: tuple[torch.Tensor, ...], *, without_sensor: bool = False
) -> list[float]:
    image, sensor, present = batch
    if without_sensor:
        sensor, present = torch.zeros_like(sensor), present * torch.tensor([1.0, 0.0])
    scores: list[float] = student(image, sensor, present)[1].float().tolist()
    return scores


def _batch_of(
    rows: Sequence[SampleRow], recording: Recording, spec: ModelSpec
) -> tuple[torch.Tensor, ...]:
    samples = [model_inputs(recording.read_sample(row), spec) for row in rows]
    return tuple(
        torch.from_numpy(np.concatenate([sample[tensor.name] for sample in samples]))
        for tensor in spec.inputs()
    )


def _auroc(
    rows: Sequence[SampleRow], scores: Sequence[float], normal: str, against: Sequence[str]
) -> float | None:
    chosen = [
        (s, row.label != normal)
        for row, s in zip(rows, scores, strict=True)
        if row.label == normal or row.label in against
    ]
    return auroc(np.array([s for s, _ in chosen]), np.array([bad for _, bad in chosen]))
