"""What each training step asks of the student, by what it shows and what is known of it."""

import pickle
from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_distillation import Order, quick_recipe, silent, small_recording
from torch.utils.data import DataLoader

from distill.augment.copies import Copies
from distill.dataset import training_parts
from distill.students.student import Student
from distill.targets.compute import targets_in
from distill.training.batches import Batches
from distill.training.losses import losses_of
from edge.errors import InputError
from edge.recording.format import Recording

BOTH, IMAGE, SENSOR = (1.0, 1.0), (1.0, 0.0), (0.0, 1.0)


def batches_of(folder, recording, *overrides) -> Batches:
    recipe = quick_recipe(*overrides)
    parts = training_parts(recording, recipe)
    torch.manual_seed(0)
    student, stage = Student(parts.spec, recipe), recipe.all_stages()[-1]
    targets = targets_in(folder, parts, recipe, stage, student, silent)
    return Batches(Copies(parts, recipe), targets, recipe, stage)


def changed(recording: Recording, change) -> Recording:
    """The recording with each row as `change(number, row)` makes it."""
    lines = (recording.folder / "samples.jsonl").read_bytes().splitlines()
    rows = [change(number, msgspec.json.decode(line)) for number, line in enumerate(lines)]
    content = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
    (recording.folder / "samples.jsonl").write_bytes(content)
    return Recording.open(recording.folder)


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    """Labelled throughout; every modality withheld often."""
    folder = tmp_path_factory.mktemp("batches")
    recording = small_recording(folder / "rec", Order(size=(32, 32)))
    overrides = ("train.withhold=0.4", "targets.teacher_share=0.2")
    return batches_of(folder / "targets", recording, *overrides)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Some parts unlabelled, some without a window, and every loss asked for."""
    folder = tmp_path_factory.mktemp("mixed")
    recording = changed(small_recording(folder / "rec", Order(size=(32, 32))), _spoil_some)
    losses = ("loss.summary=0.5", "loss.window=0.5", "teacher.sensor_epochs=2")
    return batches_of(folder / "targets", recording, "train.withhold=0.4", *losses)


def _spoil_some(number, row):
    if row["split"] == "train" and number % 4 == 0:
        row["label"] = ""
    if number % 5 == 1:
        del row["sensor"], row["sensor_digest"]
    return row


def rows_of(batches, epochs=8):
    """Each part shown over some epochs: (what is shown, its lesson, as a table of values)."""
    rows = []
    for epoch in range(epochs):
        for step in range(batches.steps_per_epoch):
            batch = batches.piece(epoch, step, 0, 1)
            lesson = {
                name: value.numpy()
                for name, value in batch.lesson._asdict().items()
                if isinstance(value, torch.Tensor)
            }
            for place, sample in enumerate(batch.samples):
                row = {name: values[place] for name, values in lesson.items()}
                size = len(batch.samples)
                rows.append((sample, tuple(row["present_B2"].tolist()), size, row))
    return rows


def index_of(batches, sample):
    return [row.sample_id for row in batches.copies.parts.rows].index(sample)


def test_a_whole_part_is_asked_for_its_label_first(batches):
    whole = [(size, row) for _, shown, size, row in rows_of(batches) if shown == BOTH]
    assert whole
    for size, row in whole:
        assert row["label_weight_B"] == pytest.approx(0.8 / size)
        assert row["soft_weight_B"] == pytest.approx(0.2 / size)
        assert abs(row["score_B"] - float(row["label_B"] != 0)) <= 0.2


@pytest.mark.parametrize(("shown", "view"), [(IMAGE, 1), (SENSOR, 2)])
def test_where_one_modality_is_withheld_the_teacher_says_what_the_other_shows(batches, shown, view):
    asked = [(sample, size, row) for sample, seen, size, row in rows_of(batches) if seen == shown]
    assert asked
    for sample, size, row in asked:
        known = batches.targets.soft_labels[view, 0, index_of(batches, sample)]
        assert np.abs(known - row["soft_BK"]).max() < 1e-6
        assert row["label_weight_B"] == 0.0
        assert row["soft_weight_B"] == pytest.approx(1.0 / size)
        assert row["score_B"] == pytest.approx(1.0 - known[0], abs=1e-6)


def test_never_is_everything_withheld(batches, mixed):
    assert all(sum(shown) >= 1.0 for _, shown, _, _ in rows_of(batches) + rows_of(mixed))


def test_an_unlabelled_part_learns_from_the_teachers_alone(mixed):
    parts = mixed.copies.parts
    unlabelled = {row.sample_id for row in parts.rows if row.label == ""}
    rows = [row for sample, _, _, row in rows_of(mixed) if sample in unlabelled]
    assert len(rows) >= 40
    for row in rows:
        assert row["label_weight_B"] == 0.0
        assert row["soft_weight_B"] > 0.0
        assert row["score_B"] == pytest.approx(1.0 - row["soft_BK"][0], abs=1e-6)
    shown = [row for row in rows if row["present_B2"][0]]
    assert all(row["map_weight_B"] > 0.0 and row["seen_weight_B"] > 0.0 for row in shown)


def test_a_part_without_a_window_shows_its_image(mixed):
    for sample, shown, _, row in rows_of(mixed):
        if mixed.copies.parts.rows[index_of(mixed, sample)].sensor is None:
            assert shown == IMAGE
            assert row["window_weight_B"] == 0.0


def test_an_epoch_shows_every_part_and_each_step_is_the_same_whenever_it_is_asked_for(mixed):
    seen = [name for step in range(mixed.steps_per_epoch) for name in mixed.drawn(3, step).parts_B]
    assert set(seen) == set(range(len(mixed.copies.parts)))
    later = mixed.piece(3, 1, 0, 1)
    mixed.piece(5, 0, 0, 1)
    assert_equal(mixed.piece(3, 1, 0, 1), later)
    assert mixed.piece(4, 1, 0, 1).samples != later.samples


def assert_equal(one, other):
    assert one.samples == other.samples
    for a, b in zip(tensors_of(one), tensors_of(other), strict=True):
        assert torch.equal(a, b)


def tensors_of(batch):
    flat = [batch.stem_BGS, batch.sensor_BCT]
    for value in batch.lesson:
        flat += value if isinstance(value, tuple) else [value]
    return [tensor for tensor in flat if tensor is not None]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 5), st.integers(0, 2), st.integers(1, 11))
def test_pieces_are_the_whole_batch_cut_up_and_their_losses_have_its_mean(
    mixed_student, epoch, step, pieces
):
    mixed, student = mixed_student
    whole = mixed.piece(epoch, step, 0, 1)
    cut = [mixed.piece(epoch, step, piece, pieces) for piece in range(pieces)]
    filled = [piece for piece in cut if not is_idle(piece)]
    assert sum((piece.samples for piece in filled), ()) == whole.samples
    assert torch.equal(torch.cat([piece.stem_BGS for piece in filled]), whole.stem_BGS)
    assert torch.equal(torch.cat([piece.sensor_BCT for piece in filled]), whole.sensor_BCT)
    expected = losses(mixed, student, whole)
    found = [losses(mixed, student, piece) for piece in cut]
    for name, value in expected.items():
        mean = sum(piece[name] for piece in found) / pieces
        assert mean == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.fixture(scope="module")
def mixed_student(mixed):
    torch.manual_seed(1)
    student = Student(mixed.copies.parts.spec, mixed.recipe)
    return mixed, student.eval()


def test_every_loss_that_is_asked_for_is_taught_in_an_epoch(mixed_student):
    mixed, student = mixed_student
    steps = [mixed.piece(0, step, 0, 1) for step in range(mixed.steps_per_epoch)]
    found = [losses(mixed, student, batch) for batch in steps]
    assert all(max(batch[name] for batch in found) > 0.0 for name in found[0])


def is_idle(piece):
    """Whether it only keeps a process company: a batch of fewer parts than pieces."""
    return not piece.lesson.score_weight_B.any()


@torch.no_grad()
def losses(batches, student, batch):
    reading = student.read(batch.stem_BGS, batch.sensor_BCT, batch.lesson.present_B2)
    found = losses_of(reading, batch.lesson, batches.stage.loss)
    return {name: float(loss) for name, loss in found.items()}


def test_workers_make_the_batches_that_the_process_itself_makes(mixed):
    class Steps(torch.utils.data.Dataset):
        def __getitem__(self, step):
            return mixed.piece(1, step, 0, 2)

        def __len__(self):
            return mixed.steps_per_epoch

    loader = DataLoader(Steps(), batch_size=None, num_workers=2, collate_fn=lambda batch: batch)
    for step, made in enumerate(loader):
        assert_equal(made, mixed.piece(1, step, 0, 2))


def test_batches_cross_to_a_process_without_their_targets(mixed):
    message = pickle.dumps(mixed)
    assert len(message) < mixed.targets.stem.nbytes  # the smallest that must not be in it
    assert_equal(pickle.loads(message).piece(2, 0, 1, 3), mixed.piece(2, 0, 1, 3))


def test_training_reads_windows_that_were_read_already(tmp_path):
    recording = small_recording(tmp_path / "rec", Order(size=(32, 32)))
    batches = batches_of(tmp_path / "t", recording)
    before = batches.piece(0, 0, 0, 1)
    for row in recording.rows:
        recording.path_of(row.sensor).unlink()
    assert_equal(batches.piece(0, 0, 0, 1), before)
    parts = batches.copies.parts
    with pytest.raises(InputError, match="Restore the file"):
        replace(parts, readings=None).window(0)


LABELS_ALONE = (
    "loss.soft_labels=0.0",
    "loss.features=0.0",
    "targets.teacher_share=0.0",
    "train.withhold=0.4",
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Labels alone, and some parts without one."""
    folder = tmp_path_factory.mktemp("alone")
    recording = changed(small_recording(folder / "rec", Order(size=(32, 32))), _spoil_some)
    nobody = ('teacher.backbones=["/no/such/folder"]',)  # none is asked, so none is missed
    return batches_of(folder / "targets", recording, *LABELS_ALONE, *nobody)


