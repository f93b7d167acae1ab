"""Trained runs as teachers: what they say of each copy, and which of them are refused."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from small_augmentations import DEFECTS, only
from small_distillation import (
    Order,
    distilled,
    edge,
    quick_recipe,
    quick_words,
    silent,
    small_recording,
)

from distill.adaptation.order import order_for
from distill.augment.copies import Copies
from distill.checkpoint import read_record, scorer_from_run
from distill.dataset import Source, TrainingParts, training_parts
from distill.label_share import with_labels_of
from distill.recipe import RECIPES, load_recipe
from distill.students.student import Student
from distill.targets.compute import look_over, targets_in
from distill.teachers.trained_runs import trained_runs
from distill.training.batches import Batches
from edge.errors import InputError
from edge.prepare import model_inputs
from edge.recording.format import Recording, SampleRow, write_recording
from edge.sample import Channel

SMALL = "image.pixel_budget=1024"


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Recording:
    return small_recording(tmp_path_factory.mktemp("runs") / "rec", Order(size=(64, 64)))


@pytest.fixture(scope="module")
def run(recording, tmp_path_factory) -> Path:
    """A run on images of 64 x 64."""
    folder = tmp_path_factory.mktemp("run") / "run"
    distilled(recording, folder, quick_recipe("image.pixel_budget=4096"))
    return folder


@pytest.fixture(scope="module")
def small_run(recording, tmp_path_factory) -> Path:
    """Another, on images of 32 x 32."""
    folder = tmp_path_factory.mktemp("small") / "run"
    distilled(recording, folder, quick_recipe(SMALL, "seed=5"))
    return folder


def taught_by(runs, recording: Recording, folder: Path, *overrides: str):
    """Targets of a student at 32 x 32 whose teachers are the runs."""
    named = f"teacher.runs={[str(one) for one in runs]}"
    recipe = quick_recipe(SMALL, "loss.features=0", named, *overrides)
    parts, stage = training_parts(recording, recipe), recipe.all_stages()[-1]
    torch.manual_seed(0)
    student = Student(parts.spec, recipe)
    targets = targets_in(folder, parts, recipe, stage, student, silent)
    return Batches(Copies(parts, recipe), targets, recipe, stage)


def scores_by(run: Path, recording: Recording, row: SampleRow, withhold: str | None = None):
    scorer = scorer_from_run(run)
    return scorer.score(model_inputs(recording.read_sample(row), scorer.spec, withhold=withhold))


@pytest.mark.parametrize(("view", "withheld"), list(enumerate((None, "sensor", "image"))))
def test_a_run_speaks_of_a_part_as_it_would_at_a_station(
    view, withheld, small_run, recording, tmp_path
):
    batches = taught_by([small_run], recording, tmp_path / "t")
    for index in (0, 7, 17):
        said = scores_by(small_run, recording, batches.copies.parts.rows[index], withheld)
        classes_K = batches.targets.soft_labels[view, 0, index]
        assert classes_K == pytest.approx(said.class_scores, abs=1e-5)
        place = {0: 2, 1: 0, 2: 1}[view]  # of all, of the image, of the sensor
        assert batches.targets.scores[0, index, place] == pytest.approx(
            said.anomaly_score, abs=1e-5
        )


def test_a_run_with_sharper_eyes_sees_each_copy_at_its_own_size(run, recording, tmp_path):
    batches = taught_by([run], recording, tmp_path / "t")
    assert batches.targets.map.shape[2] == 4
    row = batches.copies.parts.rows[3]
    said = scores_by(run, recording, row)
    assert batches.targets.soft_labels[0, 0, 3] == pytest.approx(said.class_scores, abs=1e-5)
    copies_RK = batches.targets.soft_labels[0, :, 3]
    assert len(copies_RK) == 2
    assert np.abs(copies_RK[0] - copies_RK[1]).max() > 0.0, "a copy is judged as a copy"


def unlabelled_copies(
    run: Path, recording: Recording, *overrides: str, **changes: object
) -> tuple[Copies, Copies]:
    """Copies as a student at 32 x 32 meets them, and as a run that teaches it does.

    Of parts that are normal or that nobody labelled, so that made defects occur: in all of them.
    """
    recipe = quick_recipe(SMALL, "targets.copies=4", "targets.broken_share=1", *overrides)
    if changes:
        recipe = msgspec.structs.replace(recipe, augment=only(**changes))
    parts = training_parts(recording, recipe)
    rows = tuple(
        row if row.label == recording.normal_class else msgspec.structs.replace(row, label="")
        for row in parts.rows
    )
    parts = TrainingParts((Source(recording, rows),), parts.spec)
    runs = trained_runs((str(run),), parts, recipe)
    assert runs is not None
    return Copies(parts, recipe), runs.runs[0].copies


def at_size_of(small, large):
    """Resize `large` [H, W] or [H, W, C] to the height and width of `small`, as float."""
    size = small.shape[1], small.shape[0]
    resized = Image.fromarray(large).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(resized).astype(np.float32)


def test_a_run_of_another_size_sees_a_made_defect_where_the_students_copy_has_it(run, recording):
    """Its word and the student's mask are joined cell by cell, the worse of the two counts."""
    own, theirs = unlabelled_copies(run, recording, "augment.sensor_fault=0")
    assert (own.parts.spec.image.width, theirs.parts.spec.image.width) == (32, 64)
    shared = []
    for index in range(len(own.parts)):
        for number in range(1, 5):
            own_HW = own.picture(index, number).mask
            theirs_HW = at_size_of(own_HW, theirs.picture(index, number).mask) > 127
            near_HW = ndimage.maximum_filter(own_HW, 3) > 0
            assert not (theirs_HW & ~near_HW).any(), "a defect where the student's copy has none"
            if (own_HW > 127).any():  # a warp may have moved the defect out of the picture
                both, either = theirs_HW & (own_HW > 127), theirs_HW | (own_HW > 127)
                shared.append(both.sum() / either.sum())
    assert len(shared) > 60
    assert np.mean(shared) > 0.8


