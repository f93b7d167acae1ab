"""`edge export`: turn a run into a bundle, each step proven before the next."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge.artefact import check_free, digest_of_file, new_folder
from edge.bundle import FORM_FILES, FP32_FILE, MANIFEST_FILE, Bundle, CompileCheck
from edge.cli.export_inputs import DEFAULT_SAMPLES, ExportInputs, inputs_from, int8_choices
from edge.cli.export_table import draw_worst, show, worst_path
from edge.cli.progress import Progress, say, step
from edge.errors import AnswerIsNo
from edge.recording.contact_sheet import PNG_MAGIC
from edge.recording.format import Recording, SampleRow

if TYPE_CHECKING:
    from distill.students.student import Student
    from edge.reference import Reference
    from edge.scorer import Scorer
    from export.forms import Form, Trial
    from export.judge import Judged

_PRECISIONS = ("int8", "fp16", "int4-weights", "auto", "fp8")  # fp8 is refused, with the reason
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
        default=DEFAULT_SAMPLES,
        help=f"calibration samples, drawn from all labels in turn (default {DEFAULT_SAMPLES})",
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
    with step("Reading the run and the calibration recording"):
        read = inputs_from(arguments)
    with new_folder(out, force=arguments.force, mark=MANIFEST_FILE) as folder:
        # An earlier drawing beside what is made now, or not made, would pass for its own.
        worst_path(out).unlink(missing_ok=True)
        made = _made(folder, read, arguments)
        sizes = _only(folder, (made.fp32, *made.forms), made.shipped)
        bundle = _packed(folder, read, made, arguments.run)
    show(bundle.manifest, out, (made.fp32, *made.forms), sizes)
    return 0


def _made(folder: Path, read: ExportInputs, arguments: argparse.Namespace) -> _Made:
    """Make the forms in `folder`, and choose. Raises AnswerIsNo, the worst samples drawn."""
    from export.forms import made_forms
    from export.onnx_graph import fp32_onnx_from_student
    from export.parity import BUDGETS, ONNX_FP32, check_budget

    with step("Writing the FP32 ONNX"):
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
    with step(f"Making {arguments.precision}"):
        forms = made_forms(trial, arguments.precision, int8_choices(arguments))
    with _drawn_if_refused(arguments.out, trial, read.student, forms[0]):
        shipped, checks = _compiled(folder, forms, trial.reference)
    _draw_worst(arguments.out, trial, read.student, shipped)
    return _Made(fp32, forms, shipped, checks)


def _packed(folder: Path, read: ExportInputs, made: _Made, run_folder: Path) -> Bundle:
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


def _trial(folder: Path, read: ExportInputs) -> tuple[Trial, Form]:
    """Judge the held-out samples with the checkpoint and with the FP32 ONNX."""
    from device_agents.engine.on_onnxruntime import engine_from_onnx
    from distill.checkpoint import StudentScorer
    from distill.students.student import EMBEDDINGS, HEADS
    from export.forms import Trial, judged_form
    from export.judge import judged_by
    from export.parity import CHECKPOINT

    rows, split = read.rows, read.rows[0].split

    def judge(scorer: Scorer, name: str) -> list[Judged]:
        title = f"Judging {len(rows)} samples of split '{split}', {name}"
        return judged_by({name: scorer}, read.recording, Progress(title)(rows))[name]

    def load(path: Path) -> Scorer:
        return engine_from_onnx(path, read.spec)

    with step(f"Comparing verdicts on {len(rows)} samples of split '{split}'"):
        with StudentScorer(read.student, read.calibration.spec) as trained:
            reference = judge(trained, CHECKPOINT)
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
            say=say,
            progress=Progress,
        )
        return trial, judged_form(trial, "fp32")


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
    with step("Building with NVIDIA's own builder, ahead of time"):
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
                say(f"  not shipped: {shipped.name}: {error.found}")
    for check in checks:
        if check.status != "passed":
            say(f"  NOT CHECKED by NVIDIA's builder: {check.file}: {check.remark}")
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
    say(f"  the samples that {form.name} judges worst are drawn in {worst_path(out)}")


def _reference(scorer: Scorer, recording: Recording, rows: Sequence[SampleRow]) -> Reference | None:
    """Measure what held-out normal parts look like, for the device to see drift by."""
    from distill.evaluation.reference import reference_of

    title = "Measuring the reference on normal parts"
    with step(title):
        return reference_of(scorer, recording, Progress(title)(rows))
