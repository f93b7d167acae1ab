"""What the gate of windowed attention costs, and what it gives.

    python -m tests.benchmarks gate            about 40 minutes
    python -m tests.benchmarks gate --quick    one seed, one epoch

A small patch student is made in three forms that differ in attention alone: windows (image tokens
meet their own window and the prefix), gated (windows, with a learned share of what the other
windows hold), and global (all tokens meet). Windows are of 4 x 4 cells here, so that they matter at
a size that two cores can train. Quality is on ballscrew, whose pairing of images and vibration is
synthetic; three seeds say how far two equal students lie apart. The training is short for a gate:
its share starts at 5 %, and AdamW moves the logit of it by about the learning rate a step at most.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from pathlib import Path

import torch

from distill.checkpoint import student_from_run
from distill.recipe import Recipe, load_recipe
from distill.students.student import Student
from distill.students.trunk import Attention
from export.compile_check import compile_check, missing_packages
from export.onnx_graph import fp32_onnx_from_student
from tests.benchmarks.fresh_students import (
    gflop,
    inputs_for,
    p50_ms,
    parameters_m,
    spec_for,
    student_for,
)
from tests.benchmarks.trained import THREADS, distil, evaluation, import_ballscrew, lacking

SEEDS = (0, 1, 2)
EPOCHS = 10
SHAPE = (
    "student.width=192",
    "student.heads=3",
    "student.hidden=768",
    "student.joint_depth=6",
    "student.global_every=6",  # the last block alone
)
FORMS = {
    "windows": ("student.window_tokens=16", "student.gated=false"),
    "gated": ("student.window_tokens=16", "student.gated=true"),
    "global": ("student.window_tokens=0", "student.gated=false"),
}
BUDGET = (
    "image.pixel_budget=36864",
    "targets.copies=1",
    "train.batch=8",
    "train.warmup_steps=20",
    "train.learning_rate=0.001",
)
SIDES = (256, 512)  # that latency is measured at
_FIGURES = ("auroc", "auroc_image_only", "aupro")
_TIMED_S = 20.0


def run(*, quick: bool = False) -> dict:
    """Print both tables; nothing here is promised."""
    torch.set_num_threads(THREADS)
    recipes = {form: load_recipe("small", (*SHAPE, *own)) for form, own in FORMS.items()}
    costs = {side: _costs(recipes, side, 1.0 if quick else _TIMED_S) for side in SIDES}
    seeds, epochs = (SEEDS[:1], 1) if quick else (SEEDS, EPOCHS)
    return {"costs": costs, "quality": _quality(seeds, epochs)}


def _costs(recipes: dict[str, Recipe], side: int, seconds: float) -> dict[str, dict]:
    students = {form: student_for(recipe, side) for form, recipe in recipes.items()}
    inputs = inputs_for(side)
    spent = p50_ms(students, inputs, seconds)
    print(f"\ngate: {side} x {side}, one part, FP32 torch, {THREADS} threads, in turn")
    print("             parameters    GFLOP   p50 ms   of windows   layers compiled")
    figures = {}
    for form, student in students.items():
        one = {
            "parameters_m": parameters_m(student),
            "gflop": gflop(student, inputs),
            "p50_ms": spent[form],
            "times_windows": spent[form] / spent["windows"],
            "layers": _layers(student, recipes[form], side),
        }
        figures[form] = one
        print(
            f"  {form:8} {one['parameters_m']:10.3f} M {one['gflop']:8.2f} {one['p50_ms']:8.1f} "
            f"{one['times_windows']:9.3f} x   {one['layers']}"
        )
    return figures


def _layers(student: Student, recipe: Recipe, side: int) -> int | str | None:
    """How many layers NVIDIA's builder makes of it, in FP32; each is about a kernel."""
    if missing := missing_packages():
        return f"not counted: {', '.join(missing)} not installed"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        fp32_onnx_from_student(student, spec_for(recipe, side), path)
        return compile_check(path).layers


def _quality(seeds: tuple[int, ...], epochs: int) -> dict | None:
    if lack := lacking():
        print(f"gate's quality: SKIPPED, {lack}")
        return None
    figures: dict[str, list[dict]] = {form: [] for form in FORMS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        import_ballscrew(folder / "rec")
        for seed in seeds:
            for form, own in FORMS.items():
                settings = (*SHAPE, *own, *BUDGET, f"train.epochs={epochs}", f"seed={seed}")
                out, targets = folder / "run", folder / f"targets{seed}"
                seconds = distil(folder / "rec", "small", settings, out, targets)
                measured = evaluation(out, folder / "rec")
                figures[form].append(
                    {key: measured[key] for key in _FIGURES}
                    | {"gate": _shares(out), "seconds": seconds}
                )
            shutil.rmtree(folder / f"targets{seed}")
    _print_quality(figures, epochs)
    return figures


def _shares(trained: Path) -> list[float]:
    """The share of the other windows that each block learned, a mean over its heads."""
    student = student_from_run(trained)
    gates = [
        module.gate
        for module in student.joint_blocks.modules()
        if isinstance(module, Attention) and module.gate is not None
    ]
    return [float(torch.sigmoid(gate).mean()) for gate in gates]


def _print_quality(figures: dict[str, list[dict]], epochs: int) -> None:
    seeds = len(figures["windows"])
    print(
        f"\ngate: ballscrew, split test (synthetic pairing), {epochs} epochs, {seeds} seeds: "
        "mean (lowest to highest)"
    )
    for form, runs in figures.items():
        parts = []
        for key in _FIGURES:
            values = [run[key] for run in runs]
            mean = statistics.fmean(values)
            parts.append(f"{key} {mean:.4f} ({min(values):.4f} to {max(values):.4f})")
        print(f"  {form:8} " + "   ".join(parts))
    for key in _FIGURES:
        gains = [
            gated[key] - windows[key]
            for gated, windows in zip(figures["gated"], figures["windows"], strict=True)
        ]
        told = ", ".join(f"{gain:+.4f}" for gain in gains)
        print(f"  gated less windows, {key}, seed by seed: {told}")
    for one in figures["gated"]:
        shares = ", ".join(f"{share:.3f}" for share in one["gate"])
        print(f"  learned shares of what lies outside, block by block: {shares}")
