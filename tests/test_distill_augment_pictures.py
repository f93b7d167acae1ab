"""Mild changes to a picture: each does what it says, and the mask goes where the picture goes."""

import os
import random as python_random
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from kornia.filters import filter2d
from small_augmentations import (
    DEFECTS,
    FAULTS,
    MOVES,
    NOTHING,
    READINGS,
    SIGHTS,
    TINY,
    only,
)

from distill.augment.copies import generator_for
from distill.augment.exposure import disc, filtered, smear
from distill.augment.pictures import Picture, varied_picture
from distill.recipe import AugmentRecipe

ROOT = Path(__file__).resolve().parent.parent
EVERYTHING = {**MOVES, **SIGHTS}


def smooth_pixels(height=48, width=80, colours=3):
    """Return a picture without sharp edges and without pixels at the ends of the range."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (7.0 + c)) + np.cos(y / (5.0 + c)) for c in range(colours)]
    return (128 + 40 * np.stack(waves, axis=2)).astype(np.uint8)


def mask_of(height=48, width=80):
    mask = np.zeros((height, width), np.uint8)
    mask[height // 3 : height // 2, width // 4 : width // 2] = 255
    return mask


def varied(pixels, mask, recipe, seed=1):
    return varied_picture(Picture(pixels, mask), recipe, np.random.default_rng(seed))


def test_every_key_of_the_recipe_is_tried_here_or_with_the_windows_or_defects():
    tried = {*MOVES, *SIGHTS, *DEFECTS, *READINGS, *FAULTS, "defect_area"}
    assert tried == set(AugmentRecipe.__struct_fields__)


@pytest.mark.parametrize("seed", range(3))
def test_with_every_amount_at_zero_the_original_comes_back_byte_for_byte(seed):
    pixels, mask = smooth_pixels(), mask_of()
    same = varied(pixels, mask, NOTHING, seed)
    assert same.pixels.tobytes() == pixels.tobytes()
    assert same.mask.tobytes() == mask.tobytes()


@pytest.mark.parametrize("key", EVERYTHING)
def test_each_change_alone_changes_the_picture_and_nothing_of_its_form(key):
    pixels, mask = smooth_pixels(), mask_of()
    before = pixels.copy(), mask.copy()
    changed_pixels, changed_mask = False, False
    for seed in range(8):  # a flip is a coin; a draw may be close to nothing
        made = varied(pixels, mask, only(**{key: EVERYTHING[key]}), seed)
        assert (made.pixels.shape, made.pixels.dtype) == (pixels.shape, np.uint8)
        assert (made.mask.shape, made.mask.dtype) == (mask.shape, np.uint8)
        changed_pixels |= bool((made.pixels != pixels).any())
        changed_mask |= bool((made.mask != mask).any())
    assert changed_pixels
    assert changed_mask == (key in MOVES)
    assert (pixels == before[0]).all(), "the original is not painted on"
    assert (mask == before[1]).all()


@pytest.mark.parametrize("key", [*MOVES, "all"])
def test_a_picture_that_is_its_own_mask_stays_so_wherever_it_moves(key):
    mask = mask_of()
    mask[0:6, 40:60] = 255  # at the edge, where the picture is mirrored
    recipe = only(**(MOVES if key == "all" else {key: MOVES[key]}))
    for seed in range(6):
        made = varied(np.repeat(mask[:, :, None], 3, axis=2), mask, recipe, seed)
        assert made.mask.any()
        for colour in range(3):
            assert (made.pixels[:, :, colour] == made.mask).all()


@pytest.mark.parametrize("key", EVERYTHING)
@pytest.mark.parametrize("shape", [(33, 57, 3), (57, 33, 1), (32, 32, 3)])
def test_odd_sizes_and_one_colour_are_taken(key, shape):
    made = varied(smooth_pixels(*shape), mask_of(*shape[:2]), only(**{key: EVERYTHING[key]}))
    assert made.pixels.shape == shape
    assert made.mask.shape == shape[:2]


@pytest.mark.parametrize("level", [0, 128, 255])
@pytest.mark.parametrize("key", EVERYTHING)
def test_a_picture_of_one_value_stays_sound(key, level):
    made = varied(np.full((33, 57, 3), level, np.uint8), None, only(**{key: EVERYTHING[key]}))
    assert made.mask is None
    if key in MOVES or key in ("defocus", "motion_blur", "contrast"):
        assert np.abs(made.pixels.astype(int) - level).max() <= 1


@pytest.mark.parametrize("seed", range(4))
def test_switching_one_change_off_leaves_the_others_as_they_were(seed):
    pixels, mask = smooth_pixels(), mask_of()
    moves = {key: MOVES[key] for key in ("rotate_degrees", "elastic")}
    plain = varied(pixels, mask, only(**moves), seed)
    with_light = varied(pixels, mask, only(**moves, brightness=0.1, shadow=0.4), seed)
    assert (plain.mask == with_light.mask).all()
    lit = varied(pixels, mask, only(brightness=0.2), seed).pixels.astype(int)
    blurred = varied(pixels, mask, only(brightness=0.2, defocus=0.01), seed).pixels.astype(int)
    assert abs(lit.mean() - blurred.mean()) < 0.5


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("key", "furthest"),
    # Of 200 columns. Foreshortening takes inner points a little further than the corners.
    [("shift", 20.0), ("perspective", 25.0), ("elastic", 0.03 * 160)],
)
def test_nothing_moves_further_than_the_recipe_says(key, furthest, seed):
    columns = np.repeat(np.arange(200, dtype=np.uint8)[None], 160, axis=0)
    made = varied(columns[:, :, None], None, only(**{key: MOVES[key]}), seed).pixels[:, :, 0]
    way = np.abs(made.astype(float) - columns)
    assert 0.5 < way.max() <= furthest + 1.0


@pytest.mark.parametrize("seed", range(6))
def test_the_elastic_warp_never_folds_the_picture(seed):
    columns = np.repeat(np.arange(200, dtype=np.uint8)[None], 200, axis=0)
    made = varied(columns[:, :, None], None, only(elastic=0.0499), seed).pixels[:, 20:-20, 0]
    assert (np.diff(made.astype(int), axis=1) >= 0).all()


@pytest.mark.parametrize("seed", range(6))
def test_light_and_tones_change_as_far_as_the_recipe_says(seed):
    level = 120.0
    flat = np.full((60, 60, 3), int(level), np.uint8)
    lit = varied(flat, None, only(light_gradient=0.3), seed).pixels
    assert level * 0.7 - 1 <= lit.min() < lit.max() <= level * 1.3 + 1
    dim = varied(flat, None, only(shadow=0.5), seed).pixels
    assert level * 0.5 - 1 <= dim.min()
    assert dim.max() <= level
    bright = varied(flat, None, only(brightness=0.1), seed).pixels
    assert np.abs(bright - level).max() <= 0.1 * 255 + 1
    tinted = varied(flat, None, only(colour=0.2), seed).pixels
    assert np.abs(tinted / level - 1.0).max() <= 0.21
    ends = np.repeat(np.array([[0, 255]], np.uint8), 3, axis=0)[:, :, None]
    assert (varied(ends, None, only(gamma=0.8), seed).pixels == ends).all()
    noise = varied(flat, None, only(pixel_noise=0.05), seed).pixels - level
    assert noise.std() <= 0.05 * 255 * 1.1


@pytest.mark.parametrize("seed", range(6))
def test_contrast_turns_about_each_colours_mean(seed):
    pixels = smooth_pixels()
    made = varied(pixels, None, only(contrast=0.3), seed).pixels.astype(float)
    np.testing.assert_allclose(made.mean((0, 1)), pixels.mean((0, 1)), atol=1.0)


@pytest.mark.parametrize("kernel", [disc(r) for r in (0.0, 0.4, 0.8, 1.5, 3.2)])
def test_a_point_out_of_focus_is_a_disc_of_the_same_light(kernel):
    assert kernel.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(kernel, kernel.T)
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1])


@pytest.mark.parametrize("length", [0.0, 0.5, 2.0, 7.0])
@pytest.mark.parametrize("angle", [0.0, 0.7, np.pi / 2, 2.9])
def test_a_smear_is_as_long_as_it_says_and_points_where_it_says(length, angle):
    kernel = smear(length, angle)
    assert kernel.sum() == pytest.approx(1.0)
    y, x = np.mgrid[: kernel.shape[0], : kernel.shape[1]].astype(float)
    y, x = y - kernel.shape[0] // 2, x - kernel.shape[1] // 2
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    # A line of length L has the variance L^2 / 12; sharing among pixels adds at most 1/4.
    assert 0.0 <= (kernel * along**2).sum() - length**2 / 12.0 <= 0.26 + 0.01 * length**2
    assert (kernel * across**2).sum() <= 0.26


@pytest.mark.parametrize("shape", [(33, 57, 3), (70, 40, 1)])
@pytest.mark.parametrize("size", [(1, 3), (5, 3), (7, 7)])
def test_our_filter_and_kornias_say_the_same(shape, size):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, shape, dtype=np.uint8)
    kernel = random.random(size, dtype=np.float32) * (random.random(size) < 0.6)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    theirs = filter2d(image, torch.from_numpy(kernel)[None], border_type="reflect")
    ours = filtered(pixels, kernel)
    np.testing.assert_allclose(ours, theirs[0].permute(1, 2, 0).numpy(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("key", ["defocus", "motion_blur"])
def test_blur_takes_detail_and_leaves_the_light(key):
    grain = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    copies = [
        varied(grain, None, only(**{key: SIGHTS[key]}), seed).pixels.astype(float)
        for seed in range(8)
    ]
    assert all(made.std() <= grain.std() for made in copies)
    assert min(made.std() for made in copies) < 0.6 * grain.std()
    assert all(abs(made.mean() - grain.mean()) < 2.0 for made in copies)


DIGEST = """
import zlib, random, sys
import numpy as np, torch
sys.path.insert(0, "tests")
from small_augmentations import DEFECTS, FAULTS, MOVES, READINGS, SIGHTS, only
from distill.augment.copies import generator_for
from distill.augment.made_defects import broken_picture
from distill.augment.made_faults import broken_window
from distill.augment.pictures import Picture, varied_picture
from distill.augment.windows import varied_window

