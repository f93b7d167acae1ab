"""Does a student keep its verdicts better in INT8 once it taught its INT8 self?

    python -m tests.benchmarks quantized_self             trains tiny on ballscrew first
    python -m tests.benchmarks quantized_self --quick     after a single epoch of each
    python -m tests.benchmarks.quantized_self RUN REC     of a run that is there [KEY=VALUE ...]

A float run, and the run that `edge distill --quantize` makes of it, each as INT8 ONNX with every
layer in it: nothing goes back to float, so that the forms differ in their making alone. All are
held against the float run, by its own rule, on the test split, which neither training nor any
choice has seen; ranges that are measured are measured on the same training samples. Nothing is
promised: whether it helps is what this is for. The pairing of images and vibration in ballscrew is
synthetic.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from device_agents.engine.on_onnxruntime import engine_from_onnx
from distill.checkpoint import (
    Checkpoint,
    checkpoint_from_run,
    read_record,
    scorer_from_checkpoint,
)
from distill.students.student import EMBEDDINGS, HEADS
from edge.recording.format import Recording
from export.calibration import CalibrationSet, calibration_set
from export.judge import Judged, judged_by
from export.parity import parity_of
from export.quantization.choices import (
    MEASURED_SAMPLES,
    Measure,
    choose_method,
    choose_strength,
    strength_of,
)
from export.quantization.prepared import PreparedStudent, prepared_student
from export.quantization.trained_ranges import take_trained_ranges
from export.quantize import int8_onnx_from_qdq
from tests.benchmarks.trained import THREADS, distil, edge, import_ballscrew, lacking

SAMPLES = 128
SPLIT = "test"
SMALL = ("image.pixel_budget=16384",)
_QUICK = (*SMALL, "train.epochs=1", "targets.copies=1")
_FORMS = {
    "float run, int8 by max": "max",
    "float run, int8 as export chooses": "chosen",
    "its INT8 self, as trained": "trained",
    "its INT8 self, int8 by max": "max",
}


@dataclass(frozen=True)
class _Judge:
    """The samples that every form judges, by the float run's rule."""

    recording: Recording
    calibration: CalibrationSet
    judge: Callable[[object, str], list[Judged]]


def run(*, quick: bool = False) -> dict:
    """Train both, print one table, and return the figures."""
    if lacking():
        print(f"quantized_self: SKIPPED, {lacking()}")
        return {}
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        import_ballscrew(folder / "rec")
        distil(
            folder / "rec", "tiny", _QUICK if quick else SMALL, folder / "run", folder / "targets"
        )
        return figures_of(folder / "run", folder / "rec", ("quantize.epochs=1",) if quick else ())


def figures_of(trained: Path, folder: Path, overrides: tuple[str, ...] = ()) -> dict:
    """Train the INT8 self of a run and print how both stand against the run itself."""
    with tempfile.TemporaryDirectory() as name:
        own = Path(name) / "run2"
        changed = [word for override in overrides for word in ("--set", override)]
        seconds = _quantized("distill", folder, "--quantize", trained, *changed, "--out", own)
        made = read_record(own).int8
        print(
            f"  movement of the score on 'val': {made.before.mean:.2g} by calibration alone, "
            f"{made.after.mean:.2g} trained"
        )
        figures = table_of(trained, own, folder)
    return {**figures, "training_seconds": seconds}


def _quantized(*words: object) -> float:
    """Run the command; its status 1 says that training made nothing better, which we measure."""
    started = time.monotonic()
    try:
        edge(*words)
    except subprocess.CalledProcessError as error:
        if error.returncode != 1:
            raise
    return time.monotonic() - started


def table_of(trained: Path, own: Path, folder: Path) -> dict:
    """Print a float run and its INT8 self in INT8, against the float run."""
    recording = Recording.open(folder)
    float_run, int8_run = checkpoint_from_run(trained), checkpoint_from_run(own)
    rows, spec = recording.rows_in(SPLIT), float_run.spec

    def judge(scorer: object, name: str) -> list[Judged]:
        return judged_by({name: scorer}, recording, rows)[name]

    judged = _Judge(recording, calibration_set(recording, spec, samples=SAMPLES), judge)
    reference = judge(scorer_from_checkpoint(float_run), "checkpoint")
    inputs = read_record(own).int8.inputs
    print(f"\n{spec.name}: {len(rows)} samples of split '{SPLIT}', against the float run")
    _print_row("", "mean", "largest", "flips", "AUROC difference")
    figures: dict = {"samples": len(rows)}
    float_self = Checkpoint(int8_run.student, spec, int8_run.digest, int8_run.training_digest)
    figures["its INT8 self, in float"] = _shown(
        "its INT8 self, in float",
        reference,
        judge(scorer_from_checkpoint(float_self), "float"),
    )
    for form, way in _FORMS.items():
        run_folder = trained if form.startswith("float run") else own
        # Smoothing changes the student that it is tried on: each form begins with a fresh one.
        student = checkpoint_from_run(run_folder).student
        prepared = prepared_student(student, spec, kept_float=(*HEADS, *EMBEDDINGS))
        if way == "trained":
            take_trained_ranges(prepared, inputs)
        else:
            _measured(prepared, judged.calibration, chosen=way == "chosen")
        figures[form] = _shown(form, reference, _judged_file(prepared, judged))
    return figures


def _measured(prepared: PreparedStudent, calibration: CalibrationSet, *, chosen: bool) -> None:
    """Measure ranges by max; or choose method and smoothing as `edge export` does."""
    prepared.watch(calibration.inputs_from(calibration.rows))
    if not chosen:
        return
    spare = list(calibration.inputs_from(calibration.spare_rows))
    measure = Measure(prepared, spare[:MEASURED_SAMPLES])
    choose_method(prepared, measure)
    if strength_of(choose_strength(prepared, measure)) > 0.0:
        prepared.watch(calibration.inputs_from(calibration.rows))


def _judged_file(prepared: PreparedStudent, judged: _Judge) -> list[Judged]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.int8.onnx"
        int8_onnx_from_qdq(prepared.converted(), prepared.spec, path)
        with engine_from_onnx(path, prepared.spec, threads=THREADS) as scorer:
            return judged.judge(scorer, "int8")


def _shown(form: str, reference: list[Judged], candidate: list[Judged]) -> dict:
    parity = parity_of("onnx-int8", reference, candidate)
    low, high = parity.auroc_interval or (0.0, 0.0)
    _print_row(
        form,
        f"{parity.mean_score_error:.5f}",
        f"{parity.max_score_error:.4f}",
        str(parity.verdict_flips),
        f"{parity.auroc_difference:+.5f} ({low:+.5f} to {high:+.5f})",
    )
    return {
        "mean_score_error": parity.mean_score_error,
        "max_score_error": parity.max_score_error,
        "flips": parity.verdict_flips,
        "auroc_difference": parity.auroc_difference,
        "auroc_interval": list(parity.auroc_interval or ()),
    }


def _print_row(*cells: str) -> None:
    widths = (36, 9, 9, 6, 0)
    print("  " + " ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)))


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    given = figures_of(Path(sys.argv[1]), Path(sys.argv[2]), tuple(sys.argv[3:]))
    print(json.dumps(given, indent=2))