def test_from_labels_alone_every_view_is_asked_for_the_label(alone):
    for _, _, size, row in rows_of(alone):
        assert row["label_weight_B"] == pytest.approx(1.0 / size)
        assert row["score_weight_B"] == pytest.approx(1.0 / size)
        assert row["score_B"] == float(row["label_B"] != 0)
        assert row["soft_weight_B"] == row["seen_weight_B"] == 0.0


def test_from_labels_alone_unlabelled_parts_are_not_drawn(alone):
    rows = alone.copies.parts.rows
    drawn = {sample for sample, _, _, _ in rows_of(alone)}
    assert drawn == {row.sample_id for row in rows if row.label}
    assert len(drawn) < len(rows)


def test_from_labels_alone_maps_come_from_masks_and_normal_parts_only(alone):
    parts = alone.copies.parts
    known = {"scratch": True, "ok": True, "hum": False}  # a hum shows nowhere, so nobody drew it
    for sample, shown, _, row in rows_of(alone):
        label = parts.rows[index_of(alone, sample)].label
        assert (row["map_weight_B"] > 0.0) == (known[label] and shown[0] > 0.0)
        assert row["map_Bhw"].any() == (label == "scratch")


def test_from_normal_labels_alone_made_defects_are_what_is_found(tmp_path):
    recording = small_recording(tmp_path / "rec", Order(labels=("ok",), size=(32, 32)))
    copies = ("targets.copies=4", "targets.broken_share=0.7")
    batches = batches_of(tmp_path / "t", recording, *LABELS_ALONE, *copies)
    scores = {float(row["score_B"]) for _, _, _, row in rows_of(batches)}
    assert scores == {0.0, 1.0}


