"""Parity: what counts as a flip, what a budget allows, and which samples are named."""

import math
from dataclasses import replace

import numpy as np
import pytest
from export_stand_in import (
    TorchScorer,
    exported_models,
    small_recording,
    spec_of,
    trained_student,
    write_small_recording,
)

from device_agents.engine.on_onnxruntime import engine_from_onnx
from distill.evaluation.metrics import auroc
from edge.errors import AnswerIsNo, InputError
from edge.verdict import verdict_of
from export.judge import Judged, judged_by
from export.parity import (
    CHECKPOINT,
    FP32_BUDGET,
    INT8_BUDGET,
    ONNX_FP32,
    ONNX_INT8,
    SCORE_TIE,
    auroc_difference,
    budget_text,
    check_budget,
    excesses,
    held_out_rows,
    parity_of,
)

SPEC = spec_of()  # threshold 0.5


def judged(*scores, normal=None):
    return [
        Judged(
            f"part-{number}",
            score < 0.5 if normal is None else normal[number],
            score,
            verdict_of(score, (0.5, 0.3, 0.2), SPEC.classes, SPEC.rule, sensor_present=True),
        )
        for number, score in enumerate(scores)
    ]


def test_real_forms_of_one_student_agree():
    recording, student = small_recording(), TorchScorer(trained_student(), SPEC)
    fp32, int8 = (engine_from_onnx(path, SPEC) for path in exported_models())
    forms = {CHECKPOINT: student, ONNX_FP32: fp32, ONNX_INT8: int8}
    rows = held_out_rows(recording)
    by_form = judged_by(forms, recording, rows)
    for form, budget in ((ONNX_FP32, FP32_BUDGET), (ONNX_INT8, INT8_BUDGET)):
        parity = parity_of(form, by_form[CHECKPOINT], by_form[form])
        assert parity.samples == len(rows) == 48
        check_budget(parity, budget, by_form[CHECKPOINT], do="")
    assert by_form[ONNX_INT8][0].score != by_form[CHECKPOINT][0].score  # INT8 really ran


def test_flipped_verdict_is_over_budget_and_named():
    before, after = judged(0.1, 0.9, 0.48, 0.47), judged(0.1, 0.9, 0.53, 0.51)
    parity = parity_of(ONNX_INT8, before, after)
    assert parity.verdict_flips == 2
    assert parity.max_score_error == pytest.approx(0.05)
    with pytest.raises(AnswerIsNo, match=r"2 verdicts differ, where 1 may.*part-2 \(0.4800 -> "):
        check_budget(parity, INT8_BUDGET, before, do="Mend it.")


@pytest.mark.parametrize(("samples", "allowed"), [(75, 1), (341, 1), (999, 1), (1000, 2)])
def test_flips_allowed_are_the_whole_ones_within_the_rate_or_one_where_few_were_seen(
    samples, allowed
):
    assert INT8_BUDGET.flips_allowed(samples) == allowed
    assert FP32_BUDGET.flips_allowed(samples) == 0


def test_sample_whose_score_is_the_threshold_cannot_flip():
    before = judged(0.1, math.nextafter(0.5, 0), 0.9)  # the normal part that set the threshold
    after = judged(0.1, 0.5 + 1e-7, 0.9)
    assert before[1].verdict.decision != after[1].verdict.decision
    assert parity_of(ONNX_FP32, before, after).verdict_flips == 0
    assert parity_of(ONNX_FP32, judged(0.5 - 2 * SCORE_TIE), judged(0.6)).verdict_flips == 1


def test_score_error_alone_is_over_the_fp32_budget():
    before, after = judged(0.1, 0.9), judged(0.1, 0.902)
    with pytest.raises(AnswerIsNo, match=r"a score differs by 0\.002 > 0\.001"):
        check_budget(parity_of(ONNX_FP32, before, after), FP32_BUDGET, before, do="")
    check_budget(parity_of(ONNX_INT8, before, after), INT8_BUDGET, before, do="")


def test_auroc_lost_without_a_flip_is_over_budget():
    normal = (True, True, False, False)
    before = judged(0.6, 0.7, 0.8, 0.9, normal=normal)
    after = judged(0.85, 0.85, 0.8, 0.9, normal=normal)
    parity = parity_of(ONNX_INT8, before, after)
    assert parity.auroc_difference == pytest.approx(-0.5)
    with pytest.raises(AnswerIsNo, match=r"AUROC differs by -0\.5000"):
        check_budget(parity, INT8_BUDGET, before, do="Mend it.")


def test_single_pair_of_few_samples_may_change_its_order():
    normal = (True, True, False, False)
    before = judged(0.6, 0.7, 0.8, 0.9, normal=normal)
    after = judged(0.6, 0.85, 0.84, 0.9, normal=normal)
    parity = parity_of(ONNX_INT8, before, after)
    assert parity.auroc_difference == pytest.approx(-0.25)  # one of four pairs
    check_budget(parity, INT8_BUDGET, before, do="")
    more = parity_of(ONNX_INT8, before, judged(0.85, 0.85, 0.84, 0.9, normal=normal))
    assert excesses(more, INT8_BUDGET, before) == ["AUROC differs by -0.5000 > 0.25"]


