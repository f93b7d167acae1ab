"""The decision rule: what must hold for any scores."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edge.verdict import (
    DecisionRule,
    Threshold,
    normals_needed,
    threshold_under_budget,
    verdict_of,
)

CLASSES = ("ok", "scratch", "hum")
unit = st.floats(0.0, 1.0)
budgets = st.floats(0.001, 0.5)


def rule(value=0.5, image_only=None):
    other = None if image_only is None else Threshold(image_only, 0.05, 100, True)
    return DecisionRule(Threshold(value, 0.05, 100, True), other)


@given(unit, st.tuples(unit, unit, unit), unit, unit, st.booleans())
def test_decision_and_label_never_contradict_each_other(score, classes, value, image_only, present):
    verdict = verdict_of(score, classes, CLASSES, rule(value, image_only), sensor_present=present)
    assert verdict.threshold == (value if present else image_only)
    assert verdict.decision == ("fail" if score >= verdict.threshold else "pass")
    assert (verdict.label == "ok") == (verdict.decision == "pass")


@given(st.sampled_from([math.nan, math.inf, -math.inf]), unit)
def test_a_score_that_is_no_number_is_never_a_pass(score, value):
    verdict = verdict_of(score, (1.0, 0.0, 0.0), CLASSES, rule(value), sensor_present=True)
    assert verdict.decision == "invalid"
    assert verdict.reason


@given(unit, unit, unit)
def test_a_higher_score_never_turns_a_fail_into_a_pass(low, high, value):
    assume(low <= high)
    decisions = [
        verdict_of(score, (0.2, 0.5, 0.3), CLASSES, rule(value), sensor_present=True).decision
        for score in (low, high)
    ]
    assert decisions != ["fail", "pass"]


def test_a_failed_part_gets_its_likeliest_defect_even_where_ok_scores_higher():
    verdict = verdict_of(0.9, (0.8, 0.05, 0.15), CLASSES, rule(), sensor_present=True)
    assert (verdict.decision, verdict.label) == ("fail", "hum")


def test_a_model_of_normal_parts_only_calls_it_an_anomaly():
    assert verdict_of(0.9, (1.0,), ("ok",), rule(), sensor_present=True).label == "anomaly"


def test_without_its_own_threshold_a_missing_sensor_is_judged_by_the_common_one():
    assert verdict_of(0.6, (1, 0, 0), CLASSES, rule(0.5), sensor_present=False).decision == "fail"


def test_class_scores_must_be_as_many_as_classes():
    with pytest.raises(ValueError, match="longer"):
        verdict_of(0.9, (0.5, 0.5), CLASSES, rule(), sensor_present=True)


@given(st.lists(unit, min_size=1, max_size=300), budgets)
def test_no_more_normals_alarm_than_the_budget_allows(scores, budget):
    threshold = threshold_under_budget(scores, budget)
    alarms = sum(score >= threshold.value for score in scores)
    assert alarms <= budget * len(scores)
    assert threshold.normals == len(scores)
    if not threshold.supported:
        assert alarms == 0
        assert threshold.value > max(scores)


@given(st.lists(unit, min_size=2, max_size=100), budgets, budgets)
def test_a_larger_budget_never_raises_the_threshold(scores, one, other):
    small, large = sorted((one, other))
    assert (
        threshold_under_budget(scores, large).value <= threshold_under_budget(scores, small).value
    )


@given(st.integers(2, 1000))
def test_the_fewest_normals_that_support_a_budget_are_named_exactly(parts_per_alarm):
    budget = 1 / parts_per_alarm
    needed = normals_needed(budget)
    assert needed == parts_per_alarm - 1
    assert threshold_under_budget([0.5] * needed, budget).supported
    if needed > 1:
        assert not threshold_under_budget([0.5] * (needed - 1), budget).supported


@pytest.mark.parametrize("budget", [0.0, 1.0, -0.1, math.nan])
def test_a_budget_that_is_no_share_is_refused(budget):
    with pytest.raises(ValueError, match="between 0 and 1"):
        threshold_under_budget([0.5], budget)


def test_a_threshold_of_no_normals_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        threshold_under_budget([], 0.01)


def test_the_threshold_lies_halfway_to_the_next_score_so_that_rounding_flips_no_verdict():
    normals = [0.01 * i for i in range(20)]
    assert threshold_under_budget(normals, 0.05, [0.9]).value == pytest.approx((0.19 + 0.9) / 2)
    assert threshold_under_budget(normals, 0.20).value == pytest.approx(0.165)


@given(st.lists(unit, min_size=1, max_size=50), st.lists(unit, max_size=50), budgets)
def test_defects_raise_a_threshold_only_within_what_the_normals_allow(normals, defects, budget):
    alone = threshold_under_budget(normals, budget)
    beside = threshold_under_budget(normals, budget, defects)
    alarms = [sum(score >= t.value for score in normals) for t in (alone, beside)]
    assert alarms[0] == alarms[1]
    assert beside.supported == alone.supported
