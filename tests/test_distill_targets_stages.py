"""Stages with recordings of their own: what their parts can teach, and what is refused."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from small_distillation import VIBRATION, Order, quick_recipe, silent, small_recording

from distill.augment.copies import Copies
from distill.dataset import UNKNOWN, TrainingParts, parts_of_stage, training_parts
from distill.recipe import Recipe, Stage, StageRecipe
from distill.students.student import Student
from distill.targets.asked import refuse_unanswerable
from distill.targets.compute import look_over, targets_in
from distill.training import standardisation
from distill.training.batches import Batches
from distill.training.standardisation import fit_standardisation
from edge.errors import InputError, MachineError
from edge.recording.format import Recording
from edge.sample import Channel

FEATURES_ONLY = dict.fromkeys(("labels", "soft_labels", "score", "map", "window"), 0.0)


def staged(recordings: list[Recording], *overrides: str, **weights: float) -> tuple[Recipe, Stage]:
    """A recipe with one stage before the last, on `recordings`."""
    recipe = quick_recipe(*overrides)
    loss = msgspec.structs.replace(recipe.loss, **weights)
    folders = tuple(str(recording.folder) for recording in recordings)
    backbones = recipe.teacher.backbones
    recipe = msgspec.structs.replace(
        recipe, stages={"general": StageRecipe(folders, backbones, 1, 0.001, 5, loss)}
    )
    return recipe, recipe.all_stages()[0]


def taught(folder: Path, parts: TrainingParts, recipe: Recipe, stage: Stage) -> Batches:
    torch.manual_seed(0)
    student = Student(parts.spec, recipe)
    targets = targets_in(folder, parts, recipe, stage, student, silent)
    return Batches(Copies(parts, recipe), targets, recipe, stage)


def with_rows(recording: Recording, change) -> Recording:
    """The recording with each row as `change(row)` makes it."""
    lines = (recording.folder / "samples.jsonl").read_bytes().splitlines()
    rows = [change(msgspec.json.decode(line)) for line in lines]
    content = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
    (recording.folder / "samples.jsonl").write_bytes(content)
    return Recording.open(recording.folder)


def without_labels(recording: Recording) -> Recording:
    return with_rows(
        recording, lambda row: {**row, "label": ""} if row["split"] == "train" else row
    )


@pytest.fixture
def own(tmp_path) -> Recording:
    return small_recording(tmp_path / "own", Order(size=(32, 32)))


def test_several_recordings_of_other_classes_channels_and_sizes_teach_one_student(own, tmp_path):
    wider = Order(("good", "scratch", "dent"), size=(64, 40), channels=(Channel("f", "N", 50.0),))
    more = (VIBRATION[1], Channel("motor", "A", 100.0), VIBRATION[0])
    reordered = Order(("fine", "hum"), size=(48, 48), channels=more)
    others = [
        small_recording(tmp_path / "a", wider, seed=1),
        small_recording(tmp_path / "b", reordered, seed=2),
    ]
    recipe, stage = staged(others)
    parts = parts_of_stage(stage, training_parts(own, recipe), recipe)
    assert len(parts) == 18 + 12
    names = [row.label for row in parts.rows]
    known = {"good": 0, "fine": 0, "scratch": 1, "hum": 2, "dent": UNKNOWN}
    assert parts.labels_N.tolist() == [known[name] for name in names]
    assert parts.normal_N.tolist() == [float(name in ("good", "fine")) for name in names]
    assert parts.windows_N.tolist() == [False] * 18 + [True] * 12, "only the second has the sensors"
    raw = np.load(others[1].path_of(others[1].rows[0].sensor))
    assert np.array_equal(parts.window(18), raw[[2, 0]]), "in the student's order of channels"
    assert parts.image(0).shape == parts.image(29).shape == (32, 32, 3)
    assert len({row.sample_id for row in parts.rows}) == 30, "though both have a 'train_0'"

    batches = taught(tmp_path / "t", parts, recipe, stage)
    for step in range(batches.steps_per_epoch):
        lesson = batches.piece(0, step, 0, 1).lesson
        dents = lesson.label_B == UNKNOWN
        assert not lesson.label_weight_B[dents].any()
        whole = dents & (lesson.present_B2[:, 0] > 0)
        assert (lesson.score_B[whole] > 0.5).float().mean() >= 0.5 or not whole.any()


def test_unlabelled_recordings_teach_features(own, tmp_path):
    unlabelled = without_labels(small_recording(tmp_path / "a", Order(size=(32, 32)), seed=1))
    recipe, stage = staged([unlabelled], **FEATURES_ONLY)
    parts = parts_of_stage(stage, training_parts(own, recipe), recipe)
    batches = taught(tmp_path / "t", parts, recipe, stage)
    assert len(batches.taught_N) == 18
    lesson = batches.piece(0, 0, 0, 1).lesson
    assert lesson.features[0].any()
    assert not lesson.label_weight_B.any()
    assert not lesson.map_weight_B.any(), "nobody knows where anything is"


def test_stages_draw_differently_and_the_last_one_as_a_run_without_stages(own, tmp_path):
    recipe, stage = staged([own])
    parts = training_parts(own, recipe)
    earlier = taught(tmp_path / "a", parts, recipe, stage)
    last = taught(tmp_path / "b", parts, recipe, recipe.all_stages()[-1])
    plain = quick_recipe()
    alone = taught(tmp_path / "c", parts, plain, plain.all_stages()[-1])
    orders = [batches.piece(0, 0, 0, 1).samples for batches in (earlier, last, alone)]
    assert orders[0] != orders[1] == orders[2]


REFUSED = {
    "normal parts for the memory": ((), {}, without_labels, "at least 2 parts labelled normal"),
    "labels of the model's classes": (
        (),
        {"score": 0.0, "map": 0.0, "soft_labels": 0.0, "features": 0.0},
        lambda recording: with_rows(recording, lambda row: {**row, "label": "dent"}),
        "at least 2 parts labelled normal",
    ),
    "any label, from labels alone": (
        ("targets.teacher_share=0.0",),
        {"score": 1.0, "map": 0.0, "soft_labels": 0.0, "features": 0.0, "labels": 0.0},
        without_labels,
        "labelled parts, for no teacher is asked",
    ),
    "a class that is known": (
        ("targets.teacher_share=0.0",),
        {"score": 0.0, "map": 0.0, "soft_labels": 0.0, "features": 0.0, "labels": 1.0},
        lambda recording: with_rows(recording, lambda row: {**row, "label": "dent"}),
        r"a label that the model knows \(ok, scratch, hum\)",
    ),
    "windows": (
        ("teacher.sensor_epochs=1",),
        {**FEATURES_ONLY, "features": 0.0, "window": 1.0},
        lambda recording: with_rows(recording, lambda row: {**row, "sensor": None}),
        "sensor windows to learn 'window' from",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_stage_that_its_recordings_cannot_teach_is_refused_at_the_door(case, own, tmp_path):
    overrides, weights, spoil, words = REFUSED[case]
    recording = spoil(small_recording(tmp_path / "a", Order(size=(32, 32)), seed=1))
    recipe, stage = staged([recording], *overrides, **weights)
    parts = parts_of_stage(stage, training_parts(own, recipe), recipe)
    student = Student(parts.spec, recipe)
    with pytest.raises(InputError, match=f"stage 'general', .*{words}"):
        look_over([(tmp_path / "t", parts, stage)], recipe, student)
    assert not (tmp_path / "t").exists()


def test_a_recording_without_a_training_split_is_refused_by_its_path(own, tmp_path):
    recording = small_recording(tmp_path / "a", Order(size=(32, 32), splits=("test",)))
    recipe, stage = staged([recording])
    with pytest.raises(InputError, match=f"{recording.folder}.*samples in split 'train'"):
        parts_of_stage(stage, training_parts(own, recipe), recipe)
    recipe = msgspec.structs.replace(
        recipe, stages={"general": msgspec.structs.replace(recipe.stages["general"],
                                                           recordings=(str(tmp_path / "no"),))}
    )  # fmt: skip
    with pytest.raises(InputError, match="a recording"):
        parts_of_stage(recipe.all_stages()[0], training_parts(own, recipe), recipe)


def test_the_room_for_all_stages_together_is_looked_for_at_the_door(own, tmp_path):
    recipe = quick_recipe("targets.copies=10000000")
    parts, stage = training_parts(own, recipe), recipe.all_stages()[-1]
    planned = [(tmp_path / "t" / name, parts, stage) for name in "ab"]
    with pytest.raises(MachineError, match=r"room for [\d,]+ bytes of targets") as caught:
        look_over(planned, recipe, Student(parts.spec, recipe))
    per_part = 4 * 2 * (272 + 24 + 1) + 3 * 4  # stem, features, map; scores
    needed = int(caught.value.expected.split()[2].replace(",", ""))
    assert needed == pytest.approx(2 * 10_000_001 * len(parts) * per_part, rel=1e-3)
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(("share", "kept"), [(1.0, 6), (0.5, 3), (0.1, 1), (0.0, 0)])
def test_a_share_of_each_class_keeps_its_label_and_its_masks(share, kept, tmp_path):
    order = Order(size=(32, 32), splits=("train", "val"), per_label=6)
    recording = with_rows(
        small_recording(tmp_path / "rec", order), lambda row: {**row, "part_id": row["sample_id"]}
    )
    parts = training_parts(recording, quick_recipe(f"targets.label_share={share}"))
    labels = [row.label for row in parts.rows]
    assert labels.count("scratch") == labels.count("hum") == kept
    assert labels.count("ok") == max(kept, 1), "one normal part at least"
    assert parts.spec.classes == ("ok", "scratch", "hum"), "a person still knows what there is"
    masked = [index for index in range(len(parts)) if parts.mask(index) is not None]
    assert masked == [index for index, label in enumerate(labels) if label == "scratch"]
    assert {row.label for row in recording.rows_in("val")} == {"ok", "scratch", "hum"}


def test_labels_of_a_small_share_are_among_those_of_a_larger_and_the_seed_chooses(own):
    def kept(share, seed):
        recipe = quick_recipe(f"targets.label_share={share}", f"seed={seed}")
        return {row.sample_id for row in training_parts(own, recipe).rows if row.label}

    assert kept(0.2, 0) < kept(0.6, 0) < kept(1.0, 0)
    assert kept(0.2, 0) != kept(0.2, 1)


def test_a_part_seen_several_times_keeps_all_of_its_labels_or_none(tmp_path):
    order = Order(labels=("ok",), size=(32, 32), per_label=40)
    recording = small_recording(tmp_path / "rec", order)
    rows = training_parts(recording, quick_recipe("targets.label_share=0.3")).rows
    known = {}
    for row in rows:
        assert known.setdefault(row.part_id, bool(row.label)) == bool(row.label)
    assert sum(known.values()) == 3, "12 of 40 samples, in parts of 4"


def test_too_few_labels_left_for_a_memory_is_said_with_the_share(tmp_path):
    recording = with_rows(
        small_recording(tmp_path / "rec", Order(size=(32, 32))),
        lambda row: {**row, "part_id": row["sample_id"]},
    )
    recipe = quick_recipe("targets.label_share=0.1")
    parts, stage = training_parts(recording, recipe), recipe.all_stages()[-1]
    with pytest.raises(InputError, match=r"found 1 of 18 training parts.*label_share is 0.1"):
        taught(tmp_path / "t", parts, recipe, stage)


def test_with_a_share_of_labels_the_memory_is_made_of_those_parts_alone(tmp_path):
    recording = small_recording(tmp_path / "rec", Order(size=(32, 32), per_label=12))
    recipe = quick_recipe("targets.label_share=0.4")
    parts, stage = training_parts(recording, recipe), recipe.all_stages()[-1]
    batches = taught(tmp_path / "t", parts, recipe, stage)
    unlabelled = np.flatnonzero(np.isnan(parts.normal_N))
    assert 0 < len(unlabelled) < len(parts)
    assert len(batches.taught_N) == len(parts), "the others learn from the teachers"
    soft_VNK = batches.targets.soft_labels[:, 0]
    assert np.isfinite(soft_VNK).all()
    assert soft_VNK[:, unlabelled].max() < 1.0
    assert np.isfinite(batches.targets.map).all()


def test_a_backbone_of_a_later_stage_is_missed_before_the_first_stage_is_trained(own, tmp_path):
    recipe, stage = staged([own], 'teacher.backbones=["/no/such/folder"]')
    stage = msgspec.structs.replace(stage, backbones=("efficientnet_lite2",))
    parts = training_parts(own, recipe)
    planned = [(tmp_path / name, parts, each) for name, each in
               (("a", stage), ("b", recipe.all_stages()[-1]))]  # fmt: skip
    with pytest.raises(InputError, match="/no/such/folder"):
        look_over(planned, recipe, Student(parts.spec, recipe))


NO_WAY = tuple(f"augment.defect_{shape}=0" for shape in ("patch", "scar", "perlin", "blob"))


def test_made_defects_that_nothing_can_make_are_refused_where_they_are_all_there_is(tmp_path):
    normal = small_recording(tmp_path / "a", Order(labels=("ok",), size=(32, 32)))
    defects = small_recording(tmp_path / "b", Order(size=(32, 32)))
    none = (*NO_WAY, "augment.sensor_fault=0")
    for recording, overrides, refused in (
        (normal, none, True),
        (normal, (*none, "targets.broken_share=0"), False),
        (normal, (*none, "targets.copies=0"), False),
        (normal, NO_WAY, False),  # windows can be broken still
        (defects, none, False),
    ):
        recipe = quick_recipe(*overrides)
        parts, stage = training_parts(recording, recipe), recipe.all_stages()[-1]
        if not refused:
            refuse_unanswerable(parts, recipe, stage)
            continue
        with pytest.raises(InputError, match=r"made defects in 50% of the copies"):
            refuse_unanswerable(parts, recipe, stage)


def test_a_student_is_standardised_by_all_recordings_of_a_stage(own, tmp_path, monkeypatch):
    monkeypatch.setattr(standardisation, "_FIT_PARTS", 6)
    others = [
        small_recording(tmp_path / "a", Order(size=(32, 32), channels=()), seed=1),
        small_recording(tmp_path / "b", Order(size=(32, 32)), seed=2),
    ]
    recipe, stage = staged(others)
    parts = parts_of_stage(stage, training_parts(own, recipe), recipe)
    batches = taught(tmp_path / "t", parts, recipe, stage)
    assert batches.targets.readings is not None
    student = Student(parts.spec, recipe)
    fit_standardisation(student, batches.targets, batches.copies, first_stage=True)
    windows = [parts.window(index) for index in (18, 21, 25, 28, 32, 35)]
    expected_C = torch.from_numpy(np.stack(windows)).mean((0, 2))
    torch.testing.assert_close(student.sensor_tokens.frames.mean_C, expected_C)

    recipe, stage = staged(others[:1])
    parts = parts_of_stage(stage, training_parts(own, recipe), recipe)
    silent_ones = taught(tmp_path / "s", parts, recipe, stage)
    assert silent_ones.targets.readings is None, "no room is taken for windows that nobody has"
    assert not silent_ones.piece(0, 0, 0, 1).sensor_BCT.any()
