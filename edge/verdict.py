"""The decision rule: what a verdict makes of scores. It stands here once, for host and device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

Decision = Literal["pass", "fail", "invalid"]


class Threshold(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One threshold and where it came from.

    A part fails when its anomaly score is at or above `value`. `normals` held-out normal parts
    set it; `supported` says whether they were enough to hold `false_alarm_budget` (see
    `threshold_under_budget`).
    """

    value: float
    false_alarm_budget: float
    normals: int
    supported: bool


class DecisionRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The thresholds of one model: for both modalities together, and for the image alone."""

    threshold: Threshold
    image_only: Threshold | None = None


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was decided, the defect class it looks most like, and the figures behind it."""

    decision: Decision
    label: str
    anomaly_score: float
    threshold: float
    reason: str = ""


def verdict_of(
    anomaly_score: float,
    class_scores: Sequence[float],
    classes: Sequence[str],
    rule: DecisionRule,
    *,
    sensor_present: bool,
) -> Verdict:
    """Judge one sample. `classes[0]` is the normal class; the scores follow `classes`.

    A failed part is given its likeliest defect class, a passed one the normal class, so that
    decision and label never contradict each other. A score that is not finite is `invalid`:
    no rule may turn it into a pass.
    """
    threshold = rule.threshold
    if not sensor_present and rule.image_only is not None:
        threshold = rule.image_only
    if not math.isfinite(anomaly_score):
        return Verdict("invalid", "", anomaly_score, threshold.value, "the score is not finite")
    if anomaly_score < threshold.value:
        return Verdict("pass", classes[0], anomaly_score, threshold.value)
    defects = list(zip(class_scores, classes, strict=True))[1:]
    label = max(defects)[1] if defects else "anomaly"
    return Verdict("fail", label, anomaly_score, threshold.value)


def threshold_under_budget(
    normal_scores: Sequence[float],
    false_alarm_budget: float,
    defect_scores: Sequence[float] = (),
) -> Threshold:
    """Return the threshold that at most `false_alarm_budget` of normal parts reach.

    The split-conformal quantile: with n held-out normal scores, the k-th smallest with
    k = ceil((n + 1) * (1 - budget)) is exceeded by a new normal part with probability at most
    the budget (Vovk et al., "Algorithmic Learning in a Random World", 2005; Lei et al.,
    arXiv 1604.04173). For k > n the sample cannot support the budget: the highest normal score
    is used instead and `supported` is False.

    The value lies halfway from that score to the next higher one that was seen, of a normal or a
    defective part: any value in between keeps the promise, and halfway is furthest from turning
    a part over when the same score is computed elsewhere with other rounding.
    """
    if not normal_scores:
        raise ValueError("a threshold needs at least one normal score")
    if not 0.0 < false_alarm_budget < 1.0:
        raise ValueError(f"a false-alarm budget lies between 0 and 1, not {false_alarm_budget}")
    ordered = sorted(normal_scores)
    n = len(ordered)
    rank = math.ceil((n + 1) * (1.0 - false_alarm_budget))
    highest_passed = ordered[min(rank, n) - 1]
    least = math.nextafter(highest_passed, math.inf)
    higher = [score for score in (*ordered, *defect_scores) if score > highest_passed]
    halfway = (highest_passed + min(higher)) / 2 if higher else least
    return Threshold(
        value=max(least, halfway),
        false_alarm_budget=false_alarm_budget,
        normals=n,
        supported=rank <= n,
    )


def normals_needed(false_alarm_budget: float) -> int:
    """Return the fewest held-out normal parts that can support the budget."""
    return math.ceil(1.0 / false_alarm_budget - 1e-9) - 1
