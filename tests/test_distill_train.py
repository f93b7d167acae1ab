"""Whole distillations of small recordings, in every form the issue asks for."""

import argparse
import shutil
from pathlib import Path

import msgspec
import pytest
from small_distillation import (
    VIBRATION,
    Order,
    change_file,
    distilled,
    edge,
    evaluated,
    here,
    quick_recipe,
    quick_words,
    silent,
    small_recording,
)
from transformers import Dinov2Config, Dinov2Model

from distill.checkpoint import checkpoint_from_run, read_record, scorer_from_run
from distill.dataset import training_parts
from distill.recipe import StageRecipe, load_recipe
from distill.train import distill
from distill.training.run_folders import RunFolders, make_room
from edge.cli.distill import _input, _readable, add_arguments
from edge.cli.main import main
from edge.errors import AnswerIsNo, InputError
from edge.prepare import model_inputs
from edge.recording.format import Recording
from edge.sample import Channel


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return small_recording(tmp_path_factory.mktemp("train") / "rec", Order(size=(32, 32)))


ONE = (Channel("force", "N", 50.0),)
FORMS = {
    "grey, not square, one channel": Order(size=(96, 40), grey=True, channels=ONE, readings=61),
    "no sensor at all": Order(size=(48, 64), channels=()),
    "normal parts only": Order(labels=("good",), size=(48, 48)),
    "normal parts only, no sensor": Order(labels=("good",), channels=(), size=(32, 48)),
    "labels without masks": Order(labels=("ok", "hum"), masks=False, size=(32, 32)),
}


@pytest.mark.parametrize("form", FORMS)
def test_any_recording_of_the_layout_can_be_distilled(form: str, tmp_path: Path):
    order = FORMS[form]
    recording = small_recording(tmp_path / "rec", order)
    record = distilled(recording, tmp_path / "run")
    assert record.spec.rule is not None
    parts = {row.part_id for row in recording.rows_in("val") if row.label == order.labels[0]}
    assert record.spec.rule.threshold.normals == len(parts)
    assert (record.spec.rule.image_only is None) == (record.spec.sensor is None)
    assert record.normals is not None
    assert (record.normals.split, record.normals.samples) == ("train", 6)
    assert [channel.name for channel in record.normals.channels] == [c.name for c in order.channels]
    with scorer_from_run(tmp_path / "run") as scorer:
        for row in recording.rows_in("test"):
            sample = recording.read_sample(row)
            scores = scorer.score(model_inputs(sample, scorer.spec))
            assert 0.0 <= scores.anomaly_score <= 1.0


def test_a_sample_without_a_window_is_learned_from_its_image(tmp_path: Path):
    recording = small_recording(tmp_path / "rec", Order(size=(32, 32)))
    rows = (tmp_path / "rec" / "samples.jsonl").read_bytes().splitlines()
    tables = [msgspec.json.decode(row) for row in rows]
    for table in tables[::3]:
        del table["sensor"], table["sensor_digest"]
    lines = b"\n".join(map(msgspec.json.encode, tables))
    (tmp_path / "rec" / "samples.jsonl").write_bytes(lines + b"\n")
    recording = Recording.open(tmp_path / "rec")
    distilled(recording, tmp_path / "run")
    with scorer_from_run(tmp_path / "run") as scorer:
        assert evaluated(scorer, recording, "test").n == 18


def test_a_model_distilled_from_normal_parts_alone_finds_defects_it_never_saw(tmp_path: Path):
    order = Order(per_label=24, size=(64, 64))
    full = small_recording(tmp_path / "rec", order)
    tables = [
        line
        for line in (tmp_path / "rec" / "samples.jsonl").read_text().splitlines()
        if '"label":"ok"' in line or '"split":"test"' in line
    ]
    (tmp_path / "rec" / "samples.jsonl").write_text("\n".join(tables) + "\n")
    recording = Recording.open(full.folder)
    recipe = load_recipe(
        "tiny", ("targets.copies=5", "train.epochs=30", "train.batch=16",
                 "sensor.frame_samples=32", "train.warmup_steps=20", "student.width=48")
    )  # fmt: skip
    record = distilled(recording, tmp_path / "run", recipe)
    assert record.spec.classes == ("ok",)
    with scorer_from_run(tmp_path / "run") as scorer:
        found = evaluated(scorer, recording, "test")
    assert found.auroc is not None
    assert found.auroc > 0.9
    assert found.aupro is not None
    assert found.aupro > 0.5