@pytest.mark.parametrize("key", DEFECTS)
def test_a_run_of_another_size_sees_the_students_made_defect_in_its_own_sharp_picture(
    key, run, recording
):
    own, theirs = unlabelled_copies(run, recording, **{key: 1.0})
    inside = 0
    for index in range(len(own.parts)):
        small, large = own.picture(index, 1), theirs.picture(index, 1)
        sharp_HWC = theirs.parts.image(index)
        assert (large.pixels == sharp_HWC)[large.mask == 0].all()
        assert (large.pixels != sharp_HWC).any()
        way_HWC = at_size_of(sharp_HWC, small.pixels) - large.pixels
        inside += (large.mask == 255).sum()
        assert np.abs(way_HWC[large.mask == 255]).max(initial=0.0) <= 1.0, "the very defect"
    assert inside > 20


def test_several_runs_are_one_teacher_of_their_mean(run, small_run, recording, tmp_path):
    both = taught_by([run, small_run], recording, tmp_path / "both").targets
    apart = [
        taught_by([one], recording, tmp_path / one.parent.name).targets for one in (run, small_run)
    ]
    assert np.asarray(both.soft_labels) == pytest.approx(
        np.mean([one.soft_labels for one in apart], 0), abs=1e-6
    )
    assert len(both.remarks) == 2


def test_unlabelled_parts_are_learned_from_a_run_alone(small_run, recording, tmp_path):
    batches = taught_by([small_run], recording, tmp_path / "t", "targets.label_share=0.2")
    parts = batches.copies.parts
    unlabelled = np.isnan(parts.normal_N)
    assert 0 < unlabelled.sum() < len(parts)
    assert len(batches.taught_N) == len(parts)
    assert np.isfinite(batches.targets.map).all()


def test_a_run_that_knows_more_classes_than_the_labels_name_is_refused(
    small_run, recording, tmp_path
):
    rows = with_labels_of(0.0, recording.rows, recording.normal_class, 0)
    kept = [
        new if old.split == "train" else old for new, old in zip(rows, recording.rows, strict=True)
    ]
    (tmp_path / "rec").mkdir()
    (tmp_path / "rec" / "files").symlink_to(recording.folder / "files")
    header = msgspec.structs.replace(recording.header, name="few")
    write_recording(tmp_path / "rec", header, kept)
    few = Recording.open(tmp_path / "rec")
    with pytest.raises(InputError, match="classes"):  # the student knows one class, the run three
        taught_by([small_run], few, tmp_path / "t")


