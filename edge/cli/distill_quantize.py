"""`edge distill --quantize`: the float student of a run teaches its INT8 self."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING

from edge.cli.export_inputs import DEFAULT_SAMPLES
from edge.cli.progress import typed
from edge.cli.training import INTERRUPTED, read_once, run_training, tell_threshold
from edge.errors import InputError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from distill.checkpoint import Int8Ranges, RunRecord
    from distill.journal.news import Journal
    from distill.quantization.order import QuantizeOrder
    from distill.students.student import Student
    from export.calibration import CalibrationSet

_NO_NEARER = 1


def run_quantize(arguments: argparse.Namespace) -> int:
    """Train, then say how much nearer INT8 came, and what to do next."""
    from distill.quantization.quantize import came_nearer, quantize
    from distill.training.run_folders import RunFolders
    from edge.cli.progress import Progress, is_main_process

    _refuse_contradictions(arguments)
    order, calibration, remarks = read_once(lambda: _input(arguments))
    folders = RunFolders(arguments.out, arguments.targets, learns_from=order.resume_key)

    def train(journal: Journal, accelerator: Accelerator) -> RunRecord:
        calibrate = partial(_calibrated, calibration)
        return quantize(order, calibrate, folders, Progress, journal, accelerator, remarks)

    record = run_training(arguments, folders, order.recipe, train)
    if record is None:
        return INTERRUPTED
    if is_main_process():
        _tell(record, arguments)
    # As with `edge adapt`: a script must not ship unseen what training made no better.
    return 0 if came_nearer(record) else _NO_NEARER


def _refuse_contradictions(arguments: argparse.Namespace) -> None:
    """Refuse options that would say where a student begins, or by whom it is taught."""
    said = {"--init-from": arguments.init_from, "--teacher": arguments.teachers}
    for option, value in said.items():
        if value:
            raise InputError(
                where=f"--quantize {arguments.quantize}",
                expected="the run's student alone, as what it begins with and as its teacher",
                found=option,
                do=f"Leave out {option}, or distil anew with --recipe and quantise that run.",
            )


def _input(
    arguments: argparse.Namespace,
) -> tuple[QuantizeOrder, CalibrationSet, tuple[str, ...]]:
    """Read run and recording, and draw the samples that ranges begin with."""
    from distill.dataset import without_unreadable
    from distill.quantization.order import order_for
    from distill.recipe import TRAIN_SPLIT
    from edge.cli.progress import Progress
    from edge.recording.format import Recording
    from export.calibration import MINIMUM_SAMPLES, calibration_set

    recording, told = Recording.open(arguments.recording), ""
    if arguments.skip_unreadable:
        recording, told = without_unreadable(recording, Progress)
    order = order_for(arguments.quantize, recording, tuple(arguments.overrides))
    calibration = calibration_set(
        *(recording, order.record.spec),
        samples=DEFAULT_SAMPLES,
        too_few=f"Give a recording with {MINIMUM_SAMPLES} or more parts in '{TRAIN_SPLIT}'; or "
        f"ship the run without any ranges: edge export {arguments.quantize} --calibration "
        f"{arguments.recording} --precision fp16 --out BUNDLE",
    )
    return order, calibration, (told,) if told else ()


def _calibrated(calibration: CalibrationSet, student: Student) -> Int8Ranges:
    """Ask the exporter what it would have in INT8, and by which ranges."""
    from distill.students.student import EMBEDDINGS, HEADS
    from edge.cli.progress import Progress
    from export.quantization.trained_ranges import calibrated_ranges

    title = f"Calibrating on {len(calibration.rows)} samples"
    ranges = calibrated_ranges(
        student, calibration, kept_float=(*HEADS, *EMBEDDINGS), walk=Progress(title)
    )
    layers = sum(len(one.layers) for one in ranges.inputs)
    print(f"{layers} layers in int8, ranges begin by '{ranges.method}'", file=sys.stderr)
    return ranges


def _tell(record: RunRecord, arguments: argparse.Namespace) -> None:
    from distill.quantization.quantize import came_nearer

    made = record.int8
    assert made is not None
    split = made.recipe.threshold.split
    print(
        f"{arguments.out}: the INT8 self of {arguments.quantize}, on {made.after.samples} held-out "
        f"samples ({split}): its score is {made.after.mean:.5f} from the float one's on average "
        f"(at most {made.after.largest:.4f}); by calibration alone {made.before.mean:.5f} "
        f"({made.before.largest:.4f})"
    )
    tell_threshold(record)
    for remark in record.remarks:
        print(f"note: {remark}")
    one, run = ("it", arguments.out)
    if not came_nearer(record):
        one, run = ("the float run", arguments.quantize)
    export = ("edge", "export", run, "--calibration", arguments.recording, "--out", "BUNDLE")
    print(f"Export {one} with: {typed(*export)}")