def test_a_training_that_diverges_stops_with_the_next_step(recording: Recording, tmp_path: Path):
    with pytest.raises(AnswerIsNo, match="finite"):
        distilled(recording, tmp_path / "run", quick_recipe("train.learning_rate=1e30"))
    assert not (tmp_path / "run").exists()


def test_targets_can_be_shared_between_runs(recording: Recording, tmp_path: Path):
    shared = tmp_path / "targets"
    for name, rate in (("a", 0.001), ("b", 0.01)):
        recipe = quick_recipe(f"train.learning_rate={rate}")
        distill(recording, recipe, RunFolders(tmp_path / name, shared), silent)
        written = (shared / "line" / "stem.npy").stat().st_mtime_ns
        if name == "a":
            first = written
    assert written == first
    assert not (tmp_path / "a" / "targets").exists()


def test_an_existing_run_is_kept_unless_forced(recording: Recording, tmp_path: Path):
    recipe = quick_recipe()
    distilled(recording, tmp_path / "run")
    folders = RunFolders(tmp_path / "run")
    with pytest.raises(InputError, match="--force"):
        make_room(folders, recipe, resume=False, force=False)
    make_room(folders, recipe, resume=False, force=True)
    assert checkpoint_from_run(tmp_path / "run").spec.rule is not None  # until the new one is whole
    keepsake = tmp_path / "photos"
    keepsake.mkdir()
    with pytest.raises(InputError, match="deletes nothing"):
        make_room(RunFolders(keepsake), recipe, resume=False, force=True)


def test_there_is_nothing_to_resume_before_a_first_run(tmp_path: Path):
    with pytest.raises(InputError, match="Leave out --resume"):
        make_room(RunFolders(tmp_path / "run"), quick_recipe(), resume=True, force=False)


