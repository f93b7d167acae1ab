"""Measure any scorer (a student or a bundle's engine) on one split of a recording.

Shapes: N samples, h w map grid, H W pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distill.dataset import Progress
from distill.evaluation.metrics import Rate, aupro, auroc, clopper_pearson
from distill.evaluation.thresholds import support_remark
from edge.errors import InputError, nearest_hint
from edge.model_spec import ImageInput, ModelSpec
from edge.prepare import MODALITIES, channels_text, is_resized, model_inputs
from edge.recording.format import UNLABELLED, Recording, SampleRow
from edge.sample import Sample
from edge.scorer import Scorer
from edge.verdict import verdict_of


class Evaluation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `edge evaluate --json` prints. None where the split cannot answer the question."""

    n: int
    auroc: float | None  # normal against all else
    auroc_by_label: dict[str, float | None]  # normal against each other label
    auroc_image_only: float | None  # the sensor withheld
    auroc_sensor_only: float | None  # the image withheld
    aupro: float | None  # where masks exist
    threshold: float
    escape_rate: Rate  # defective parts that pass
    overkill_rate: Rate  # normal parts that do not
    unknown_labels: dict[
        str, int
    ]  # samples with labels that the model was not taught: "not normal"


@dataclass(frozen=True)
class Measured:
    """What the scorer said of one sample."""

    row: SampleRow
    score: float  # the anomaly score, 0..1
    passed: bool
    map_hw: NDArray[np.float32]  # the anomaly map, 0..1
    without: dict[str, float]  # withheld modality -> anomaly score
    resized: bool = False  # its frame was of another size than those that the bundle is made for


def measured_on(
    scorer: Scorer, recording: Recording, split: str, progress: Progress
) -> list[Measured]:
    """Score every sample of the split, as it is and with each modality withheld. InputError."""
    rows = recording.rows_in(split)
    refuse_misfit(recording, rows, scorer.spec)
    return [
        _measure(scorer, recording.read_sample(rows[number]), rows[number])
        for number in progress(f"evaluating {split}")(range(len(rows)))
    ]


def evaluation_from(
    measured: Sequence[Measured], recording: Recording, spec: ModelSpec
) -> Evaluation:
    """Turn what was measured into figures. The recording is asked for masks only."""
    assert spec.rule is not None  # a spec without a rule is a student still in training
    anomalous_N = np.array([m.row.label != recording.normal_class for m in measured])
    passed_N = np.array([m.passed for m in measured])
    defects, normals = int(anomalous_N.sum()), int((~anomalous_N).sum())
    return Evaluation(
        n=len(measured),
        auroc=auroc(_scores(measured), anomalous_N),
        auroc_by_label=_by_label(measured, recording.normal_class),
        auroc_image_only=_without("sensor", measured, anomalous_N),
        auroc_sensor_only=_without("image", measured, anomalous_N),
        aupro=aupro(_maps_and_masks(measured, recording, spec.image)),
        threshold=spec.rule.threshold.value,
        escape_rate=clopper_pearson(int((anomalous_N & passed_N).sum()), defects),
        overkill_rate=clopper_pearson(int((~anomalous_N & ~passed_N).sum()), normals),
        unknown_labels=_unknown_labels(measured, recording.normal_class, spec),
    )


def refuse_misfit(recording: Recording, rows: Sequence[SampleRow], spec: ModelSpec) -> None:
    """Refuse channels that the model does not know, and a mistaken normal class. InputError.

    A label that the model was not taught counts as "not normal": a defect that is new to it is a
    defect. So a normal part under another spelling would count as one that escaped or was caught.
    """
    channels = spec.sensor.channels if spec.sensor else ()
    if channels and recording.header.channels and recording.header.channels != channels:
        raise InputError(
            where=recording.folder,
            expected=f"the model's channels {channels_text(channels)}",
            found=channels_text(recording.header.channels),
            do="Use a recording of the sensors that the model was trained on, or distil again.",
        )
    unlabelled = [row.sample_id for row in rows if row.label == UNLABELLED]
    if unlabelled:
        raise InputError(
            where=recording.folder,
            expected="labelled parts, for nothing can be measured on others",
            found=f"{len(unlabelled):,} without a label, first '{unlabelled[0]}'",
            do="Name another --split, or label them.",
        )
    normal = recording.normal_class
    if normal in spec.classes[1:]:
        raise InputError(
            where=recording.folder,
            expected=f"normal parts (the model's are called '{spec.classes[0]}')",
            found=f"'{normal}' as the normal class, which is a defect to the model",
            do="Import again with --ok and the label of its good parts.",
        )
    for label in sorted({row.label for row in rows} - {normal}):
        if _spelt(label) in (_spelt(normal), _spelt(spec.classes[0])):
            raise InputError(
                where=recording.folder,
                expected=f"one spelling of its normal class '{normal}'",
                found=f"also '{label}', whose parts would count as defects",
                do="Give these parts one label, and import again.",
            )


