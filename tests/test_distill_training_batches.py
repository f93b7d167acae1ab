"""What each training step asks of the student, by what it shows."""

import numpy as np
import pytest
from small_distillation import Order, quick_recipe, silent, small_recording

from distill.targets import Copies, targets_in
from distill.train import fresh_student, training_parts
from distill.training.batches import Batches


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batches")
    recording = small_recording(folder / "rec", Order(size=(32, 32)))
    recipe = quick_recipe("train.withhold=0.4", "targets.teacher_share=0.2")
    parts = training_parts(recording, recipe)
    targets = targets_in(folder / "targets", parts, recipe, fresh_student(parts, recipe), silent)
    return Batches(Copies(parts, recipe), targets)


def lessons_of(batches, epochs=8):
    """Rows of (shown, class probabilities) over some epochs."""
    rows = []
    for epoch in range(epochs):
        for batch in batches.epoch(epoch):
            lesson = batch.lesson
            shown, classes = lesson.present_B2.numpy(), lesson.class_probabilities_BK.numpy()
            rows += list(zip(map(tuple, shown), classes, strict=True))
    return rows


def test_a_whole_part_is_asked_for_its_label_first(batches):
    whole = [classes for shown, classes in lessons_of(batches) if shown == (1.0, 1.0)]
    assert whole
    assert all(classes.max() >= 0.8 for classes in whole)


@pytest.mark.parametrize(("shown", "view"), [((1.0, 0.0), 1), ((0.0, 1.0), 2)])
def test_where_one_modality_is_withheld_the_teacher_says_what_the_other_shows(batches, shown, view):
    asked = [classes for seen, classes in lessons_of(batches) if seen == shown]
    assert asked
    known = np.asarray(batches.targets.soft_labels[view])
    for classes in asked:
        assert np.abs(known - classes).max(axis=1).min() < 1e-6


def test_never_is_everything_withheld(batches):
    assert all(sum(shown) >= 1.0 for shown, _ in lessons_of(batches))


def test_an_epoch_is_the_same_whenever_it_is_asked_for(batches):
    for one, other in zip(batches.epoch(3), batches.epoch(3), strict=True):
        assert (one.stem_BGS == other.stem_BGS).all()
        assert (one.lesson.score_B == other.lesson.score_B).all()