def test_on_the_command_line_a_run_is_a_teacher_like_any_other(small_run, recording, tmp_path):
    done = edge(
        *("distill", recording.folder, "--recipe", "tiny", "--out", tmp_path / "student"),
        *quick_words((SMALL, "loss.features=0")),
        *("--teacher", small_run),
    )
    assert done.returncode == 0, done.stderr
    assert "taught by a run of 'tiny'" in done.stdout
    recipe = read_record(tmp_path / "student").recipe
    assert recipe.teacher.runs == (str(small_run),)
    assert recipe.teacher.backbones == ("efficientnet_lite2",), "the recipe's own stay"
    adaptation = order_for(tmp_path / "student", recording).recipe
    assert adaptation.teacher.runs == (), "on another line they know nothing"


def test_targets_of_one_run_are_not_taken_for_those_of_another(run, small_run, recording, tmp_path):
    taught_by([small_run], recording, tmp_path / "t")
    with pytest.raises(InputError, match="another teacher"):
        taught_by([run], recording, tmp_path / "t")


def test_a_moved_run_is_still_the_same_teacher(small_run, recording, tmp_path):
    first = taught_by([small_run], recording, tmp_path / "t").targets
    (tmp_path / "elsewhere").symlink_to(small_run)
    second = taught_by([tmp_path / "elsewhere"], recording, tmp_path / "t").targets
    assert (first.map == second.map).all()


OTHERS = {
    "classes": Order(labels=("ok", "dent", "hum"), size=(32, 32)),
    "channels": Order(channels=(Channel("drive_end", "g", 6000.0),), size=(32, 32)),
    "readings": Order(readings=256, size=(32, 32)),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_run_of_other_classes_or_sensors_is_refused_at_the_door(case, small_run, tmp_path):
    other = small_recording(tmp_path / "rec", OTHERS[case])
    recipe = quick_recipe(SMALL, "loss.features=0", f'teacher.runs=["{small_run}"]')
    parts, stage = training_parts(other, recipe), recipe.all_stages()[-1]
    with pytest.raises(InputError, match=r"as a teacher") as caught:
        look_over([(tmp_path / "t", parts, stage)], recipe, Student(parts.spec, recipe))
    assert caught.value.do
    assert not (tmp_path / "t").exists()


def test_a_folder_that_is_no_run_is_refused_at_the_door(recording, tmp_path):
    with pytest.raises(InputError, match="expected a run"):
        taught_by([tmp_path / "nothing"], recording, tmp_path / "t")


def test_the_same_run_named_twice_is_refused(small_run, recording, tmp_path):
    (tmp_path / "again").symlink_to(small_run)
    with pytest.raises(InputError, match="each run once"):
        taught_by([small_run, tmp_path / "again"], recording, tmp_path / "t")


@pytest.mark.parametrize(("name", "step"), [("run.unfinished", "--resume"), ("rec", "own folder")])
def test_a_folder_that_is_neither_run_nor_model_is_refused_before_anything_is_written(
    name, step, recording, tmp_path
):
    (tmp_path / name).mkdir()
    done = edge(
        *("distill", recording.folder, "--recipe", "tiny", "--out", tmp_path / "student"),
        *("--teacher", tmp_path / name),
    )
    assert done.returncode == 2
    assert "--teacher" in done.stderr
    assert step in done.stderr
    assert not list(tmp_path.glob("student*"))


def test_runs_in_a_recipe_are_found_from_its_own_folder(tmp_path):
    text = (RECIPES / "tiny.toml").read_text()
    (tmp_path / "mine.toml").write_text(text.replace("[teacher]", '[teacher]\nruns = ["./run"]'))
    recipe = load_recipe(str(tmp_path / "mine.toml"))
    assert recipe.teacher.runs == (str(tmp_path / "run"),)
