"""`edge export`: turn a run into an INT8 bundle, each step proven before the next."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge.artefact import check_free, digest_of_file, new_folder
from edge.bundle import FP32_FILE, INT8_FILE, MANIFEST_FILE, CompileCheck, Manifest, Parity
from edge.cli.progress import Progress
from edge.errors import InputError
from edge.recording.format import Recording, SampleRow

if TYPE_CHECKING:
    from distill.students.student import Student
    from edge.reference import Reference
    from edge.scorer import Scorer
    from export.calibration import CalibrationSet
    from export.judge import Judged

_DEFAULT_SAMPLES = 128
_ROWS = (
    "Size",
    "Largest score error",
    "Verdict flips",
    "AUROC difference",
    "NVIDIA's builder",
    "  its plan",
    "  its layers",
)


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
        "--samples",
        type=int,
        default=_DEFAULT_SAMPLES,
        help=f"calibration samples, drawn from all labels in turn (default {_DEFAULT_SAMPLES})",
    )
    parser.add_argument("--seed", type=int, default=0, help="of that draw (default 0)")
    parser.add_argument(
        "--int8-convolutions",
        action="store_true",
        help="quantise the stem's convolutions too: a smaller file, and scores move more",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write FP32 and INT8 ONNX, hold them against the run, have NVIDIA build them, and pack."""
    out: Path = arguments.out
    check_free(out, force=arguments.force, mark=MANIFEST_FILE)
    with _step("Reading the run and the calibration recording"):
        import torch

        from device_agents.inspector.engine import default_threads
        from distill.checkpoint import RECORD_FILE, read_record, student_from_run
        from export.calibration import calibration_set
        from export.golden import write_golden
        from export.pack import Proof, bundle_from, provenance_of
        from export.parity import ONNX_INT8, held_out_rows

        # One core stays free: on a busy machine, threads that wait for each other after every
        # small operation cost several times the work itself.
        torch.set_num_threads(default_threads())
        record, student = read_record(arguments.run), student_from_run(arguments.run)
        if record.spec.rule is None:
            raise _without_rule(arguments.run)
        recording = Recording.open(arguments.calibration)
        calibration = calibration_set(
            recording, record.spec, samples=arguments.samples, seed=arguments.seed
        )
        rows = held_out_rows(recording)
    with new_folder(out, force=arguments.force, mark=MANIFEST_FILE) as folder:
        int8_nodes = _write_models(folder, student, calibration, arguments.int8_convolutions)
        with _scorers(folder, student, calibration) as scorers:
            judged, parity = _proven(scorers, recording, rows)
            int8 = scorers[ONNX_INT8]
            golden = write_golden(folder, recording, rows, int8, judged[ONNX_INT8])
            reference = _reference(int8, recording, rows)
        proof = Proof(parity, _compiled(folder, int8_nodes), golden, reference)
        provenance = provenance_of(
            checkpoint_digest=digest_of_file(arguments.run / RECORD_FILE),
            training_digest=record.recording_digest,
            calibration=calibration,
        )
        bundle = bundle_from(folder, record.spec, proof, provenance)
    _show(bundle.manifest, out)
    return 0


def _write_models(
    folder: Path, student: Student, calibration: CalibrationSet, convolutions: bool
) -> list[str]:
    """Write both ONNX files; return the names of the nodes that compute on int8."""
    from distill.students.student import EMBEDDINGS, HEADS
    from export.onnx_graph import fp32_onnx_from_student
    from export.quantize import int8_onnx_from_qdq, qdq_from_student

    spec = calibration.spec
    with _step("Writing the FP32 ONNX"):
        fp32_onnx_from_student(student, spec, folder / FP32_FILE)
    title = f"Calibrating on {len(calibration.rows)} samples"
    with _step(title):
        inputs = calibration.inputs_from(Progress(title)(calibration.rows))
        qdq = qdq_from_student(
            student, spec, inputs, kept_float=(*HEADS, *EMBEDDINGS), convolutions=convolutions
        )
    with _step(f"Writing the INT8 ONNX, {len(qdq.quantised)} layers quantised"):
        return int8_onnx_from_qdq(qdq, spec, folder / INT8_FILE)


