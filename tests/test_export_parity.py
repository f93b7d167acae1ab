"""Parity: what counts as a flip, what a budget allows, and which samples are named."""

import math

import pytest
from export_stand_in import (
    TorchScorer,
    exported_models,
    small_recording,
    spec_of,
    trained_student,
    write_small_recording,
)

from device_agents.inspector.engine import engine_from_onnx
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
    check_budget,
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
        check_budget(parity, budget, by_form[CHECKPOINT], by_form[form])
    assert by_form[ONNX_INT8][0].score != by_form[CHECKPOINT][0].score  # INT8 really ran


def test_flipped_verdict_is_over_budget_and_named():
    before, after = judged(0.1, 0.9, 0.48, 0.47), judged(0.1, 0.9, 0.53, 0.51)
    parity = parity_of(ONNX_INT8, before, after)
    assert parity.verdict_flips == 2
    assert parity.max_score_error == pytest.approx(0.05)
    with pytest.raises(AnswerIsNo, match=r"2 verdicts differ, where 1 may.*part-2 \(0.4800 -> "):
        check_budget(parity, INT8_BUDGET, before, after)


@pytest.mark.parametrize(("samples", "allowed"), [(75, 1), (200, 1), (341, 1), (400, 2)])
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
        check_budget(parity_of(ONNX_FP32, before, after), FP32_BUDGET, before, after)
    check_budget(parity_of(ONNX_INT8, before, after), INT8_BUDGET, before, after)


def test_auroc_lost_without_a_flip_is_over_budget():
    normal = (True, True, False, False)
    before = judged(0.6, 0.7, 0.8, 0.9, normal=normal)
    after = judged(0.6, 0.85, 0.8, 0.9, normal=normal)
    parity = parity_of(ONNX_INT8, before, after)
    assert parity.auroc_difference == pytest.approx(-0.25)
    with pytest.raises(AnswerIsNo, match=r"AUROC differs by -0\.2500"):
        check_budget(parity, INT8_BUDGET, before, after)


def test_score_that_is_no_number_is_over_every_budget():
    before, after = judged(0.1, 0.9), judged(0.1, math.nan)
    parity = parity_of(ONNX_INT8, before, after)
    assert parity.max_score_error == math.inf
    assert parity.verdict_flips == 1
    with pytest.raises(AnswerIsNo):
        check_budget(parity, INT8_BUDGET, before, after)


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
