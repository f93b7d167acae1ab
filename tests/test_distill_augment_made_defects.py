"""Made defects: their mask says exactly what changed, and something always shows."""

import numpy as np
import pytest
from small_augmentations import DEFECTS, NOTHING, TINY, only

from distill.augment.made_defects import SHAPES, VISIBLE_LEVELS, broken_picture
from distill.augment.perlin import perlin_noise
from distill.augment.pictures import Picture

PIXELS = np.random.default_rng(0).integers(60, 200, (96, 128, 3), dtype=np.uint8)
SMOOTH = np.repeat(np.linspace(20, 230, 128).astype(np.uint8)[None], 96, axis=0)[:, :, None]


def broken(pixels, recipe, seed, mask=None):
    return broken_picture(Picture(pixels, mask), recipe, np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("key", DEFECTS)
@pytest.mark.parametrize("pixels", [PIXELS, SMOOTH], ids=["grain", "one smooth colour"])
def test_the_mask_covers_exactly_what_changed_by_at_least_the_visible_levels(key, pixels, seed):
    before = pixels.copy()
    made = broken(pixels, only(**{key: 1.0}), seed)
    assert (made.pixels.shape, made.pixels.dtype) == (pixels.shape, np.uint8)
    way = np.abs(made.pixels.astype(int) - pixels).max(axis=2)
    assert ((made.mask == 255) == (way >= VISIBLE_LEVELS)).all()
    assert ((made.mask == 0) == (way == 0)).all()
    assert made.mask.any()
    assert (pixels == before).all()


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("level", [0, 3, 128, 255])
@pytest.mark.parametrize("key", DEFECTS)
def test_a_defect_shows_on_a_picture_of_one_value_too(key, level, seed):
    flat = np.full((33, 57, 1 if seed % 2 else 3), level, np.uint8)
    made = broken(flat, only(**{key: 1.0}), seed)
    assert (made.mask == 255).sum() >= 4
    assert np.abs(made.pixels.astype(int) - flat).max() >= VISIBLE_LEVELS


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("key", DEFECTS)
def test_no_shape_is_larger_than_the_recipe_says(key, seed):
    soft = SHAPES[key](200, 150, 0.05, np.random.default_rng(seed))
    assert soft.dtype == np.float32
    assert 0.0 <= soft.min() <= soft.max() <= 1.0
    # A blob is an ellipse of that area with a rough rim around it.
    assert (soft > 0.0).mean() <= 0.05 * (2.5 if key == "defect_blob" else 1.1)


def test_shapes_come_as_often_as_the_recipe_says_and_each_is_another():
    masks = {key: broken(PIXELS, only(**{key: 1.0}), 7).mask.tobytes() for key in DEFECTS}
    assert len(set(masks.values())) == len(DEFECTS)
    for seed in range(5):
        alone = broken(PIXELS, only(defect_scar=1.0), seed).mask
        assert (alone == broken(PIXELS, only(defect_scar=0.2), seed).mask).all()


def test_without_any_shape_the_picture_comes_back_as_it_is():
    picture = Picture(PIXELS, None)
    assert broken_picture(picture, NOTHING, np.random.default_rng(0)) is picture


def test_a_mask_that_the_picture_had_is_kept():
    mask = np.zeros(PIXELS.shape[:2], np.uint8)
    mask[:10, :10] = 255
    made = broken(PIXELS, TINY, 3, mask)
    assert (made.mask[:10, :10] == 255).all()
    assert (made.mask[10:] == 255).any() or (made.mask[:, 10:] == 255).any()


@pytest.mark.parametrize("shape", [(32, 32, 3), (33, 57, 3), (57, 33, 1), (480, 64, 3)])
def test_odd_sizes_are_taken(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for seed in range(12):
        made = broken(pixels, TINY, seed)
        assert made.pixels.shape == shape
        assert made.mask.any()


def test_perlin_noise_is_nothing_at_the_lattice_and_smooth_between():
    noise = perlin_noise(129, 97, 4, 3, np.random.default_rng(0))
    assert noise.shape == (129, 97)
    assert np.abs(noise).max() <= np.sqrt(0.5)
    assert noise.std() > 0.1
    assert np.abs(np.diff(noise, axis=0)).max() < 0.1
    assert np.abs(np.diff(noise, axis=1)).max() < 0.1
    # With one cell of 1001 pixels, the corners are the lattice.
    one_cell = perlin_noise(1001, 1001, 1, 1, np.random.default_rng(0))
    assert np.abs(one_cell[[0, 0, -1, -1], [0, -1, 0, -1]]).max() < 0.002


def test_perlin_noise_has_the_grain_that_is_asked_for():
    def turns(cells):
        noise = perlin_noise(256, 256, cells, cells, np.random.default_rng(2))
        return np.count_nonzero(np.diff(np.sign(noise), axis=1))

    assert turns(2) < turns(8) < turns(32)
