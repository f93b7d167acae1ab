"""Adapting a run to another line: whole adaptations of small students, and what they say."""

import contextlib
import resource
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from small_distillation import (
    VIBRATION,
    Order,
    changed_rows,
    distilled,
    edge_command,
    evaluated,
    here,
    quick_recipe,
    silent,
    small_recording,
)

from distill.adaptation.adapt import adapt
from distill.adaptation.not_learned import held_out_remarks, not_learned
from distill.adaptation.order import FEW_SHOT_PARTS, AdaptOrder, order_for
from distill.augment.copies import Copies
from distill.checkpoint import HeldOut, RunRecord, checkpoint_from_run, read_record, scorer_from_run
from distill.dataset import UNKNOWN
from distill.recipe import StageRecipe
from distill.students.relation import Relation
from distill.training.processes import accelerator_for
from distill.training.run_folders import RunFolders, make_room
from edge.cli.main import main
from edge.errors import AnswerIsNo, InputError, MachineError
from edge.recording.format import Recording
from edge.sample import Channel
from export.onnx_graph import example_inputs

SMALL = Order(size=(32, 32))
QUICKLY = ("adapt.few_shot_epochs=2", "adapt.warmup_steps=1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    distilled(small_recording(folder / "rec", SMALL), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def other_line(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return small_recording(tmp_path_factory.mktemp("other") / "rec", SMALL, seed=7)


def adapted(order: AdaptOrder, out: Path) -> RunRecord:
    folders = RunFolders(out, learns_from=order.name)
    make_room(folders, order.recipe, resume=False, force=False)
    return adapt(order, folders, silent, None, accelerator_for(order.recipe.train))


def test_an_adapted_run_is_an_ordinary_run_that_says_where_it_came_from(
    trained: Path, other_line: Recording, tmp_path: Path
):
    record = adapted(order_for(trained, other_line, QUICKLY), tmp_path / "run2")
    before = read_record(trained)
    assert record == read_record(tmp_path / "run2")
    assert record.adapted is not None
    assert record.adapted.weights_digest == before.weights_digest != record.weights_digest
    assert record.adapted.recording_digest == before.recording_digest
    assert record.recording_digest == other_line.digest() != before.recording_digest
    assert record.recipe == before.recipe
    assert record.adapted.few_shot
    assert record.adapted.parts == 5
    assert record.adapted.rank >= 1
    assert 0.0 < record.adapted.trained_share <= 0.01
    assert record.adapted.recipe.loss.features == 0.0 < before.recipe.loss.features
    assert record.adapted.recipe.loss.labels == before.recipe.loss.labels  # all classes were seen
    assert record.spec.classes == before.spec.classes
    assert record.spec.rule != before.spec.rule
    assert record.normals is not None  # of this line's parts, for `edge export` to compare by
    assert before.normals is not None
    assert (record.normals.split, record.normals.samples) == ("train", 6)
    assert record.normals.frame != before.normals.frame
    assert [stage.name for stage in record.stages] == ["line", "adapted"]
    assert sorted(p.name for p in (tmp_path / "run2").iterdir()) == sorted(
        p.name for p in trained.iterdir()
    )

    student, old = (checkpoint_from_run(run).student for run in (tmp_path / "run2", trained))
    weights, old_weights = student.state_dict(), old.state_dict()
    moved = {name for name, weight in weights.items() if not torch.equal(weight, old_weights[name])}
    assert any(name.startswith("heads.") for name in moved)
    assert any("blocks" in name for name in moved)
    assert all(name.startswith("heads.") or "blocks." in name for name in moved)
    with scorer_from_run(tmp_path / "run2") as scorer:
        assert evaluated(scorer, other_line, "test").n == 18
    traced = torch.export.export(student, example_inputs(record.spec), strict=False)
    assert set(traced.state_dict) <= set(old_weights)  # nothing of LoRA is left to export

    again = order_for(tmp_path / "run2", other_line, QUICKLY)  # it can be adapted once more
    assert again.recipe.loss == record.adapted.recipe.loss


def test_a_run_of_several_stages_is_adapted_from_its_last(other_line: Recording, tmp_path: Path):
    general = small_recording(tmp_path / "general", SMALL, seed=3)
    loss = msgspec.structs.replace(quick_recipe().loss, labels=0.0, soft_labels=0.0, score=0.0)
    stage = StageRecipe(
        recordings=(str(general.folder),),
        backbones=(),
        epochs=1,
        learning_rate=0.001,
        warmup_steps=1,
        loss=msgspec.structs.replace(loss, features=0.0),
    )
    recipe = msgspec.structs.replace(quick_recipe(), stages={"general": stage})
    distilled(small_recording(tmp_path / "rec", SMALL), tmp_path / "run", recipe)
    record = adapted(order_for(tmp_path / "run", other_line, QUICKLY), tmp_path / "run2")
    assert [one.name for one in record.stages] == ["general", "line", "adapted"]
    student, old = (checkpoint_from_run(tmp_path / run).student for run in ("run2", "run"))
    answers = zip(student.teacher_heads.parameters(), old.teacher_heads.parameters(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in answers)


def test_five_normal_parts_without_anything_held_out_are_enough_and_say_what_is_missing(
    trained: Path, other_line: Recording, tmp_path: Path
):
    def five_normal(row):
        """All of `train`, each sample a part of its own, and no window."""
        number = int(row["sample_id"].rpartition("_")[2])
        if row["split"] != "train" or row["label"] != "ok" or number > 12:
            return None
        row.pop("sensor"), row.pop("sensor_digest")
        return {**row, "part_id": row["sample_id"]}

    recording = changed_rows(other_line, tmp_path / "five", five_normal)
    assert len(recording.rows) == 5
    record = adapted(order_for(trained, recording, QUICKLY), tmp_path / "run2")
    told = record.adapted
    assert told is not None
    said = "\n".join(told.not_learned)
    assert "'scratch': not seen at all" in said
    assert "'hum': not seen at all" in said
    assert "'ok'" not in said  # five are enough to judge
    assert "would unlearn the others" in said
    assert told.recipe.loss.labels == told.recipe.loss.soft_labels == 0.0
    assert "no part has one, so only made defects" in said
    assert "the sensor: no part has a window" in said
    assert (told.before, told.after) == (None, None)
    assert record.spec.rule == read_record(trained).spec.rule
    remarks = "\n".join(record.remarks)
    assert "the thresholds are still those of" in remarks
    assert "nobody knows whether it helped" in remarks


def test_a_label_that_the_run_does_not_know_teaches_that_a_part_is_not_normal_and_no_class(
    trained: Path, other_line: Recording, tmp_path: Path
):
    def dented(row):
        return {**row, "label": "dent"} if row["label"] == "scratch" else row

    header = other_line.folder / "recording.json"
    recording = changed_rows(other_line, tmp_path / "dented", dented)
    path = recording.folder / header.name
    table = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode({**table, "classes": ["ok", "dent", "hum"]}))
    order = order_for(trained, Recording.open(recording.folder), QUICKLY)
    dents = [index for index, row in enumerate(order.parts.rows) if row.label == "dent"]
    assert len(dents) == 6
    assert (order.parts.labels_N[dents] == UNKNOWN).all()
    assert (order.parts.normal_N[dents] == 0.0).all()
    said = "\n".join(not_learned(order, relates=True))
    assert "label 'dent' (5 parts): the run has no such class" in said
    assert "class 'scratch': not seen at all" in said
    record = adapted(order, tmp_path / "run2")
    assert record.adapted is not None
    assert record.adapted.after is not None
    assert record.adapted.after.others == 12  # measured as not normal, known or not
    assert record.parts_by_label == {"ok": 6, "scratch": 0, "hum": 6}


def test_more_than_fifty_parts_are_adapted_to_the_ordinary_way(
    trained: Path, other_line: Recording, tmp_path: Path
):
    def of_split_train(count):
        return lambda row: {**row, "split": "train", "part_id": row["sample_id"]} if (
            int(row["sample_id"].rpartition("_")[2]) < count
        ) else None  # fmt: skip

    more = changed_rows(
        other_line, tmp_path / "more", of_split_train(17)
    )  # of each of three splits
    fewer = changed_rows(other_line, tmp_path / "fewer", of_split_train(16))
    many, few = order_for(trained, more), order_for(trained, fewer)
    assert (many.part_count, few.part_count) == (51, 48)
    assert FEW_SHOT_PARTS == 50
    assert (many.few_shot, few.few_shot) == (False, True)
    rates = many.record.recipe.adapt
    assert many.recipe.train.epochs == rates.epochs
    assert few.recipe.train.epochs == rates.few_shot_epochs
    assert few.recipe.train.learning_rate == rates.few_shot_learning_rate


def test_an_adaptation_killed_and_resumed_has_the_weights_of_the_unbroken_one(
    trained: Path, other_line: Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["adapt", trained, other_line.folder, "--set", "adapt.few_shot_epochs=10"]
    order = order_for(trained, other_line, ("adapt.few_shot_epochs=10",))
    adapted(order, tmp_path / "unbroken")
    broken = tmp_path / "broken"
    process = subprocess.Popen(edge_command([*words, "--out", broken]), env=here())
    states = tmp_path / "broken.unfinished" / "state"
    while process.poll() is None and not list(states.glob("stage-1-step-*[0-9]")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was done before it could be killed"
    assert not broken.exists()

    assert main([*map(str, words), "--out", str(broken)]) == 2
    assert "--resume" in capsys.readouterr().err
    other_run = tmp_path / "run"
    shutil.copytree(tmp_path / "unbroken", other_run)
    elsewhere = ["adapt", str(other_run), *map(str, words[2:]), "--out", str(broken), "--resume"]
    assert main(elsewhere) == 2  # the same recipe, but other weights to begin with
    capsys.readouterr()
    assert main([*map(str, words), "--out", str(broken), "--resume"]) == 0
    told = capsys.readouterr().out
    assert "5 parts, few-shot" in told
    assert f"needs 32 samples to calibrate on, and {other_line.folder} has 18" in told
    assert "--precision fp16 ships the run without any ranges. It need not be the rec" in told
    assert "not learned: class 'ok': 4 parts are too few to judge" in told
    assert "n = 6 normal, 12 others" in told

    weights = [checkpoint_from_run(tmp_path / run).student.state_dict() for run in
               ("unbroken", "broken")]  # fmt: skip
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_a_relation_of_image_and_window_that_does_not_hold_here_is_switched_off():
    random = torch.Generator().manual_seed(0)

    def line(parts: int, factor: float) -> tuple[torch.Tensor, torch.Tensor]:
        """What the image shows says what the sensor says, each line in its own way."""
        image_NS = torch.randn(parts, 12, generator=random)
        noise_NE = torch.randn(parts, 12, generator=random) * 0.1
        return image_NS, factor * image_NS + noise_NE

    relation = Relation(12, 12)
    relation.fit(*line(200, 1.0))
    relation.silence_if_foreign(*line(10, 1.0))
    assert relation.precision_P.any()
    image_NS, sensor_NE = line(10, -1.0)
    assert (relation.beyond_limit(relation(image_NS, sensor_NE)) > 0.0).any()
    relation.silence_if_foreign(image_NS, sensor_NE)
    assert not relation.precision_P.any()
    assert not (relation.beyond_limit(relation(image_NS, sensor_NE)) > 0.0).any()


def test_of_few_parts_the_normal_ones_get_made_defects_beside_the_labelled_ones(
    trained: Path, other_line: Recording
):
    order = order_for(trained, other_line, QUICKLY)
    copies = Copies(order.parts, order.recipe)
    broken = [any(copies.broken(index, number) for number in range(1, 9)) for index in range(18)]
    normal = (order.parts.normal_N == 1.0).tolist()
    assert broken == normal
    enough = Copies(replace(order.parts, few=False), order.recipe)
    assert not any(enough.broken(index, 1) for index in range(18))


def test_a_result_that_did_not_improve_is_said_plainly():
    better, worse = HeldOut(20, 20, 0.9, 0.3), HeldOut(20, 20, 0.8, 0.2)
    said = held_out_remarks(better, worse, "val", "RUN")
    assert "AUROC 0.9000 before, 0.8000 after" in said[0]
    assert "did NOT improve: keep RUN" in said[-1]
    assert len(held_out_remarks(worse, better, "val", "RUN")) == 1
    alone = [HeldOut(3, 0, None, loss) for loss in (0.3, 0.4)]
    said = held_out_remarks(alone[0], alone[1], "val", "RUN")
    assert "3 normal and 0 other held-out parts are too few" in said[1]
    assert "did NOT improve" in said[2]


def refusal_of(trained: Path, recording: Recording, *overrides: str) -> str:
    with pytest.raises(InputError) as refused:
        order_for(trained, recording, overrides)
    return str(refused.value)


def test_what_is_no_run_is_refused(trained: Path, other_line: Recording, tmp_path: Path):
    assert "expected a run" in refusal_of(tmp_path / "nothing", other_line)
    assert "expected a run" in refusal_of(other_line.folder, other_line)
    shutil.copytree(trained, tmp_path / "run")
    record = msgspec.json.decode((trained / "run.json").read_bytes())
    (tmp_path / "run" / "run.json").write_bytes(msgspec.json.encode({**record, "schema": 99}))
    assert "found schema 99" in refusal_of(tmp_path / "run", other_line)


def test_corrupt_weights_are_refused_before_any_work(
    trained: Path, other_line: Recording, tmp_path: Path
):
    shutil.copytree(trained, tmp_path / "run")
    with (tmp_path / "run" / "student.pt").open("r+b") as file:
        file.seek(1000)
        file.write(b"corrupt")
    with pytest.raises(InputError, match="found other weights"):
        adapted(order_for(tmp_path / "run", other_line), tmp_path / "run2")
    assert not (tmp_path / "run2.unfinished" / "targets").exists()


def test_an_adaptation_that_diverges_names_the_key_that_adapt_takes(
    trained: Path, other_line: Recording, tmp_path: Path
):
    for few_shot, key in ((True, "few_shot_learning_rate"), (False, "learning_rate")):
        order = order_for(trained, other_line, (*QUICKLY, f"adapt.{key}=1e30"))
        train = msgspec.structs.replace(order.recipe.train, learning_rate=1e30)
        recipe = msgspec.structs.replace(order.recipe, train=train)
        parts = replace(order.parts, few=few_shot)
        with pytest.raises(AnswerIsNo, match=rf"--set adapt\.{key}=\.\.\."):
            adapted(replace(order, parts=parts, recipe=recipe), tmp_path / key)


def test_a_recording_that_cannot_teach_this_run_is_refused(
    trained: Path, other_line: Recording, tmp_path: Path
):
    def split_or_label(row, **values):
        return {**row, **values}

    defective = changed_rows(
        other_line, tmp_path / "defective", lambda row: row if row["label"] != "ok" else None
    )
    assert "expected normal parts" in refusal_of(trained, defective)
    few = changed_rows(other_line, tmp_path / "few", lambda row: {**row, "part_id": "the one"})
    assert "found 1 (counted by part_id)" in refusal_of(trained, few)
    untaught = changed_rows(other_line, tmp_path / "untaught", lambda row: {**row, "split": "test"})
    assert "split 'train'" in refusal_of(trained, untaught)
    channels = (VIBRATION[0], Channel("current", "A", 12000.0))
    foreign = small_recording(tmp_path / "foreign", Order(size=(32, 32), channels=channels))
    assert "current" in refusal_of(trained, foreign)


def test_keys_that_the_weights_are_bound_to_cannot_be_set(trained: Path, other_line: Recording):
    assert "another 'student'" in refusal_of(trained, other_line, "student.width=32")
    assert "another 'teacher'" in refusal_of(trained, other_line, "teacher.feature_size=8")
    assert "unknown key" in refusal_of(trained, other_line, "adapt.epoch=3")
    nothing = ("loss.score=0.0", "loss.map=0.0", "loss.labels=0.0", "loss.soft_labels=0.0")
    assert "features alone" in refusal_of(trained, other_line, *nothing)


def test_an_existing_output_is_kept(trained: Path, other_line: Recording):
    words = ["adapt", str(trained), str(other_line.folder), "--out", str(trained)]
    before = (trained / "run.json").read_bytes()
    assert main(words) == 2
    assert main([*words[:-1], str(other_line.folder), "--force"]) == 2  # not a run
    assert (trained / "run.json").read_bytes() == before


@contextlib.contextmanager
def largest_file(size_bytes: int):
    """Let the system refuse larger files, as a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_told_and_what_was_written_goes_on(
    trained: Path, other_line: Recording, tmp_path: Path
):
    order = order_for(trained, other_line, QUICKLY)
    weights = (trained / "student.pt").stat().st_size
    with largest_file(weights // 2), pytest.raises(MachineError, match=r"room|disk"):
        adapted(order, tmp_path / "run2")
    assert not (tmp_path / "run2").exists()
    folders = RunFolders(tmp_path / "run2", learns_from=order.name)
    make_room(folders, order.recipe, resume=True, force=False)
    record = adapt(order, folders, silent, None, accelerator_for(order.recipe.train))
    assert record.adapted is not None