def digest():
    pixels = np.random.default_rng(0).integers(0, 256, (120, 90, 3), dtype=np.uint8)
    window = np.random.default_rng(0).normal(size=(2, 600)).astype(np.float32)
    recipe, total = only(**MOVES, **SIGHTS, **DEFECTS, **READINGS, **FAULTS), 0
    for copy in range(4):
        def one(stream):
            return generator_for(3, "part-7", copy, stream)
        made = varied_picture(broken_picture(Picture(pixels, None), recipe, one(0)), recipe, one(1))
        readings = varied_window(broken_window(window, recipe, one(2)), recipe, one(3))
        for array in (made.pixels, made.mask, readings):
            total = zlib.crc32(np.ascontiguousarray(array).tobytes(), total)
    return total
"""


def test_a_copy_is_the_same_in_every_process_and_touches_no_shared_generator():
    mine: dict = {}
    exec(DIGEST, mine)
    torch.manual_seed(5)
    np.random.seed(5)
    python_random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), python_random.getstate()
    first = mine["digest"]()
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    assert before[2] == python_random.getstate()
    for threads in ("1", "2"):
        script = DIGEST + "\ntorch.manual_seed(9); np.random.rand(3)\nprint(digest())"
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) == first


def test_other_copies_samples_and_seeds_differ():
    seen = set()
    for seed, sample, copy in ((0, "a", 1), (0, "a", 2), (0, "b", 1), (1, "a", 1)):
        made = varied_picture(
            Picture(smooth_pixels(), None), TINY, generator_for(seed, sample, copy, 0)
        )
        seen.add(zlib.crc32(made.pixels.tobytes()))
    assert len(seen) == 4
