"""`edge evaluate`: measure a run or a bundle on one split of a recording."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from distill.evaluation.evaluate import Evaluation, Measured
    from distill.evaluation.metrics import Rate
    from edge.model_spec import ModelSpec
    from edge.recording.format import Recording
    from edge.scorer import Scorer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `edge evaluate`."""
    parser.add_argument("model", metavar="RUN|BUNDLE", type=Path)
    parser.add_argument("recording", metavar="REC", type=Path)
    parser.add_argument("--split", default="test", help="which split to measure (default test)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE.png",
        help="draw the scores by label, and the samples to look at with their heat maps",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing picture")


def run(arguments: argparse.Namespace) -> int:
    """Score the split and print the figures; remarks go to standard error."""
    import msgspec

    from distill.evaluation.evaluate import evaluation_from, measured_on, remarks_on
    from edge.artefact import check_free
    from edge.cli.progress import Progress
    from edge.prepare import resized_text
    from edge.recording.contact_sheet import PNG_MAGIC
    from edge.recording.format import Recording

    recording = Recording.open(arguments.recording)
    if arguments.picture is not None:
        check_free(arguments.picture, force=arguments.force, magic=PNG_MAGIC)
    with _scorer_at(arguments.model) as scorer:
        measured = measured_on(scorer, recording, arguments.split, Progress)
        spec = scorer.spec
    evaluation = evaluation_from(measured, recording, spec)
    if arguments.json:
        print(msgspec.json.encode(evaluation).decode())
    else:
        print(f"{arguments.model} on {arguments.recording}, split '{arguments.split}'")
        print("\n".join(_table(evaluation, spec)))
        print(_reference_line(arguments.model))
    if arguments.picture is not None:
        _draw(measured, recording, evaluation.threshold, arguments)
    resized = resized_text(sum(m.resized for m in measured), len(measured), spec)
    for remark in (*remarks_on(evaluation, spec), *filter(None, [resized])):
        print(f"note: {remark}", file=sys.stderr)
    return 0


def _scorer_at(folder: Path) -> Scorer:
    """Open a bundle's engine or a run's student, whichever the folder is. Raises InputError."""
    from edge.bundle import MANIFEST_FILE, Bundle

    if (folder / MANIFEST_FILE).is_file():
        from device_agents.engine.load import engine_from_bundle

        return engine_from_bundle(Bundle.open(folder))
    from distill.checkpoint import scorer_from_run

    return scorer_from_run(folder)


def _reference_line(folder: Path) -> str:
    """Say what the device will see drift by."""
    from edge.bundle import MANIFEST_FILE, Bundle

    if not (folder / MANIFEST_FILE).is_file():
        return "reference for drift: a run has none, `edge export` measures it"
    reference = Bundle.open(folder).manifest.reference
    return f"reference for drift: {reference or 'none, the device sees no drift by this bundle'}"


def _draw(
    measured: Sequence[Measured],
    recording: Recording,
    threshold: float,
    arguments: argparse.Namespace,
) -> None:
    from distill.evaluation.report import evaluation_sheet
    from edge.artefact import new_file
    from edge.recording.contact_sheet import PNG_MAGIC

    sheet = evaluation_sheet(measured, recording, threshold)
    with new_file(arguments.picture, force=arguments.force, magic=PNG_MAGIC) as path:
        sheet.save(path, format="PNG")
    print(f"picture: {arguments.picture}", file=sys.stderr)


def _table(evaluation: Evaluation, spec: ModelSpec) -> list[str]:
    assert spec.rule is not None  # a spec without a rule is a student still in training
    rule = spec.rule.threshold
    origin = f"{rule.false_alarm_budget:.1%} false alarms on {rule.normals} held-out normal parts"
    rows = [("samples", str(evaluation.n)), ("AUROC", _area(evaluation.auroc))]
    for name, area in evaluation.auroc_by_label.items():
        new = " (no class of the model's)" if name in evaluation.unknown_labels else ""
        rows.append((f"  {name}{new}", _area(area)))
    rows += [
        ("AUROC, image only", _area(evaluation.auroc_image_only)),
        ("AUROC, sensor only", _area(evaluation.auroc_sensor_only)),
        ("AUPRO", _area(evaluation.aupro)),
        ("threshold", f"{evaluation.threshold:.4f} ({origin})"),
        ("escapes (defects passed)", _rate(evaluation.escape_rate)),
        ("overkill (good parts failed)", _rate(evaluation.overkill_rate)),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {value}" for name, value in rows]


def _area(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _rate(rate: Rate) -> str:
    if rate.value is None:
        return "- (no such parts)"
    return f"{rate.value:.2%} (95 %: {rate.low:.2%} to {rate.high:.2%}, n = {rate.n})"