def test_a_stage_that_asks_for_windows_alone_draws_only_parts_that_have_one(tmp_path):
    recording = changed(small_recording(tmp_path / "rec", Order(size=(32, 32))), _spoil_some)
    names = ("labels", "soft_labels", "score", "map", "features", "summary")
    batches = batches_of(
        tmp_path / "t",
        recording,
        *(f"loss.{name}=0.0" for name in names),
        "loss.window=1.0",
        "teacher.sensor_epochs=2",
    )
    assert (batches.copies.parts.windows_N[batches.taught_N]).all()
    assert len(batches.taught_N) == batches.copies.parts.windows_N.sum()


def test_a_loss_that_nobody_can_teach_is_refused(tmp_path):
    recording = small_recording(tmp_path / "rec", Order(labels=("ok", "hum"), size=(32, 32)))
    recording = changed(recording, lambda _, row: {**row, "label": row["label"].replace("ok", "")}
                        if row["split"] == "train" else row)  # fmt: skip
    with pytest.raises(InputError, match="normal parts"):
        batches_of(tmp_path / "t", recording)


def test_windows_that_no_teacher_saw_are_not_matched(tmp_path):
    recording = small_recording(tmp_path / "rec", Order(size=(32, 32)))
    batches = batches_of(tmp_path / "t", recording, "loss.window=1.0", "teacher.sensor_epochs=2")
    folder = batches.targets.folder
    window = np.load(folder / "window.npy", mmap_mode="r+")
    window[:, ::2] = np.nan  # as where too few parts have one for a teacher
    drawn = batches.drawn(0, 0)
    lesson = batches.piece(0, 0, 0, 1).lesson
    known = (drawn.parts_B % 2 == 1) & (drawn.shown_B2[:, 1] > 0)
    assert ((lesson.window_weight_B > 0).numpy() == known).all()
    assert lesson.window_BF.isfinite().all()
