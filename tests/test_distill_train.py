"""Whole distillations of small recordings, in every form the issue asks for."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import msgspec
import pytest
import torch
from small_distillation import (
    VIBRATION,
    Order,
    distilled,
    edge,
    edge_command,
    here,
    quick_recipe,
    quick_words,
    silent,
    small_recording,
)
from transformers import Dinov2Config, Dinov2Model

from distill.checkpoint import checkpoint_from_run, read_record, scorer_from_run
from distill.evaluation.evaluate import evaluation_of
from distill.recipe import load_recipe
from distill.targets import targets_in
from distill.train import (
    RunFolders,
    distill,
    fresh_student,
    learning_rate_factor,
    make_room,
    training_parts,
)
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
        assert evaluation_of(scorer, recording, "test", silent).n == 18


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
        found = evaluation_of(scorer, recording, "test", silent)
    assert found.auroc is not None
    assert found.auroc > 0.9
    assert found.aupro is not None
    assert found.aupro > 0.5


def test_a_run_killed_and_resumed_has_the_weights_of_the_unbroken_one(
    recording: Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["distill", recording.folder, "--recipe", "tiny", *quick_words(("train.epochs=6",))]
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert edge(*words, "--out", unbroken, env=here()).returncode == 0

    process = subprocess.Popen(edge_command([*words, "--out", broken]), env=here())
    epoch = tmp_path / "broken.unfinished" / "epoch.pt"
    _wait_for(epoch, process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not broken.exists()
    kept = torch.load(epoch, weights_only=True)["epochs_done"]
    assert 1 <= kept < 6

    assert main([*map(str, words), "--out", str(broken)]) == 2
    assert "--resume" in capsys.readouterr().err
    other = [*map(str, words), "--set", "seed=9", "--out", str(broken), "--resume"]
    assert main(other) == 2
    assert "another recipe" in capsys.readouterr().err
    assert edge(*words, "--out", broken, "--resume", env=here()).returncode == 0

    weights = [checkpoint_from_run(run).student.state_dict() for run in (unbroken, broken)]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name
    assert read_record(unbroken).spec == read_record(broken).spec
    assert sorted(p.name for p in broken.iterdir()) == ["run.json", "student.pt", "targets"]


def test_ctrl_c_ends_in_one_line_that_says_how_to_go_on(recording: Recording, tmp_path: Path):
    words = ["distill", recording.folder, "--recipe", "tiny", *quick_words(("train.epochs=400",))]
    process = subprocess.Popen(
        edge_command([*words, "--out", tmp_path / "run"]),
        env=here(),
        stderr=subprocess.PIPE,
        text=True,
    )
    _wait_for(tmp_path / "run.unfinished" / "epoch.pt", process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in said
    assert "Traceback" not in said


def test_targets_that_were_stopped_go_on_with_the_next_round(recording: Recording, tmp_path: Path):
    recipe = quick_recipe("targets.copies=2")
    parts = training_parts(recording, recipe)
    student = fresh_student(parts, recipe)
    shown: list[str] = []

    def stops_in_round_two(title: str):
        shown.append(title)
        if "round 2" in title:
            raise KeyboardInterrupt
        return lambda items: items

    def tells(title: str):
        shown.append(title)
        return lambda items: items

    with pytest.raises(KeyboardInterrupt):
        targets_in(tmp_path / "broken", parts, recipe, student, stops_in_round_two)
    shown.clear()
    broken = targets_in(tmp_path / "broken", parts, recipe, student, tells)
    assert not any("round 1" in title for title in shown)
    whole = targets_in(tmp_path / "whole", parts, recipe, student, silent)
    for name in ("stem", "features", "map", "scores", "soft_labels"):
        assert (getattr(broken, name) == getattr(whole, name)).all(), name
    shown.clear()
    targets_in(tmp_path / "whole", parts, recipe, student, tells)
    assert shown == []


def test_targets_of_something_else_are_refused(recording: Recording, tmp_path: Path):
    recipe = quick_recipe()
    parts = training_parts(recording, recipe)
    student = fresh_student(parts, recipe)
    targets_in(tmp_path / "targets", parts, recipe, student, silent)
    other = quick_recipe("teacher.memory_patches=41")
    with pytest.raises(InputError, match="targets of this recording, teacher and recipe"):
        targets_in(tmp_path / "targets", parts, other, student, silent)
    elsewhere = small_recording(tmp_path / "rec", Order(size=(32, 32)), seed=5)
    with pytest.raises(InputError, match="targets of this recording"):
        targets_in(tmp_path / "targets", training_parts(elsewhere, recipe), recipe, student, silent)


def test_targets_are_not_strewn_into_a_folder_of_something_else(
    recording: Recording, tmp_path: Path
):
    recipe = quick_recipe()
    parts = training_parts(recording, recipe)
    with pytest.raises(InputError, match="something else there"):
        targets_in(recording.folder, parts, recipe, fresh_student(parts, recipe), silent)
    assert not (recording.folder / "index.json").exists()


def test_a_training_that_diverges_stops_with_the_next_step(recording: Recording, tmp_path: Path):
    with pytest.raises(AnswerIsNo, match="finite"):
        distilled(recording, tmp_path / "run", quick_recipe("train.learning_rate=1e30"))
    assert not (tmp_path / "run").exists()


def test_targets_can_be_shared_between_runs(recording: Recording, tmp_path: Path):
    shared = tmp_path / "targets"
    for name, rate in (("a", 0.001), ("b", 0.01)):
        recipe = quick_recipe(f"train.learning_rate={rate}")
        distill(recording, recipe, RunFolders(tmp_path / name, shared), silent)
        written = (shared / "stem.npy").stat().st_mtime_ns
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
    recipe = quick_recipe(f'teacher.backbone="{tmp_path / "dinov2"}"')
    assert distilled(recording, tmp_path / "run", recipe).spec.rule is not None


def test_the_learning_rate_rises_then_falls_to_nothing():
    train = quick_recipe("train.warmup_steps=10").train
    rates = [learning_rate_factor(step, 100, train) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == max(rates[5:15])
    assert rates[100] == pytest.approx(0.0)


def test_channels_are_written_into_the_spec(recording: Recording):
    spec = training_parts(recording, quick_recipe()).spec
    assert spec.sensor is not None
    assert spec.sensor.channels == VIBRATION


def _wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, "the process ended before its first epoch"
        assert time.monotonic() < deadline
        time.sleep(0.005)