def remarks_on(evaluation: Evaluation, spec: ModelSpec) -> list[str]:
    """Say what a person should know before trusting the figures."""
    assert spec.rule is not None
    remarks = [support_remark(spec.rule.threshold, "held out when it was trained")]
    for label, count in evaluation.unknown_labels.items():
        remarks.append(
            f"'{label}' ({count} samples) is no class of the model's: counted as not normal, and "
            f"no class is right for it. {nearest_hint(label, spec.classes)}"
        )
    if evaluation.auroc is None:
        remarks.append("The split holds only normal parts or only others, so it has no AUROC.")
    if evaluation.aupro is None:
        remarks.append("The split has no defect masks, so it has no AUPRO.")
    return [remark for remark in remarks if remark]


def _measure(scorer: Scorer, sample: Sample, row: SampleRow) -> Measured:
    spec = scorer.spec
    scores = scorer.score(model_inputs(sample, spec))
    assert spec.rule is not None
    verdict = verdict_of(
        scores.anomaly_score,
        scores.class_scores.tolist(),
        spec.classes,
        spec.rule,
        sensor_present=sample.window is not None,
    )
    without = {}
    if spec.sensor is not None and sample.window is not None:
        for modality in MODALITIES:
            inputs = model_inputs(sample, spec, withhold=modality)
            without[modality] = scorer.score(inputs).anomaly_score
    return Measured(
        row=row,
        score=scores.anomaly_score,
        passed=verdict.decision == "pass",
        map_hw=scores.anomaly_map,
        without=without,
        resized=is_resized(sample.frame.pixels, spec),
    )


def _scores(measured: Sequence[Measured]) -> NDArray[np.float64]:
    return np.array([m.score for m in measured])


def _by_label(measured: Sequence[Measured], normal: str) -> dict[str, float | None]:
    areas = {}
    for label in sorted({m.row.label for m in measured} - {normal}):
        chosen = [m for m in measured if m.row.label in (normal, label)]
        areas[label] = auroc(_scores(chosen), np.array([m.row.label == label for m in chosen]))
    return areas


def _without(
    modality: str, measured: Sequence[Measured], anomalous_N: NDArray[np.bool_]
) -> float | None:
    """Return the AUROC with one modality withheld, over the samples that have both."""
    have_both_N = np.array([modality in m.without for m in measured])
    scores = np.array([m.without[modality] for m in measured if modality in m.without])
    return auroc(scores, anomalous_N[have_both_N])


def _maps_and_masks(
    measured: Sequence[Measured], recording: Recording, size: ImageInput
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Yield map and mask at the model's own image size.

    A defective part without a mask is left out: nobody said where its defect is, or whether it
    shows at all.
    """
    if all(m.row.mask is None for m in measured):
        return
    wanted = (size.width, size.height)
    for m in measured:
        mask = recording.read_mask(m.row)
        if mask is None and m.row.label != recording.normal_class:
            continue
        fine = Image.fromarray(m.map_hw).resize(wanted, Image.Resampling.BILINEAR)
        if mask is None:
            at_size = np.zeros((size.height, size.width), dtype=np.bool_)
        else:
            picture = Image.fromarray(mask.astype(np.uint8) * 255)
            # Any defect pixel marks the pixel it shrinks into, so that no small region is lost.
            at_size = np.asarray(picture.resize(wanted, Image.Resampling.BOX)) > 0
        yield np.asarray(fine), at_size


def _unknown_labels(measured: Sequence[Measured], normal: str, spec: ModelSpec) -> dict[str, int]:
    """Count the samples of each label that is no class; none where only normal was taught."""
    if len(spec.classes) == 1:
        return {}
    counts = Counter(m.row.label for m in measured)
    return {label: counts[label] for label in sorted(set(counts) - {normal, *spec.classes})}


def _spelt(label: str) -> str:
    """Return what two spellings of one word have in common: their letters and digits."""
    return "".join(letter for letter in label.casefold() if letter.isalnum())
