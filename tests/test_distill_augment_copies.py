"""Copies of real training parts, and the sheet that shows them to a person."""

import numpy as np
import pytest
from PIL import Image
from small_distillation import Order, quick_recipe, small_recording

from distill.augment.copies import BROKEN_IMAGE, BROKEN_SENSOR, Copies
from distill.augment.copies_sheet import copies_sheet
from distill.dataset import training_parts
from edge.cli.main import main

NORMAL_ONLY = Order(labels=("ok",), per_label=6)
BROKEN = "targets.broken_share=1.0"
NO_SHAPES = tuple(f"augment.defect_{shape}=0.0" for shape in ("patch", "scar", "perlin", "blob"))


@pytest.fixture(scope="module")
def normal_only(tmp_path_factory):
    return small_recording(tmp_path_factory.mktemp("copies") / "rec", NORMAL_ONLY)


@pytest.fixture(scope="module")
def with_defects(tmp_path_factory):
    return small_recording(tmp_path_factory.mktemp("copies") / "rec", Order(per_label=3))


def copies_of(recording, *overrides):
    recipe = quick_recipe(*overrides)
    return Copies(training_parts(recording, recipe), recipe)


def kinds(copies):
    return {copies.broken(index, copy) for index in range(len(copies.parts)) for copy in range(9)}


def test_a_copy_is_the_same_in_whatever_order_it_is_asked_for(normal_only):
    one, other = copies_of(normal_only, BROKEN), copies_of(normal_only, BROKEN)
    asked = [(index, copy) for index in range(4) for copy in range(3)]
    forth = {key: one.picture(*key) for key in asked}
    back = {key: other.picture(*key) for key in reversed(asked)}
    for key in asked:
        assert (forth[key].pixels == back[key].pixels).all()
        assert (one.window(*key, epoch=2) == other.window(*key, epoch=2)).all()
    assert (one.window(0, 1, epoch=0) != one.window(0, 1, epoch=1)).any()


def test_the_first_round_is_the_original(normal_only):
    copies = copies_of(normal_only, BROKEN)
    assert (copies.picture(2, 0).pixels == copies.parts.image(2)).all()
    assert (copies.window(2, 0) == copies.parts.window(2)).all()
    assert copies.broken(2, 0) == 0


def test_normal_parts_are_broken_in_every_way_that_the_recipe_gives(normal_only):
    both = BROKEN_IMAGE | BROKEN_SENSOR
    assert kinds(copies_of(normal_only, BROKEN)) == {0, BROKEN_IMAGE, BROKEN_SENSOR, both}
    no_shapes = copies_of(normal_only, BROKEN, *NO_SHAPES)
    assert kinds(no_shapes) == {0, BROKEN_SENSOR}
    assert kinds(copies_of(normal_only, BROKEN, "augment.sensor_fault=0.0")) == {0, BROKEN_IMAGE}
    neither = copies_of(normal_only, BROKEN, *NO_SHAPES, "augment.sensor_fault=0.0")
    assert kinds(neither) == {0}


def test_a_part_without_a_window_is_broken_in_its_image_alone(tmp_path):
    recording = small_recording(tmp_path / "rec", Order(labels=("ok",), channels=()))
    assert kinds(copies_of(recording, BROKEN)) == {0, BROKEN_IMAGE}


def test_a_broken_copy_has_a_mask_and_is_varied_like_the_sound_one(normal_only):
    sound = copies_of(normal_only, "targets.broken_share=0.0").picture(1, 1)
    broken = copies_of(normal_only, BROKEN, "augment.sensor_fault=0.0").picture(1, 1)
    assert sound.mask is None
    assert broken.mask.any()
    same = (broken.pixels == sound.pixels).all(axis=2)
    assert same.mean() > 0.3, "only the defect, and what follows from the mean, differs"


def test_real_defects_are_left_to_teach_alone(with_defects):
    assert kinds(copies_of(with_defects, BROKEN)) == {0}


@pytest.mark.parametrize("kind", ["normal_only", "with_defects"])
def test_the_sheet_shows_the_copies_and_is_the_same_each_time(kind, request):
    recording = request.getfixturevalue(kind)
    recipe = quick_recipe(BROKEN)
    parts = training_parts(recording, recipe)
    sheet = np.asarray(copies_sheet(parts, recipe))
    assert sheet.std() > 20
    assert (sheet == np.asarray(copies_sheet(parts, recipe))).all()
    bolder = quick_recipe(BROKEN, "augment.rotate_degrees=40.0")
    assert (sheet != np.asarray(copies_sheet(parts, bolder))).any()


def test_the_command_draws_the_copies_of_a_recipe(with_defects, tmp_path, capsys):
    words = ["recordings", "show", str(with_defects.folder)]
    picture = ["--picture", str(tmp_path / "sheet.png")]
    augmented = ["--augmented", "tiny"]
    assert main([*words, *picture, *augmented]) == 0
    plain = Image.open(tmp_path / "sheet.png").tobytes()
    assert main([*words, *picture, *augmented]) == 2, "an existing picture is kept"
    louder = ["--set", "augment.pixel_noise=0.3"]
    assert main([*words, *picture, *augmented, *louder, "--force"]) == 0
    assert Image.open(tmp_path / "sheet.png").tobytes() != plain
    capsys.readouterr()
    for bad, said in (
        ([*words, *augmented], "--augmented: expected --picture"),
        ([*words, *picture, *louder, "--force"], "--set: expected --augmented"),
        ([*words, *picture, "--augmented", "tny", "--force"], "Did you mean 'tiny'?"),
        ([*words, *picture, *augmented, "--set", "augment.shado=1", "--force"], "shadow"),
        ([*words, *picture, *augmented, "--set", "augment.shadow=2", "--force"], "shadow"),
    ):
        assert main(bad) == 2
        assert said in capsys.readouterr().err
    assert Image.open(tmp_path / "sheet.png").tobytes() != plain, "it is still there"
