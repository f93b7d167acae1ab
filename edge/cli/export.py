"""`edge export`: turn a run into a bundle, each step proven before the next."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge.artefact import check_free, digest_of_file, new_folder
from edge.bundle import FORM_FILES, FP32_FILE, MANIFEST_FILE, Bundle, CompileCheck
from edge.cli.export_table import draw_worst, show, worst_path
from edge.cli.progress import Progress
from edge.errors import AnswerIsNo, InputError
from edge.recording.contact_sheet import PNG_MAGIC
from edge.recording.format import Recording, SampleRow

if TYPE_CHECKING:
    from distill.checkpoint import RunRecord
    from distill.students.student import Student
    from edge.model_spec import ModelSpec
    from edge.reference import Reference
    from edge.scorer import Scorer
    from export.calibration import CalibrationSet
    from export.forms import Form, Int8Choices, Trial
    from export.judge import Judged

_DEFAULT_SAMPLES = 128
_PRECISIONS = ("int8", "fp16", "int4-weights", "auto", "fp8")  # fp8 is refused, with the reason
_WITH_RANGES = ("int8", "auto")  # these are read from calibration samples
_METHODS = ("auto", "max", "percentile", "entropy", "mse")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run", type=Path, help="the run's folder, from `edge distill`")
    parser.add_argument(
        "--calibration",
        type=Path,
        required=True,
        metavar="REC",
        help="recording of the line: its train split sets the INT8 ranges, its val split (or "
        "test, where there is no val) proves that verdicts stay",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="the new bundle")
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")
    parser.add_argument(
        "--precision",
        choices=_PRECISIONS,
        default="int8",
        help="the form that ships (default int8); auto makes every form, shows them side by side "
        "and ships the fastest whose verdicts stay",
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=_DEFAULT_SAMPLES,
        help=f"calibration samples, drawn from all labels in turn (default {_DEFAULT_SAMPLES})",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=1,
        help="samples in one run of the model, for a station with several cameras (default 1)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of that draw (default 0)")
    parser.add_argument(
        "--frame",
        default="",
        metavar="WxH|model",
        help="the size of the station's frames, which the graph takes whole (default: that of the "
        "recording's frames); model: the station resizes frames of any size on its CPU",
    )
    parser.add_argument(
        "--training",
        type=Path,
        metavar="REC",
        help="the recording that the run was trained on, where --calibration is another and the "
        "run is so old that it keeps no figures of its parts to compare by",
    )
    _add_int8_arguments(parser.add_argument_group("INT8"))


def _add_int8_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--calibration-method",
        choices=_METHODS,
        default="auto",
        help="how a range is read from the samples (default auto: the one by which scores move "
        "least, on other training samples; for the run of an INT8 self, the ranges that it was "
        "trained with)",
    )
    group.add_argument(
        "--smooth",
        choices=("auto", "off"),
        default="auto",
        help="SmoothQuant: hand outliers on to the weights (default auto: where it helps)",
    )
    group.add_argument(
        "--int8-convolutions",
        action="store_true",
        help="quantise the stem's convolutions too: a smaller file, and scores move more",
    )
    group.add_argument(
        "--int8-attention",
        action="store_true",
        help="quantise the two products of attention too",
    )


@dataclass(frozen=True)
class _Read:
    """A run that can be exported, and the recording that its forms are made and proven with."""

    record: RunRecord
    student: Student
    recording: Recording
    spec: ModelSpec  # of the files; the student's own is the calibration set's
    calibration: CalibrationSet
    rows: tuple[SampleRow, ...]  # held out
    unlike: dict[str, float] | None  # see `Provenance.calibration_differences`


@dataclass(frozen=True)
class _Made:
    """The forms, and the one of them that ships."""

    fp32: Form
    forms: Sequence[Form]
    shipped: Form
    checks: tuple[CompileCheck, ...]


def run(arguments: argparse.Namespace) -> int:
    """Write FP32 and the form asked for, prove both, have NVIDIA build them, and pack."""
    out: Path = arguments.out
    check_free(out, force=arguments.force, mark=MANIFEST_FILE)
    check_free(worst_path(out), force=True, magic=PNG_MAGIC)
    with _step("Reading the run and the calibration recording"):
        read = _read(arguments)
    with new_folder(out, force=arguments.force, mark=MANIFEST_FILE) as folder:
        # An earlier drawing beside what is made now, or not made, would pass for its own.
        worst_path(out).unlink(missing_ok=True)
        made = _made(folder, read, arguments)
        sizes = _only(folder, (made.fp32, *made.forms), made.shipped)
        bundle = _packed(folder, read, made, arguments.run)
    show(bundle.manifest, out, (made.fp32, *made.forms), sizes)
    return 0


def _read(arguments: argparse.Namespace) -> _Read:
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
    if record.int8 is not None and arguments.precision in _WITH_RANGES:
        refuse_untrained(_choices(arguments), student, arguments.run)
    student_spec = spec_for_batch(record.spec, arguments.batch)
    opened = Recording.open(arguments.calibration)
    frame, recording = recording_of_frames(opened, arguments.frame, student_spec.image)
    spec = msgspec.structs.replace(student_spec, frame=frame)
    _say(f"  {_about_frames(spec, recording, opened)}")
    with saying_what_was_left_out(opened, recording, arguments.frame):
        calibration = calibration_set(
            recording,
            student_spec,
            samples=arguments.samples,
            seed=arguments.seed,
            fewest=MINIMUM_SAMPLES if arguments.precision in _WITH_RANGES else 1,
        )
        rows = held_out_rows(recording)
    unlike = _unlike(student, record, calibration, arguments.training)
    return _Read(record, student, recording, spec, calibration, rows, unlike)


def _made(folder: Path, read: _Read, arguments: argparse.Namespace) -> _Made:
    """Make the forms in `folder`, and choose. Raises AnswerIsNo, the worst samples drawn."""
    from export.forms import made_forms
    from export.onnx_graph import fp32_onnx_from_student
    from export.parity import BUDGETS, ONNX_FP32, check_budget

    with _step("Writing the FP32 ONNX"):
        fp32_onnx_from_student(read.student, read.spec, folder / FP32_FILE)
    trial, fp32 = _trial(folder, read)
    with _drawn_if_refused(arguments.out, trial, read.student, fp32):
        check_budget(
            fp32.parity,
            BUDGETS[ONNX_FP32],
            trial.reference,
            do="The exporter changed the student: report this with the versions of torch, "
            "onnxscript and onnxruntime.",
        )
    with _step(f"Making {arguments.precision}"):
        forms = made_forms(trial, arguments.precision, _choices(arguments))
    with _drawn_if_refused(arguments.out, trial, read.student, forms[0]):
        shipped, checks = _compiled(folder, forms, trial.reference)
    _draw_worst(arguments.out, trial, read.student, shipped)
    return _Made(fp32, forms, shipped, checks)


def _packed(folder: Path, read: _Read, made: _Made, run_folder: Path) -> Bundle:
    """Add golden samples, the reference and the manifest to the files in `folder`."""
    from device_agents.engine.on_onnxruntime import engine_from_onnx
    from distill.checkpoint import RECORD_FILE
    from export.golden import write_golden
    from export.pack import Proof, bundle_from, provenance_of

    shipped = made.shipped
    with engine_from_onnx(folder / FORM_FILES[shipped.name], read.spec) as scorer:
        golden = write_golden(folder, read.recording, read.rows, scorer, shipped.judged)
        reference = _reference(scorer, read.recording, read.rows)
    proof = Proof(
        (made.fp32.parity, *(form.parity for form in made.forms if not form.over)),
        made.checks,
        golden,
        reference,
        form=shipped.name,
        quantisation=shipped.quantisation,
    )
    provenance = provenance_of(
        checkpoint_digest=digest_of_file(run_folder / RECORD_FILE),
        training_digest=read.record.recording_digest,
        calibration=read.calibration,
        calibration_differences=read.unlike,
    )
    return bundle_from(folder, read.spec, proof, provenance)


def _choices(arguments: argparse.Namespace) -> Int8Choices:
    from export.forms import Int8Choices

    return Int8Choices(
        method=arguments.calibration_method,
        smooth=arguments.smooth == "auto",
        convolutions=arguments.int8_convolutions,
        attention=arguments.int8_attention,
    )


def _trial(folder: Path, read: _Read) -> tuple[Trial, Form]:
    """Judge the held-out samples with the checkpoint and with the FP32 ONNX."""
    from device_agents.engine.on_onnxruntime import engine_from_onnx
    from distill.checkpoint import StudentScorer
    from distill.students.student import EMBEDDINGS, HEADS
    from export.forms import Trial, judged_form
    from export.judge import judged_by

    rows, split = read.rows, read.rows[0].split

    def judge(scorer: Scorer, name: str) -> list[Judged]:
        title = f"Judging {len(rows)} samples of split '{split}', {name}"
        return judged_by({name: scorer}, read.recording, Progress(title)(rows))[name]

    def load(path: Path) -> Scorer:
        return engine_from_onnx(path, read.spec)

    with _step(f"Comparing verdicts on {len(rows)} samples of split '{split}'"):
        with StudentScorer(read.student, read.calibration.spec) as trained:
            reference = judge(trained, "checkpoint")
        trial = Trial(
            folder=folder,
            student=read.student,
            calibration=read.calibration,
            kept_float=(*HEADS, *EMBEDDINGS),
            reference=reference,
            load=load,
            judge=judge,
            trained=() if read.record.int8 is None else read.record.int8.inputs,
            frame=read.spec.frame,
            say=_say,
            progress=Progress,
        )
        return trial, judged_form(trial, "fp32")


def _about_frames(spec: ModelSpec, recording: Recording, opened: Recording) -> str:
    """Say who resizes frames, and which samples were left out for theirs."""
    from export.frame import size_text

    model = size_text(spec.image)
    about = f"frames of any size are brought to {model} on the station's CPU"
    if spec.frame is not None:
        about = f"frames of {size_text(spec.frame)} go in whole, to {model} in the graph"
    left_out = len(opened.rows) - len(recording.rows)
    return f"{about}; {left_out} samples of other sizes are left out" if left_out else about


def _unlike(
    student: Student, record: RunRecord, calibration: CalibrationSet, training: Path | None
) -> dict[str, float] | None:
    """Compare the calibration's recording with the training's. Raises InputError where unlike."""
    from distill.checkpoint import StudentScorer
    from export.likeness import described, deviations_text, differences_between, refuse_unlike

    recording = calibration.recording
    if recording.digest() == record.recording_digest:
        _say("  calibration samples are of the recording that the run was trained on")
        return {}
    scorer = StudentScorer(student, record.spec)
    trained = record.normals
    if training is not None:
        parts = _trained_on(record, training)
        trained = described(scorer, parts, parts.rows_in("train", do="Give the whole recording."))
    if trained is None:
        _say(
            "  NOT COMPARED with the training samples: the run was trained on another recording "
            f"('{record.recording}') and keeps no figures of it; give it as --training"
        )
        return None
    found = differences_between(trained, described(scorer, recording, calibration.rows))
    _say(f"  deviations from {trained.samples} normal training samples: {deviations_text(found)}")
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


def _only(folder: Path, forms: Sequence[Form], shipped: Form) -> dict[str, int]:
    """Delete the forms that do not ship, but FP32; return the size in bytes that each one had."""
    from export.onnx_file import files_of

    sizes = {}
    for form in forms:
        files = files_of(folder / FORM_FILES[form.name])
        sizes[form.name] = sum(path.stat().st_size for path in files)
        if form.name not in ("fp32", shipped.name):
            for path in files:
                path.unlink()
    return sizes


def _compiled(
    folder: Path, forms: Sequence[Form], reference: Sequence[Judged]
) -> tuple[Form, tuple[CompileCheck, ...]]:
    """Choose the form that ships, which NVIDIA's builder must take. Raises AnswerIsNo."""
    from export.compile_check import compile_check
    from export.forms import fastest_within_budget

    left = list(forms)
    with _step("Building with NVIDIA's own builder, ahead of time"):
        checks = [compile_check(folder / FP32_FILE)]
        while True:
            shipped = fastest_within_budget(left, reference)
            try:
                checks.append(compile_check(folder / FORM_FILES[shipped.name], shipped.int8_nodes))
                break
            except AnswerIsNo as error:
                left.remove(shipped)
                if not left:
                    raise
                _say(f"  not shipped: {shipped.name}: {error.found}")
    for check in checks:
        if check.status != "passed":
            _say(f"  NOT CHECKED by NVIDIA's builder: {check.file}: {check.remark}")
    return shipped, tuple(checks)