@contextlib.contextmanager
def _scorers(
    folder: Path, student: Student, calibration: CalibrationSet
) -> Iterator[dict[str, Scorer]]:
    """Yield the checkpoint and both ONNX files, by the names that parity gives them."""
    from device_agents.inspector.engine import engine_from_onnx
    from distill.checkpoint import StudentScorer
    from export.parity import CHECKPOINT, ONNX_FP32, ONNX_INT8

    spec = calibration.spec
    with (
        StudentScorer(student, spec) as trained,
        engine_from_onnx(folder / FP32_FILE, spec) as fp32,
        engine_from_onnx(folder / INT8_FILE, spec) as int8,
    ):
        yield {CHECKPOINT: trained, ONNX_FP32: fp32, ONNX_INT8: int8}


def _proven(
    scorers: dict[str, Scorer], recording: Recording, rows: Sequence[SampleRow]
) -> tuple[dict[str, list[Judged]], tuple[Parity, ...]]:
    """Judge the held-out samples with every form. Raises AnswerIsNo where one is over budget."""
    from export.judge import judged_by
    from export.parity import BUDGETS, CHECKPOINT, check_budget, parity_of

    title = f"Comparing verdicts on {len(rows)} samples of split '{rows[0].split}'"
    with _step(title):
        judged = judged_by(scorers, recording, Progress(title)(rows))
        proven = []
        for form, budget in BUDGETS.items():
            parity = parity_of(form, judged[CHECKPOINT], judged[form])
            check_budget(parity, budget, judged[CHECKPOINT], judged[form])
            proven.append(parity)
    return judged, tuple(proven)


def _reference(int8: Scorer, recording: Recording, rows: Sequence[SampleRow]) -> Reference | None:
    """Measure what held-out normal parts look like, for the device to see drift by."""
    from export.reference import reference_of

    title = "Measuring the reference on normal parts"
    with _step(title):
        return reference_of(int8, recording, Progress(title)(rows))


def _compiled(folder: Path, int8_nodes: Sequence[str]) -> tuple[CompileCheck, ...]:
    """Have NVIDIA's builder build both files. Raises AnswerIsNo where it refuses one."""
    from export.compile_check import compile_check

    with _step("Building with NVIDIA's own builder, ahead of time"):
        checks = (
            compile_check(folder / FP32_FILE),
            compile_check(folder / INT8_FILE, int8_nodes),
        )
    for check in checks:
        if check.status != "passed":
            _say(f"  NOT CHECKED by NVIDIA's builder: {check.file}: {check.remark}")
    return checks


def _show(manifest: Manifest, out: Path) -> None:
    """Print what was made, how near it is to the run, and the next command."""
    from rich.console import Console
    from rich.table import Table

    table = Table("", FP32_FILE, INT8_FILE)
    checks = {check.file: check for check in manifest.compile_checks}
    columns = [
        _column(manifest.files[file].size_bytes, parity, checks[file])
        for file, parity in zip((FP32_FILE, INT8_FILE), manifest.parity, strict=True)
    ]
    for title, *values in zip(_ROWS, *columns, strict=True):
        table.add_row(title, *values)
    console = Console()
    console.print(table)
    remarks = {check.remark for check in checks.values() if check.status == "passed"}
    for remark in sorted(remarks, key=len)[-1:]:
        console.print(remark + ".", style="dim", highlight=False)
    reference = manifest.reference or "none: no normal part was held out, so no drift is seen"
    console.print(f"Reference: {reference}", highlight=False)
    console.print(f"Bundle: {out}", highlight=False)
    console.print(f"Next: edge verify {out}", highlight=False)


def _column(size_bytes: int, parity: Parity, check: CompileCheck) -> tuple[str, ...]:
    """Return the figures of one file, in the order of `_ROWS`."""
    difference = parity.auroc_difference
    return (
        f"{size_bytes / 1e6:.2f} MB",
        f"{parity.max_score_error:.2g} (mean {parity.mean_score_error:.2g})",
        f"{parity.verdict_flips} of {parity.samples}",
        "unknown: one class only" if difference is None else f"{difference:+.5f}",
        check.status if check.seconds is None else f"{check.status} in {check.seconds:.1f} s",
        "-" if check.plan_bytes is None else f"{check.plan_bytes / 1e6:.1f} MB",
        "-" if check.layers is None else f"{check.layers}, {check.int8_layers} of them int8",
    )


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
