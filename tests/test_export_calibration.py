"""The calibration set: real samples, drawn to be repeated, refused where they are no base."""

from collections import Counter
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from export_stand_in import CLASSES, small_recording, spec_of, write_small_recording

from edge.errors import InputError
from edge.recording.format import Recording
from edge.sample import Channel
from export.calibration import MINIMUM_SAMPLES, SPARE_SAMPLES, calibration_set

UNEVEN = ("ok",) * 60 + ("scratch",) * 5 + ("hum",) * 31


def altered(recording, header=None, rows=None):
    return Recording(recording.folder, header or recording.header, rows or recording.rows)


def test_rare_labels_are_drawn_as_far_as_they_reach():
    recording = small_recording()
    train = recording.rows_in("train")
    rows = tuple(
        msgspec.structs.replace(row, label=label) for row, label in zip(train, UNEVEN, strict=True)
    )
    drawn = calibration_set(altered(recording, rows=rows), spec_of(), samples=45).rows
    assert Counter(row.label for row in drawn) == {"ok": 20, "scratch": 5, "hum": 20}


def test_same_seed_draws_the_same_samples():
    recording, spec = small_recording(), spec_of()
    first = calibration_set(recording, spec, samples=40, seed=3)
    assert first.digest() == calibration_set(recording, spec, samples=40, seed=3).digest()
    assert first.digest() != calibration_set(recording, spec, samples=40, seed=4).digest()


def test_all_samples_are_taken_where_fewer_are_there_than_asked_for():
    drawn = calibration_set(small_recording(), spec_of(), samples=5000).rows
    assert len(drawn) == 96
    assert {row.split for row in drawn} == {"train"}


def test_inputs_are_those_the_device_prepares():
    drawn = calibration_set(small_recording(), spec_of(), samples=40)
    inputs, without_sensor = drawn.inputs_from(drawn.rows[:1])
    assert inputs["image"].shape == (1, 64, 64, 3)
    assert inputs["sensor"].dtype == np.float32
    assert without_sensor["present"].tolist() == [[1.0, 0.0]]


def test_every_fourth_sample_is_also_seen_without_its_sensor():
    drawn = calibration_set(small_recording(), spec_of(), samples=40)
    assert len(list(drawn.inputs_from(drawn.rows))) == 50
    image_only = calibration_set(small_recording(), spec_of(sensor=False), samples=40)
    assert len(list(image_only.inputs_from(image_only.rows))) == 40


@pytest.mark.parametrize("samples", [-1, 0, MINIMUM_SAMPLES - 1])
def test_too_few_samples_asked_for_are_refused(samples):
    with pytest.raises(InputError, match=f"--samples: .* at least {MINIMUM_SAMPLES}") as caught:
        calibration_set(small_recording(), spec_of(), samples=samples)
    assert "more samples of the line" not in str(caught.value)


def test_recording_with_too_few_samples_is_refused(tmp_path):
    recording = write_small_recording(tmp_path / "few", {"train": 9, "val": 9})
    for samples in (24, 128):  # asking for more would not help
        with pytest.raises(InputError, match=r"'train' has 9.*with more samples of the line"):
            calibration_set(recording, spec_of(), samples=samples)
    with pytest.raises(InputError, match=r"--precision fp16") as caught:
        calibration_set(recording, spec_of(), samples=128)
    assert "adapted" not in str(caught.value), "this run may be none"
    with pytest.raises(InputError, match=r"'train' has 9\)\. Ask a friend\."):
        calibration_set(recording, spec_of(), samples=128, too_few="Ask a friend.")
    drawn = calibration_set(recording, spec_of(), samples=128, fewest=1)  # as FP16 asks
    assert len(drawn.rows) == len(drawn.spare_rows) == 9


def test_choices_have_enough_samples_to_be_made_on_however_few_are_left_over(tmp_path):
    recording = write_small_recording(tmp_path / "one-more", {"train": 41})
    drawn = calibration_set(recording, spec_of(), samples=40)
    assert len(drawn.rows) == 40
    assert len(drawn.spare_rows) == SPARE_SAMPLES
    beside = set(drawn.spare_rows) - set(drawn.rows)
    assert len(beside) == 1  # all that there are


def test_recording_without_a_training_split_is_refused(tmp_path):
    recording = write_small_recording(tmp_path / "none", {"val": 9})
    with pytest.raises(InputError, match=r"only val\. Give --calibration a recording"):
        calibration_set(recording, spec_of(), samples=128)


def test_recording_without_any_sample_is_refused(tmp_path):
    recording = write_small_recording(tmp_path / "empty", {})
    with pytest.raises(InputError, match="Import parts into it first"):
        calibration_set(recording, spec_of(), samples=128)


def test_recording_of_other_channels_is_refused():
    recording = small_recording()
    header = msgspec.structs.replace(recording.header, channels=(Channel("force", "N", 50.0),))
    with pytest.raises(InputError, match=r"drive_end:g:12000.*found force:N:50"):
        calibration_set(altered(recording, header=header), spec_of(), samples=64)


def test_labels_that_the_model_does_not_know_are_drawn_like_others():
    recording = small_recording()
    rows = (msgspec.structs.replace(recording.rows[0], label="crack"), *recording.rows[1:])
    drawn = calibration_set(altered(recording, rows=rows), spec_of(), samples=64)
    assert "crack" in {row.label for row in drawn.rows}
    header = msgspec.structs.replace(recording.header, classes=("good", *CLASSES[1:]))
    assert calibration_set(altered(recording, header=header), spec_of(), samples=64).rows


def test_recording_whose_normal_class_is_a_defect_to_the_model_is_refused():
    recording = small_recording()
    header = msgspec.structs.replace(recording.header, classes=("scratch", "ok"))
    with pytest.raises(InputError, match="'scratch' as the normal class, which is a defect"):
        calibration_set(altered(recording, header=header), spec_of(), samples=64)


def test_sample_with_readings_that_are_no_numbers_is_named(tmp_path):
    recording = write_small_recording(tmp_path / "nan", {"train": 40})
    np.save(recording.path_of("train-007.npy"), np.full((2, 256), np.nan, np.float32))
    drawn = replace(calibration_set(recording, spec_of(), samples=40), rows=(recording.rows[7],))
    with pytest.raises(InputError, match=r"train-007.*finite"):
        list(drawn.inputs_from(drawn.rows))
