"""SmoothQuant: outliers move into the weights, and float says exactly what it said."""

import copy

import pytest
import torch
from export_stand_in import small_recording, spec_of, trained_student
from test_export_quantization_prepared import ExpertStudent

from export.calibration import calibration_set
from export.quantization.choices import Measure, choose_strength, strength_of
from export.quantization.prepared import prepared_student
from export.quantization.smoothing import fold, joints_of

SPEC = spec_of(sensor=False)


def inputs_of(count=24):
    calibration = calibration_set(small_recording(), SPEC, samples=32)
    return list(calibration.inputs_from(calibration.rows))[:count]


def with_outliers(student):
    """Give each LayerNorm one channel 64 times as large, which its readers take back again."""
    student = copy.deepcopy(student)
    with torch.no_grad():
        for block in student.blocks:
            for norm, reader in ((block.norm_1, block.qkv), (block.norm_2, block.up)):
                norm.weight[5] *= 64
                norm.bias[5] *= 64
                reader.weight[:, 5] /= 64
    return student


def watched(student, keep=("heads",)):
    made = prepared_student(student, SPEC, kept_float=keep)
    made.watch(inputs_of())
    return made


def scores(prepared, samples):
    return [prepared.score(inputs).anomaly_score for inputs in samples]


def test_float_scores_are_the_same_bit_for_bit_at_every_strength():
    prepared, samples = watched(with_outliers(trained_student(sensor=False))), inputs_of(4)
    joints, before = joints_of(prepared), scores(prepared, samples)
    assert [joint.name for joint in joints] == [
        "blocks.0.norm_1", "blocks.0.norm_2", "blocks.1.norm_1", "blocks.1.norm_2",
    ]  # fmt: skip
    weights = [joint.norm_weight.clone() for joint in joints]
    for strength in (0.5, 0.8, 0.35):
        fold(prepared, joints, strength)
        assert scores(prepared, samples) == before
        assert any(joint.powers_C.abs().max() >= 2 for joint in joints)
    fold(prepared, joints, 0.0)
    assert all((joint.norm_weight == was).all() for joint, was in zip(joints, weights, strict=True))


def test_outlier_channel_is_brought_down():
    prepared = watched(with_outliers(trained_student(sensor=False)))
    joint = joints_of(prepared)[0]
    before = joint.watched.channels_C
    assert before.argmax() == 5
    fold(prepared, [joint], 0.5)
    prepared.watch(inputs_of(4))
    after = joint.watched.channels_C
    assert after[5] / after.median() < 0.2 * before[5] / before.median()


def test_smoothing_is_chosen_where_a_student_has_outliers_and_int8_gets_nearer():
    prepared = watched(with_outliers(trained_student(sensor=False)))
    movements = choose_strength(prepared, Measure(prepared, inputs_of(16)))
    assert strength_of(movements) > 0
    assert movements[strength_of(movements)] < 0.5 * movements[0.0]


def test_smoothing_that_does_not_help_stays_off_and_leaves_no_trace():
    prepared = watched(trained_student(sensor=False))
    prepared.settle("percentile")
    measure, samples = Measure(prepared, inputs_of(8)), inputs_of(4)
    before = prepared.memory()
    weights = {name: tensor.clone() for name, tensor in prepared.module.state_dict().items()}
    movements = {0.0: 1.0, 0.5: 0.95}
    assert strength_of(movements) == 0.0  # 5 % is within what chance does
    found = choose_strength(prepared, measure)
    if strength_of(found) == 0.0:
        assert prepared.memory() == before
        for name, tensor in prepared.module.state_dict().items():
            assert (tensor == weights[name]).all(), name
    assert set(found) == {0.0, 0.35, 0.5, 0.65, 0.8}
    assert len(scores(prepared, samples)) == 4


def test_scale_passes_through_the_choice_of_tokens_to_experts_and_router():
    torch.manual_seed(0)
    student = ExpertStudent().eval()
    with torch.no_grad():
        student.norm.weight[5] = 64.0
    prepared = watched(student, keep=("heads", "tokens"))
    (joint,) = joints_of(prepared)
    assert joint.name == "norm"
    assert {tuple(weight.shape) for weight in joint.weights} == {(4, 64), (4, 64, 128)}
    samples = inputs_of(4)
    before = scores(prepared, samples)
    fold(prepared, [joint], 0.8)
    assert joint.powers_C.abs().max() >= 1
    assert scores(prepared, samples) == before


def test_layer_norm_that_something_else_reads_is_left_alone():
    class Read(ExpertStudent):
        def forward(self, image):
            classes, score, picture, embedding = super().forward(image)
            return classes, score, picture, self.norm(embedding) + embedding

    torch.manual_seed(0)
    prepared = watched(Read().eval(), keep=("heads", "tokens"))
    assert joints_of(prepared) == []
    assert choose_strength(prepared, Measure(prepared, inputs_of(2))).keys() == {0.0}


@pytest.mark.parametrize("strength", [0.35, 0.8])
def test_scales_are_whole_powers_of_two(strength):
    prepared = watched(with_outliers(trained_student(sensor=False)))
    joints = joints_of(prepared)
    fold(prepared, joints, strength)
    for joint in joints:
        assert (joint.powers_C == joint.powers_C.round()).all()