def test_auroc_difference_is_that_of_two_aurocs_ties_and_all():
    chance = np.random.default_rng(0)
    normal = chance.random(60) < 0.5
    before = chance.random(60).round(1)
    after = np.clip(before + chance.normal(0, 0.2, 60), 0, 1).round(1)
    one, two = (judged(*scores, normal=normal) for scores in (before, after))
    expected = auroc(after, ~normal) - auroc(before, ~normal)
    assert auroc_difference(one, two)[0] == pytest.approx(expected, abs=1e-12)


def test_interval_holds_the_true_difference_about_as_often_as_it_says():
    chance = np.random.default_rng(1)
    normal = np.arange(200) % 2 == 0
    held = 0
    for _ in range(200):
        before = chance.normal(0, 1, 200) + ~normal
        after = before + chance.normal(0, 0.5, 200)  # true AUROCs: Phi(1/sqrt 2), Phi(1/sqrt 2.5)
        low, high = auroc_difference(judged(*before, normal=normal), judged(*after, normal=normal))[
            1
        ]
        held += low <= 0.73645 - 0.76025 <= high
    assert 180 <= held <= 198  # 190 expected; 3 deviations of a binomial are 9


def test_samples_of_one_part_are_one_witness():
    normal = np.arange(80) % 2 == 0
    chance = np.random.default_rng(2)
    before = chance.normal(0, 1, 80) + ~normal
    after = before + chance.normal(0, 0.5, 80)
    alone = [judged(*scores, normal=normal) for scores in (before, after)]
    again = [
        [replace(one, part=one.sample_id, sample_id=f"{one.sample_id}-{copy}")
         for one in form for copy in range(4)]
        for form in alone
    ]  # fmt: skip
    (_, interval), (_, same) = auroc_difference(*alone), auroc_difference(*again)
    assert same == pytest.approx(interval)  # four pictures of each part say no more than one


def test_equal_scores_have_an_interval_of_nothing():
    one = judged(0.1, 0.2, 0.8, normal=(True, True, False))
    assert auroc_difference(one, one) == (0.0, (0.0, 0.0))


def test_ten_worst_samples_are_named_flipped_ones_first():
    before = judged(*(0.05 * n for n in range(10)), 0.499, 0.9)
    after = judged(*(0.05 * n + 0.001 for n in range(10)), 0.501, 0.6)
    worst = parity_of(ONNX_INT8, before, after).worst
    assert len(worst) == 10
    assert [one.sample_id for one in worst[:2]] == ["part-10", "part-11"]
    assert [one.flipped for one in worst[:2]] == [True, False]
    assert (worst[1].checkpoint_score, worst[1].form_score) == (0.9, 0.6)


def test_score_that_is_no_number_is_over_every_budget():
    before, after = judged(0.1, 0.9), judged(0.1, math.nan)
    parity = parity_of(ONNX_INT8, before, after)
    assert parity.max_score_error == math.inf
    assert parity.verdict_flips == 1
    with pytest.raises(AnswerIsNo, match="a score is no number"):
        check_budget(parity, INT8_BUDGET, before, do="Mend it.")


def test_auroc_is_unknown_where_all_parts_are_normal():
    assert parity_of(ONNX_INT8, judged(0.1, 0.2), judged(0.1, 0.2)).auroc_difference is None


def test_validation_parts_are_used_before_test_parts(tmp_path):
    assert {row.split for row in held_out_rows(small_recording())} == {"val"}
    only_test = write_small_recording(tmp_path / "a", {"train": 3, "test": 3})
    assert {row.split for row in held_out_rows(only_test)} == {"test"}
    with pytest.raises(InputError, match=r"'val' or 'test', found only train\. Give --calibration"):
        held_out_rows(write_small_recording(tmp_path / "b", {"train": 3}))
    with pytest.raises(InputError, match="Import parts into it first"):
        held_out_rows(write_small_recording(tmp_path / "c", {}))


def test_budget_that_holds_only_because_parts_are_few_says_so():
    normal = (True,) * 3 + (False,) * 5
    before = judged(0.1, 0.2, 0.30, 0.31, 0.7, 0.8, 0.9, 0.95, normal=normal)
    after = judged(0.1, 0.2, 0.31, 0.30, 0.7, 0.8, 0.9, 0.95, normal=normal)
    parity = parity_of(ONNX_INT8, before, after)
    assert parity.auroc_difference == pytest.approx(-1 / 15)
    assert budget_text(parity, INT8_BUDGET, after) == "holds (one pair of 15 may swap)"
    same = parity_of(ONNX_INT8, before, before)
    assert budget_text(same, INT8_BUDGET, before) == "holds"
    two = judged(0.1, 0.32, 0.31, 0.30, 0.7, 0.8, 0.9, 0.95, normal=normal)
    over = parity_of(ONNX_INT8, before, two)
    assert budget_text(over, INT8_BUDGET, two) == "AUROC differs by -0.1333 > 0.067"
