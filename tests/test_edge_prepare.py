"""From a sample to input tensors: what is copied, and what is refused at the door."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edge.errors import UnfitSample
from edge.model_spec import ImageInput, ModelSpec, SensorInput
from edge.prepare import image_tensor, model_inputs
from edge.sample import Channel, Frame, Sample, Window

CHANNELS = (Channel("a", "g", 1000.0), Channel("b", "A", 1000.0))
SPEC = ModelSpec("m", ImageInput(6, 8), SensorInput(CHANNELS, 16), ("ok", "bad"), 3, 4, 5)


def sample(values=None, channels=CHANNELS, pixels=None):
    pixels = np.full((6, 8, 3), 7, dtype=np.uint8) if pixels is None else pixels
    window = None if values is None else Window(values, channels, 0)
    return Sample("s1", Frame(pixels, 0), window)


def readings(channels=2, count=16):
    return np.arange(channels * count, dtype=np.float32).reshape(channels, count)


def test_tensors_have_the_shapes_and_types_of_the_spec():
    inputs = model_inputs(sample(readings()), SPEC)
    assert list(inputs) == [tensor.name for tensor in SPEC.inputs()]
    for tensor in SPEC.inputs():
        assert inputs[tensor.name].shape == tensor.shape
        assert inputs[tensor.name].dtype == tensor.dtype
    np.testing.assert_array_equal(inputs["sensor"][0], readings())
    assert inputs["present"].tolist() == [[1, 1]]


def test_a_missing_window_is_zeros_and_says_so():
    inputs = model_inputs(sample(), SPEC)
    assert not inputs["sensor"].any()
    assert inputs["present"].tolist() == [[1, 0]]


@pytest.mark.parametrize(("modality", "present"), [("image", [0, 1]), ("sensor", [1, 0])])
def test_a_withheld_modality_is_zeros_and_says_so(modality, present):
    inputs = model_inputs(sample(readings()), SPEC, withhold=modality)
    assert not inputs[modality].any()
    assert inputs["present"].tolist() == [present]


def test_withholding_a_spoilt_window_makes_the_sample_fit_again():
    spoilt = np.full((2, 16), np.nan, dtype=np.float32)
    assert model_inputs(sample(spoilt), SPEC, withhold="sensor")["present"].tolist() == [[1, 0]]


@pytest.mark.parametrize(
    ("unfit", "found"),
    [
        (sample(readings(), (CHANNELS[1], CHANNELS[0])), "b:A:1000, a:g:1000"),
        (sample(readings(), (Channel("a", "g", 2000.0), CHANNELS[1])), "a:g:2000"),
        (sample(readings(count=15)), r"\[2, 15\]"),
        (sample(np.where(readings() == 3, np.nan, readings())), "1 NaN or infinite of 32"),
        (sample(np.where(readings() > 29, np.inf, readings())), "2 NaN or infinite of 32"),
        (sample(readings(), pixels=np.zeros((6, 8), np.uint8)), r"uint8 \[6, 8\]"),
        (sample(readings(), pixels=np.zeros((6, 8, 3), np.float32)), "float32"),
    ],
)
def test_what_no_model_may_judge_is_refused_with_what_was_found(unfit, found):
    with pytest.raises(UnfitSample, match=found):
        model_inputs(unfit, SPEC)


def test_a_model_without_a_sensor_takes_the_image_alone():
    spec = ModelSpec("m", ImageInput(6, 8), None, ("ok",), 3, 4, 5)
    assert list(model_inputs(sample(readings()), spec)) == ["image"]


def test_an_image_of_the_right_size_is_copied_untouched():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    tensor = image_tensor(pixels, SPEC.image)
    np.testing.assert_array_equal(tensor[0], pixels)


@pytest.mark.parametrize("shape", [(60, 80), (90, 9), (9, 90), (6, 80), (60, 8), (3, 4)])
def test_columns_come_before_rows_whatever_pillow_would_do(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    columns = Image.fromarray(pixels).resize((8, shape[0]), Image.Resampling.BILINEAR)
    both = columns.resize((8, 6), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(image_tensor(pixels, SPEC.image)[0], np.asarray(both))


def test_whole_frame_is_copied_untouched_and_another_size_is_brought_to_it():
    whole = msgspec.structs.replace(SPEC, frame=ImageInput(60, 80))
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    tensor = model_inputs(sample(readings(), pixels=pixels), whole)["image"]
    np.testing.assert_array_equal(tensor[0], pixels)
    assert np.shares_memory(tensor, pixels)
    assert model_inputs(sample(readings()), whole)["image"].shape == (1, 60, 80, 3)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 255))
def test_resizing_any_size_keeps_a_plain_colour(height, width, level):
    tensor = image_tensor(np.full((height, width, 3), level, np.uint8), SPEC.image)
    assert tensor.shape == (1, 6, 8, 3)
    assert (tensor == level).all()
    assert tensor.flags["C_CONTIGUOUS"]
