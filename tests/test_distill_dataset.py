from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_distillation import Order, quick_recipe, small_recording

from distill.dataset import folds_by_group, image_input_for, spec_for, training_parts
from distill.evaluation.evaluate import refuse_misfit
from edge.errors import InputError
from edge.model_spec import ImageInput


@given(st.integers(16, 6000), st.integers(16, 6000))
def test_any_image_shape_gets_a_size_in_steps_of_32(height, width):
    size = image_input_for([(height, width)], 65536)
    assert size.height % 32 == 0
    assert size.width % 32 == 0


@given(st.integers(300, 6000), st.floats(0.25, 4.0))
def test_large_images_get_a_size_near_their_own_shape_and_the_budget(height, aspect):
    size = image_input_for([(height, round(height * aspect))], 65536)
    if height * height * aspect >= 65536:
        assert 0.6 < size.height * size.width / 65536 < 1.6
    assert 0.75 < size.width / size.height / aspect < 1.33


def test_long_images_stay_long_and_small_ones_stay_small():
    large = image_input_for([(960, 1280)], 1024 * 768)
    assert large == ImageInput(768, 1024)
    long = image_input_for([(261, 640)], 65536)
    assert (long.height, long.width) == (160, 384)
    assert image_input_for([(256, 256)], 65536) == ImageInput(256, 256)
    assert image_input_for([(64, 64)], 65536) == ImageInput(64, 64)


@given(st.lists(st.sampled_from("abcdefgh"), min_size=8, max_size=60), st.integers(2, 4))
def test_no_part_stands_in_two_folds_where_there_are_parts_enough(groups, folds):
    found = folds_by_group(groups, folds)
    if len(set(groups)) >= folds:
        assert len(np.unique(found)) == folds
        for group in set(groups):
            assert len({int(f) for f, g in zip(found, groups, strict=True) if g == group}) == 1


def test_the_spec_follows_from_the_recording(tmp_path: Path):
    recording = small_recording(tmp_path / "rec", Order(size=(128, 64)))
    spec = spec_for(recording, quick_recipe())
    assert (spec.image.height, spec.image.width) == (64, 128)
    assert (spec.map_height, spec.map_width) == (4, 8)
    assert spec.classes == ("ok", "scratch", "hum")
    assert spec.sensor is not None
    assert spec.sensor.samples == 128


def test_classes_without_a_training_part_are_not_promised(tmp_path: Path):
    recording = small_recording(tmp_path / "rec", Order(labels=("ok",)))
    assert spec_for(recording, quick_recipe()).classes == ("ok",)


def test_a_recording_without_normal_parts_is_refused(tmp_path: Path):
    recording = small_recording(tmp_path / "rec")
    lines = (tmp_path / "rec" / "samples.jsonl").read_text().splitlines()
    kept = [line for line in lines if '"label":"ok"' not in line]
    (tmp_path / "rec" / "samples.jsonl").write_text("\n".join(kept) + "\n")
    recording = type(recording).open(tmp_path / "rec")
    with pytest.raises(InputError, match=r"split 'train'.*normal parts \(label 'ok'\)"):
        spec_for(recording, quick_recipe())


def test_windows_too_short_for_a_spectrum_are_refused(tmp_path: Path):
    recording = small_recording(tmp_path / "rec", Order(readings=5))
    with pytest.raises(InputError, match="at least 8 readings"):
        spec_for(recording, quick_recipe())


def test_unlabelled_parts_are_no_class_and_have_no_mask(tmp_path: Path):
    recording = with_unlabelled(small_recording(tmp_path / "rec"), every=2)
    parts = training_parts(recording, quick_recipe())
    unlabelled = [index for index, row in enumerate(parts.rows) if not row.label]
    assert len(unlabelled) == 9
    assert parts.spec.classes == ("ok", "scratch", "hum")
    assert (parts.labels_N[unlabelled] == -1).all()
    assert np.isnan(parts.normal_N[unlabelled]).all()
    assert any(parts.rows[index].mask for index in unlabelled)
    assert all(parts.mask(index) is None for index in unlabelled)


def test_nothing_is_measured_on_unlabelled_parts(tmp_path: Path):
    recording = with_unlabelled(small_recording(tmp_path / "rec"), every=2)
    spec = spec_for(recording, quick_recipe())
    refuse_misfit(recording, recording.rows_in("test"), spec)
    with pytest.raises(InputError, match=r"nothing can be measured on others, found 9 without"):
        refuse_misfit(recording, recording.rows_in("train"), spec)


def with_unlabelled(recording, every: int):
    """The recording with each so many parts of its training split unlabelled."""
    path = recording.folder / "samples.jsonl"
    rows = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    for number, row in enumerate(row for row in rows if row["split"] == "train"):
        if number % every == 1:
            row["label"] = ""
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return type(recording).open(recording.folder)