def test_too_few_normal_parts_for_the_budget_are_said_to_be_too_few(
    recording: Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["distill", recording.folder, "--recipe", "tiny", *quick_words()]
    assert main([*map(str, words), "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "4 normal parts (val) cannot support a false-alarm budget of 5.00%" in said
    assert "at least 19 are needed" in said


def test_a_changed_weight_is_noticed(recording: Recording, tmp_path: Path):
    distilled(recording, tmp_path / "run")
    weights = tmp_path / "run" / "student.pt"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match="other weights"):
        checkpoint_from_run(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(InputError, match="a run"):
        checkpoint_from_run(tmp_path / "run")


def test_a_hugging_face_teacher_can_lead(recording: Recording, tmp_path: Path):
    model = Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                     image_size=28, patch_size=14))  # fmt: skip
    model.save_pretrained(tmp_path / "dinov2")
    recipe = quick_recipe(f'teacher.backbones=["{tmp_path / "dinov2"}"]')
    assert distilled(recording, tmp_path / "run", recipe).spec.rule is not None


def test_channels_are_written_into_the_spec(recording: Recording):
    spec = training_parts(recording, quick_recipe()).spec
    assert spec.sensor is not None
    assert spec.sensor.channels == VIBRATION


def test_teachers_named_on_the_command_line_take_the_place_of_the_recipes(recording: Recording):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["--recipe", "tiny", "--out", "run", "--teacher", 'a "b"', "--teacher", "hub/näme"]
    recipe, _ = _input(parser.parse_args([str(recording.folder), *words]))
    assert recipe.teacher.backbones == ('a "b"', "hub/näme")
    assert recipe.all_stages()[-1].backbones == recipe.teacher.backbones


def test_the_record_says_what_the_teachers_hold_and_how_many_parts_nobody_labelled(
    recording: Recording, tmp_path: Path
):
    recipe = quick_recipe("targets.label_share=0.5")
    folders = [RunFolders(tmp_path / name, tmp_path / "targets") for name in ("a", "b")]
    records = [distill(recording, recipe, each, silent) for each in folders]
    for record in records:  # the second finds its targets made
        told = [remark for remark in record.remarks if "a memory of" in remark]
        assert len(told) == 1
        assert told[0].startswith("stage 'line', efficientnet_lite2: ")
        assert "unlabelled" in record.parts_by_label
        assert sum(record.parts_by_label.values()) == 18
    assert records[0].remarks == records[1].remarks


def test_two_recordings_of_one_name_are_both_on_record(recording: Recording, tmp_path: Path):
    other = small_recording(tmp_path / "other", Order(size=(32, 32)), seed=7)
    loss = msgspec.structs.replace(quick_recipe().loss, window=0.0)
    folders = (str(recording.folder), str(other.folder))
    general = StageRecipe(folders, ("efficientnet_lite2",), 1, 0.001, 2, loss)
    recipe = msgspec.structs.replace(quick_recipe(), stages={"general": general})
    stage = distilled(recording, tmp_path / "run", recipe).stages[0]
    assert sorted(stage.recordings.values()) == sorted([recording.digest(), other.digest()])


def test_a_sensor_teacher_that_learned_is_matched(recording: Recording, tmp_path: Path):
    recipe = quick_recipe("teacher.sensor_epochs=2", "loss.window=1.0", "loss.features=0")
    record = distilled(recording, tmp_path / "run", recipe)
    assert 0.0 < record.losses_by_epoch[0]["window"] < 2.0
    assert "features" not in record.losses_by_epoch[0], "a loss without a weight is not learned"


def test_unreadable_samples_are_skipped_only_where_a_person_asks_and_then_named(tmp_path: Path):
    recording = small_recording(tmp_path / "rec")
    torn, mute = recording.rows_in("train")[:2]
    change_file(recording, torn, "image", b"no picture")
    change_file(recording, mute, "sensor", b"")
    words = ["distill", tmp_path / "rec", "--recipe", "tiny", *quick_words(), "--out"]

    refused = edge(*words, tmp_path / "strict", env=here())
    asked = edge(*words, tmp_path / "run", "--skip-unreadable", env=here())

    assert refused.returncode == 2
    assert torn.image in refused.stderr
    assert asked.returncode == 0, asked.stderr
    (remark,) = [r for r in read_record(tmp_path / "run").remarks if r.startswith("skipped")]
    assert remark.startswith(f"skipped 2 of {len(recording.rows)} samples of {recording.folder}")
    assert f"{torn.sample_id} (" in remark
    assert f"{mute.sample_id} (" in remark


def test_unreadable_samples_of_a_stages_recording_are_skipped_and_named_for_it(
    recording: Recording, tmp_path: Path
):
    general = small_recording(tmp_path / "general", Order(size=(32, 32)), seed=7)
    torn = general.rows_in("train")[4]
    change_file(general, torn, "image", b"no picture")
    loss = msgspec.structs.replace(quick_recipe().loss, window=0.0)
    stage = StageRecipe((str(general.folder),), ("efficientnet_lite2",), 1, 0.001, 2, loss)
    recipe = msgspec.structs.replace(quick_recipe(), stages={"general": stage})
    with pytest.raises(InputError, match=torn.image):
        distilled(recording, tmp_path / "strict", recipe)

    own, opened, remarks = _readable(recording, recipe)
    folders = RunFolders(tmp_path / "run", opened=opened)
    record = distill(own, recipe, folders, silent, remarks=tuple(remarks))

    assert own is recording  # of which nothing is torn
    (remark,) = [one for one in record.remarks if one.startswith("skipped")]
    assert remark.startswith(f"skipped 1 of {len(general.rows)} samples of {general.folder} that")
    assert f"{torn.sample_id} (" in remark
    assert list(record.stages[0].recordings.values()) == [opened[general.folder].digest()]
    assert opened[general.folder].digest() != general.digest()


def test_targets_are_not_put_among_other_things(recording: Recording, tmp_path: Path):
    folders = RunFolders(tmp_path / "run", targets=recording.folder)
    with pytest.raises(InputError, match="a folder of targets, or one that is new or empty"):
        make_room(folders, quick_recipe(), resume=False, force=False)


def test_resume_and_force_contradict_each_other(recording: Recording, tmp_path: Path):
    words = ["distill", recording.folder, "--recipe", "tiny", "--out", tmp_path / "run"]
    asked = edge(*words, "--resume", "--force")
    assert asked.returncode == 2
    assert "not allowed with" in asked.stderr


def test_warm_up_longer_than_the_run_is_remarked(recording: Recording, tmp_path: Path):
    record = distilled(recording, tmp_path / "run", quick_recipe("train.warmup_steps=9999"))
    assert any("the learning rate never reached its height" in r for r in record.remarks)
