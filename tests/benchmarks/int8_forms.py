"""The forms of one student side by side: what each way to few bits does to verdicts and to size.

    python -m tests.benchmarks int8_forms             trains tiny and small on ballscrew first
    python -m tests.benchmarks int8_forms --quick     tiny, after a single epoch
    python -m tests.benchmarks.int8_forms RUN REC     of a run that is there

Ranges come from the train split, verdicts are compared on the test split, which no choice has
seen. What is promised is that INT8, chosen by measurement, differs from FP32 by at most 0.001 AUROC
and 0.2 % of the verdicts. The pairing of images and vibration in ballscrew is synthetic.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from device_agents.engine.on_onnxruntime import engine_from_onnx
from distill.checkpoint import StudentScorer, checkpoint_from_run
from distill.students.student import EMBEDDINGS, HEADS
from edge.bundle import FORM_FILES
from edge.errors import AnswerIsNo
from edge.recording.format import Recording
from export.calibration import calibration_set
from export.forms import Form, Int8Choices, Trial, judged_form, made_forms
from export.judge import judged_by
from export.onnx_graph import fp32_onnx_from_student
from tests.benchmarks.trained import THREADS, distil, import_ballscrew, lacking

# What differs from the recipe: all 30 epochs of `small` would take two cores some hours.
RECIPES: dict[str, tuple[str, ...]] = {
    "tiny": (),
    "small": ("train.epochs=8", "train.precision=bf16"),
}
QUICK = {"tiny": ("train.epochs=1",)}
SAMPLES = 128
SPLIT = "test"
PROMISED = "int8, chosen by measurement"
MOST_FLIPS = 0.002
MOST_AUROC_DIFFERENCE = 0.001
_FIXED = Int8Choices(method="max", smooth=False)
WAYS: dict[str, tuple[str, Int8Choices]] = {
    PROMISED: ("int8", Int8Choices()),
    **{
        f"int8, {method}": ("int8", replace(_FIXED, method=method))
        for method in ("max", "percentile", "entropy", "mse")
    },
    "int8, max, convolutions too": ("int8", replace(_FIXED, convolutions=True)),
    "int8, max, attention too": ("int8", replace(_FIXED, attention=True)),
    "fp16": ("fp16", Int8Choices()),
    "int4-weights": ("int4-weights", Int8Choices()),
}


def run(*, quick: bool = False) -> dict:
    """Train, print one table a student, and return the figures."""
    if lacking():
        print(f"int8_forms: SKIPPED, {lacking()}")
        return {}
    torch.set_num_threads(THREADS)
    figures: dict = {"kept": True}
    with tempfile.TemporaryDirectory() as folder:
        recording, targets = Path(folder) / "rec", Path(folder) / "targets"
        import_ballscrew(recording)
        for recipe, overrides in (QUICK if quick else RECIPES).items():
            trained = Path(folder) / recipe
            distil(recording, recipe, overrides, trained, targets)
            figures[recipe] = table_of(trained, recording)
            figures["kept"] &= figures[recipe]["kept"]
    return figures


def table_of(trained: Path, folder: Path) -> dict:
    """Make every form of a run and print how it stands against the checkpoint."""
    checkpoint, recording = checkpoint_from_run(trained), Recording.open(folder)
    student, spec = checkpoint.student, checkpoint.spec
    rows = recording.rows_in(SPLIT)

    def judge(scorer, name):
        return judged_by({name: scorer}, recording, rows)[name]

    print(f"\n{spec.name}: {len(rows)} samples of split '{SPLIT}'; movement of the score, one each")
    _print_row("", "MB", "flips", "AUROC difference", "largest", "mean", "ms", "layers")
    figures: dict = {"samples": len(rows)}
    with tempfile.TemporaryDirectory() as temporary:
        trial = Trial(
            Path(temporary),
            student,
            calibration_set(recording, spec, samples=SAMPLES),
            (*HEADS, *EMBEDDINGS),
            judge(StudentScorer(student, spec), "checkpoint"),
            lambda path: engine_from_onnx(path, spec, threads=THREADS),
            judge,
        )
        fp32_onnx_from_student(student, spec, trial.folder / FORM_FILES["fp32"])
        figures["fp32"] = _shown("fp32", judged_form(trial, "fp32"), trial.folder)
        for way, (name, choices) in WAYS.items():
            try:
                (form,) = made_forms(trial, name, choices)
            except AnswerIsNo as error:
                print(f"  {way:30} not made: {error.found}")
                continue
            figures[way] = _shown(way, form, trial.folder)
    promised = figures[PROMISED]
    figures["kept"] = (
        promised["flips"] <= MOST_FLIPS * len(rows)
        and abs(promised["auroc_difference"]) <= MOST_AUROC_DIFFERENCE
    )
    print(f"  promised of '{PROMISED}': {'kept' if figures['kept'] else 'BROKEN'}")
    return figures


def _shown(way: str, form: Form, folder: Path) -> dict:
    parity, made = form.parity, form.quantisation
    megabytes = (folder / FORM_FILES[form.name]).stat().st_size / 1e6
    low, high = parity.auroc_interval or (0.0, 0.0)
    layers = "" if made is None else f"{len(made.layers)}, back {len(made.returned)}"
    if made is not None and made.method_movements:
        layers += f", {made.method}, smoothing {made.smoothing:g}"
    _print_row(
        way,
        f"{megabytes:.2f}",
        str(parity.verdict_flips),
        f"{parity.auroc_difference:+.5f} ({low:+.5f} to {high:+.5f})",
        f"{parity.max_score_error:.4f}",
        f"{parity.mean_score_error:.5f}",
        f"{form.score_ms:.1f}",
        layers,
    )
    return {
        "megabytes": megabytes,
        "flips": parity.verdict_flips,
        "auroc_difference": parity.auroc_difference,
        "auroc_interval": list(parity.auroc_interval or ()),
        "max_score_error": parity.max_score_error,
        "mean_score_error": parity.mean_score_error,
        "score_ms": form.score_ms,
        "worst": [_fields_of(one) for one in parity.worst],
    }


def _fields_of(struct) -> dict:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


def _print_row(*cells: str) -> None:
    widths = (30, 7, 6, 34, 8, 9, 7, 0)
    print("  " + " ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)))


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    sys.exit(not table_of(Path(sys.argv[1]), Path(sys.argv[2]))["kept"])
