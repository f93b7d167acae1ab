import numpy as np
import pytest
from small_distillation import quick_recipe

from distill.augment import (
    Picture,
    broken_picture,
    broken_window,
    generator_for,
    varied_picture,
    varied_window,
)

PIXELS = np.random.default_rng(0).integers(60, 200, (48, 80, 3), dtype=np.uint8)
WINDOW = np.random.default_rng(0).normal(3.0, 0.5, (2, 300)).astype(np.float32)
STILL = dict.fromkeys(
    ("rotate_degrees", "scale", "shift", "brightness", "contrast", "gamma", "colour"), 0.0
)


def recipe(**changes: object):
    return quick_recipe(*(f"augment.{key}={value}" for key, value in changes.items())).augment


def test_a_copy_can_be_made_again_at_any_time():
    first, again, other = (
        varied_picture(Picture(PIXELS, None), recipe(), generator_for(0, "part-7", copy, 0)).pixels
        for copy in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_with_every_amount_at_zero_nothing_changes():
    same = varied_picture(
        Picture(PIXELS, None), recipe(**STILL, pixel_noise=0.0), np.random.default_rng(0)
    )
    assert np.abs(same.pixels.astype(int) - PIXELS).max() <= 1


def test_the_mask_moves_with_the_picture():
    mask = np.zeros((48, 80), np.uint8)
    mask[20:28, 30:40] = 255
    pixels = np.repeat(mask[:, :, None], 3, axis=2)
    moves = {**STILL, "rotate_degrees": 10.0, "shift": 0.2, "pixel_noise": 0.0}
    for seed in range(5):
        moved = varied_picture(Picture(pixels, mask), recipe(**moves), np.random.default_rng(seed))
        assert moved.mask is not None
        inside = moved.mask > 250
        assert inside.any()
        assert moved.pixels[inside].min() > 230


@pytest.mark.parametrize("seed", range(12))
def test_a_made_defect_changes_the_picture_where_its_mask_says(seed: int):
    broken = broken_picture(Picture(PIXELS, None), np.random.default_rng(seed))
    assert broken.mask is not None
    changed = (broken.pixels != PIXELS).any(axis=2)
    assert not changed[broken.mask == 0].any()


@pytest.mark.parametrize("seed", range(12))
def test_a_made_fault_stands_out_from_the_window(seed: int):
    broken = broken_window(WINDOW, np.random.default_rng(seed))
    assert broken.dtype == np.float32
    assert np.isfinite(broken).all()
    assert np.abs(broken - WINDOW).max() > 0.2


def test_a_window_is_varied_around_its_own_level():
    varied = varied_window(WINDOW, recipe(), np.random.default_rng(1))
    np.testing.assert_allclose(varied.mean(1), WINDOW.mean(1), atol=0.05)
    assert (varied != WINDOW).any()


def test_a_window_without_any_movement_can_be_broken_and_varied():
    flat = np.zeros((3, 64), np.float32)
    assert np.isfinite(broken_window(flat, np.random.default_rng(0))).all()
    assert np.isfinite(varied_window(flat, recipe(), np.random.default_rng(0))).all()
