"""The decision rule of a new student: its thresholds on normal parts that training never saw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from distill.dataset import Progress
from distill.recipe import ThresholdRecipe
from edge.errors import AnswerIsNo
from edge.prepare import model_inputs
from edge.recording.format import UNLABELLED, Recording
from edge.scorer import ModelInputs, Scorer
from edge.verdict import DecisionRule, Threshold, normals_needed, threshold_under_budget

_NO_SAMPLE_SUPPORTS = 1e-9  # a budget that asks for the highest score


@dataclass(frozen=True)
class HeldOutScore:
    """The anomaly score of one sample that training never saw."""

    part: str
    normal: bool
    score: float


def rule_for(
    scorer: Scorer, recording: Recording, recipe: ThresholdRecipe, progress: Progress
) -> tuple[DecisionRule, list[str]]:
    """Return the rule, and remarks for a person where normal parts were too few."""
    spec = scorer.spec
    rows = [row for row in recording.rows_in(recipe.split) if row.label != UNLABELLED]
    full: list[HeldOutScore] = []
    image_only: list[HeldOutScore] = []
    for number in progress("threshold from held-out parts")(range(len(rows))):
        sample = recording.read_sample(rows[number])
        part = sample.part_id or sample.sample_id
        normal = rows[number].label == recording.normal_class
        if spec.sensor is None or sample.window is not None:
            score = _finite_score(scorer, model_inputs(sample, spec), sample.sample_id)
            full.append(HeldOutScore(part, normal, score))
        if spec.sensor is not None:
            inputs = model_inputs(sample, spec, withhold="sensor")
            score = _finite_score(scorer, inputs, sample.sample_id)
            image_only.append(HeldOutScore(part, normal, score))
    without = threshold_of(image_only, recipe.false_alarm_budget) if image_only else None
    with_all = any(held_out.normal for held_out in full)
    threshold = threshold_of(full, recipe.false_alarm_budget) if with_all else without
    assert threshold is not None  # the split has normal parts: `train` looked
    return DecisionRule(threshold, without), _remarks(threshold, without, recipe)


def _finite_score(scorer: Scorer, inputs: ModelInputs, sample_id: str) -> float:
    """Return the anomaly score; no threshold may be made of one that is no number."""
    score = scorer.score(inputs).anomaly_score
    if math.isfinite(score):
        return score
    raise AnswerIsNo(
        where=f"sample '{sample_id}'",
        expected="a finite anomaly score",
        found=str(score),
        do="Look for absurd readings with `edge recordings show`, take them out and distil again.",
    )


def threshold_of(held_out: Sequence[HeldOutScore], budget: float) -> Threshold:
    """Return the threshold for these scores (see `edge.verdict.threshold_under_budget`).

    The budget's guarantee holds for draws that are alike, and samples of one part are more alike
    than parts are: so it is parts that are counted, however often each was seen. Where they are
    too few, the highest score is the threshold, as for too few samples.
    """
    parts = len({one.part for one in held_out if one.normal})
    enough = parts >= normals_needed(budget)
    threshold = threshold_under_budget(
        [one.score for one in held_out if one.normal],
        budget if enough else _NO_SAMPLE_SUPPORTS,
        [one.score for one in held_out if not one.normal],
    )
    return msgspec.structs.replace(threshold, false_alarm_budget=budget, normals=parts)


def _remarks(threshold: Threshold, without: Threshold | None, recipe: ThresholdRecipe) -> list[str]:
    remarks = [support_remark(threshold, recipe.split)]
    if without is not None and without.normals != threshold.normals:
        remarks.append(support_remark(without, f"{recipe.split}, sensor withheld"))
    return [remark for remark in remarks if remark]


def support_remark(threshold: Threshold, seen_in: str) -> str:
    """Say that too few normal parts stand behind a threshold; an empty text where they suffice."""
    if threshold.supported:
        return ""
    needed = normals_needed(threshold.false_alarm_budget)
    return (
        f"{threshold.normals} normal parts ({seen_in}) cannot support a false-alarm budget of "
        f"{threshold.false_alarm_budget:.2%}: at least {needed} are needed. The highest normal "
        "score is the threshold, and the true false-alarm rate may be higher than the budget. "
        "Hold out more normal parts (parts are counted by part_id), or state a larger budget "
        "(--set threshold.false_alarm_budget=...)."
    )
