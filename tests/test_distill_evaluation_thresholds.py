import pytest

from distill.evaluation.thresholds import HeldOutScore, support_remark, threshold_of


def scores(parts: int) -> list[HeldOutScore]:
    return [HeldOutScore(f"part-{i % parts}", True, i / 100) for i in range(99)]


def test_enough_parts_hold_the_budget():
    threshold = threshold_of(scores(parts=99), 0.05)
    assert threshold.supported
    assert threshold.normals == 99
    assert 0.94 < threshold.value <= 0.95
    assert support_remark(threshold, "val") == ""


def test_many_samples_of_few_parts_do_not():
    threshold = threshold_of(scores(parts=2), 0.05)
    assert not threshold.supported
    assert threshold.normals == 2
    assert threshold.value > 0.98
    assert threshold.false_alarm_budget == 0.05
    remark = support_remark(threshold, "val")
    assert "2 normal parts (val) cannot support a false-alarm budget of 5.00%" in remark
    assert "at least 19 are needed" in remark


def test_the_threshold_keeps_away_from_both_sides():
    held_out = [*scores(parts=2), HeldOutScore("bad", False, 1.2), HeldOutScore("worse", False, 2)]
    assert threshold_of(held_out, 0.05).value == pytest.approx((0.98 + 1.2) / 2)
