"""Choices by measurement: the layer that was made bad is named, the method that helps is taken."""

import copy

import pytest
import torch
from export_stand_in import small_recording, spec_of, trained_student

from export.calibration import calibration_set
from export.quantization.choices import (
    MEASURED_SAMPLES,
    Measure,
    choose_method,
    effects_of,
    measured_samples,
)
from export.quantization.prepared import prepared_student

SPEC = spec_of(sensor=False)


def calibration():
    return calibration_set(small_recording(), SPEC, samples=32)


def watched(student):
    made = prepared_student(student, SPEC, kept_float=("heads",))
    made.watch(calibration().inputs_from(calibration().rows))
    return made


def measure_of(prepared, count=12):
    spare = calibration().inputs_from(calibration().spare_rows)
    return Measure(prepared, list(spare)[:count])


@pytest.fixture(scope="module")
def spoilt():
    """Block 1's MLP gets one hidden channel at 300, which no output reads: float is as before."""
    student = copy.deepcopy(trained_student(sensor=False))
    with torch.no_grad():
        student.blocks[1].up.bias[7] += 300.0
        student.blocks[1].down.weight[:, 7] = 0.0
    return watched(student)


def test_layer_that_was_made_bad_is_ranked_first(spoilt):
    effects = effects_of(spoilt, measure_of(spoilt))
    assert effects[0].unit.name == "blocks.1.down"
    assert effects[0].movement > 3 * effects[1].movement
    assert len(effects) == len(spoilt.units)
    assert [one.movement for one in effects] == sorted((e.movement for e in effects), reverse=True)


def test_scores_come_nearer_without_the_bad_layer(spoilt):
    measure = measure_of(spoilt)
    others = [unit for unit in spoilt.units if unit.name != "blocks.1.down"]
    assert measure.movement(others) < 0.5 * measure.movement()
    assert measure.movement([]) == 0.0


def test_method_is_the_one_by_which_scores_move_least(spoilt):
    movements = choose_method(spoilt, measure_of(spoilt))
    assert spoilt.method == min(movements, key=movements.get)
    for unit in spoilt.units:
        for one in unit.activations:
            scale = one.scale
            one.settle(spoilt.method)
            assert one.scale == scale


def test_choices_are_made_on_other_samples_than_ranges():
    drawn = calibration()
    assert not {row.sample_id for row in drawn.rows} & {row.sample_id for row in drawn.spare_rows}
    assert len(drawn.spare_rows) == 32
    everything = calibration_set(small_recording(), SPEC, samples=96)
    assert everything.spare_rows == everything.rows[-32:]  # no more are there


def test_large_students_are_measured_on_fewer_samples():
    assert measured_samples(trained_student(sensor=False)) == MEASURED_SAMPLES
    with torch.device("meta"):
        large = torch.nn.Linear(20_000, 10_000)
    assert measured_samples(large) < MEASURED_SAMPLES
