"""What `edge export` reads before it makes anything: the run, the recording, and their likeness."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge.cli.progress import say
from edge.errors import InputError
from edge.recording.format import Recording, SampleRow

if TYPE_CHECKING:
    from distill.checkpoint import RunRecord
    from distill.students.student import Student
    from edge.model_spec import ModelSpec
    from export.calibration import CalibrationSet
    from export.forms import Int8Choices

DEFAULT_SAMPLES = 128  # to calibrate on
WITH_RANGES = ("int8", "auto")  # precisions whose ranges are read from calibration samples


@dataclass(frozen=True)
class ExportInputs:
    """A run that can be exported, and the recording that its forms are made and proven with."""

    record: RunRecord
    student: Student
    recording: Recording
    spec: ModelSpec  # of the files; the student's own is the calibration set's
    calibration: CalibrationSet
    rows: tuple[SampleRow, ...]  # held out
    unlike: dict[str, float] | None  # see `Provenance.calibration_differences`


def inputs_from(arguments: argparse.Namespace) -> ExportInputs:
    """Read all that an export needs. Raises InputError before anything is made."""
    from export.forms import refuse_fp8, refuse_untrained

    refuse_fp8(arguments.precision)
    import torch

    from device_agents.engine.on_onnxruntime import default_threads
    from distill.checkpoint import read_record, student_from_run
    from export.calibration import MINIMUM_SAMPLES, calibration_set
    from export.frame import recording_of_frames, saying_what_was_left_out
    from export.onnx_graph import spec_for_batch
    from export.parity import held_out_rows

    # One core stays free: on a busy machine, threads that wait for each other after every
    # small operation cost several times the work itself.
    torch.set_num_threads(default_threads())
    record, student = read_record(arguments.run), student_from_run(arguments.run)
    if record.spec.rule is None:
        raise _without_rule(arguments.run)
    if record.int8 is not None and arguments.precision in WITH_RANGES:
        refuse_untrained(int8_choices(arguments), student, arguments.run)
    student_spec = spec_for_batch(record.spec, arguments.batch)
    opened = Recording.open(arguments.calibration)
    frame, recording = recording_of_frames(opened, arguments.frame, student_spec.image)
    spec = msgspec.structs.replace(student_spec, frame=frame)
    say(f"  {_about_frames(spec, recording, opened)}")
    with saying_what_was_left_out(opened, recording, arguments.frame):
        calibration = calibration_set(
            recording,
            student_spec,
            samples=arguments.samples,
            seed=arguments.seed,
            fewest=MINIMUM_SAMPLES if arguments.precision in WITH_RANGES else 1,
        )
        rows = held_out_rows(recording)
    unlike = differences_from_training(
        student, record, calibration, arguments.training, whole=opened
    )
    return ExportInputs(record, student, recording, spec, calibration, rows, unlike)


def int8_choices(arguments: argparse.Namespace) -> Int8Choices:
    """Return how INT8 is asked to be made."""
    from export.forms import Int8Choices

    return Int8Choices(
        method=arguments.calibration_method,
        smooth=arguments.smooth == "auto",
        convolutions=arguments.int8_convolutions,
        attention=arguments.int8_attention,
    )


def _about_frames(spec: ModelSpec, recording: Recording, opened: Recording) -> str:
    """Say who resizes frames, and which samples were left out for theirs."""
    from export.frame import size_text

    model = size_text(spec.image)
    about = f"frames of any size are brought to {model} on the station's CPU"
    if spec.frame is not None:
        about = f"frames of {size_text(spec.frame)} go in whole, to {model} in the graph"
    left_out = len(opened.rows) - len(recording.rows)
    return f"{about}; {left_out} samples of other sizes are left out" if left_out else about


def differences_from_training(
    student: Student,
    record: RunRecord,
    calibration: CalibrationSet,
    training: Path | None,
    *,
    whole: Recording,
) -> dict[str, float] | None:
    """Compare the calibration's recording with the training's. Raises InputError where unlike.

    `whole` is the recording with the samples that --frame left out.
    """
    from distill.checkpoint import StudentScorer
    from export.likeness import described, deviations_text, differences_between, refuse_unlike

    recording = calibration.recording
    if whole.digest() == record.recording_digest:
        say("  calibration samples are of the recording that the run was trained on")
        return {}
    scorer = StudentScorer(student, record.spec)
    trained = record.normals
    if training is not None:
        parts = _trained_on(record, training)
        trained = described(scorer, parts, parts.rows_in("train", do="Give the whole recording."))
    if trained is None:
        say(
            "  NOT COMPARED with the training samples: the run was trained on another recording "
            f"('{record.recording}') and keeps no figures of it; give it as --training"
        )
        return None
    found = differences_between(trained, described(scorer, recording, calibration.rows))
    say(f"  deviations from {trained.samples} normal training samples: {deviations_text(found)}")
    refuse_unlike(found, recording)
    return {one.figure: one.deviations for one in found}


def _trained_on(record: RunRecord, training: Path) -> Recording:
    """Open the recording given as --training. Raises InputError where it is another."""
    trained = Recording.open(training)
    if trained.digest() != record.recording_digest:
        raise InputError(
            where="--training",
            expected=f"the recording that the run was trained on ('{record.recording}', digest "
            f"{record.recording_digest[:12]})",
            found=f"{training}, digest {trained.digest()[:12]}",
            do="Give that recording, unchanged, or leave --training out.",
        )
    return trained


def _without_rule(folder: Path) -> InputError:
    return InputError(
        where=folder,
        expected="a finished run, with its threshold",
        found="a student still in training",
        do="Finish it: `edge distill ... --resume`.",
    )