@contextlib.contextmanager
def _drawn_if_refused(out: Path, trial: Trial, student: Student, form: Form) -> Iterator[None]:
    """Draw the form's worst samples where no bundle comes of it, for a person to look into."""
    try:
        yield
    except AnswerIsNo:
        _draw_worst(out, trial, student, form)
        raise


def _draw_worst(out: Path, trial: Trial, student: Student, form: Form) -> None:
    """Draw the form's worst samples beside the bundle, or where one would have been."""
    from distill.checkpoint import StudentScorer

    checkpoint = StudentScorer(student, trial.calibration.spec)
    with trial.load(trial.folder / FORM_FILES[form.name]) as scorer:
        draw_worst(out, trial.calibration.recording, form, checkpoint, scorer)
    _say(f"  the samples that {form.name} judges worst are drawn in {worst_path(out)}")


def _reference(scorer: Scorer, recording: Recording, rows: Sequence[SampleRow]) -> Reference | None:
    """Measure what held-out normal parts look like, for the device to see drift by."""
    from distill.evaluation.reference import reference_of

    title = "Measuring the reference on normal parts"
    with _step(title):
        return reference_of(scorer, recording, Progress(title)(rows))


def _without_rule(folder: Path) -> InputError:
    return InputError(
        where=folder,
        expected="a finished run, with its threshold",
        found="a student still in training",
        do="Finish it: `edge distill ... --resume`.",
    )


@contextlib.contextmanager
def _step(title: str) -> Iterator[None]:
    """Say on standard error what is being made, and afterwards how long it took."""
    started = time.monotonic()
    _say(f"{title} ...")
    yield
    _say(f"  {time.monotonic() - started:.1f} s")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
