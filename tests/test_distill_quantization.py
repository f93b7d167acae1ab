"""A student trained in INT8 by itself in float: what training plays, and what is left of it."""

import json
import os
import shutil
import signal
from argparse import Namespace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from small_distillation import (
    VIBRATION,
    Order,
    changed_rows,
    distilled,
    quick_recipe,
    silent,
    small_recording,
)

from distill.checkpoint import (
    Checkpoint,
    Int8Ranges,
    RunRecord,
    ScoreMovement,
    StudentScorer,
    checkpoint_from_run,
    read_record,
)
from distill.journal.news import AllOf
from distill.quantization.int8 import InputRange, weight_in_int8
from distill.quantization.layers import as_trained, put_in_int8, take_out_of_int8
from distill.quantization.movement import movement_remarks
from distill.quantization.order import QuantizeOrder, order_for
from distill.quantization.quantize import came_nearer, quantize
from distill.students.student import EMBEDDINGS, HEADS, Student
from distill.training.processes import accelerator_for
from distill.training.run_folders import RunFolders, make_room
from edge.cli.distill_quantize import _tell
from edge.cli.main import main
from edge.errors import AnswerIsNo, InputError
from edge.prepare import model_inputs
from edge.recording.format import Recording
from edge.sample import Channel
from export.calibration import calibration_set
from export.quantization.prepared import prepared_student
from export.quantization.trained_ranges import calibrated_ranges, take_trained_ranges

SMALL = Order(size=(32, 32), per_label=12)
QUICKLY = ("quantize.epochs=2", "quantize.warmup_steps=1", "quantize.learning_rate=0.001")
KEPT = (*HEADS, *EMBEDDINGS)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return small_recording(tmp_path_factory.mktemp("line") / "rec", SMALL)


@pytest.fixture(scope="module")
def trained(line: Recording, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    distilled(line, folder / "run", quick_recipe("train.epochs=1"))
    return folder / "run"


@pytest.fixture(scope="module")
def ranges(trained: Path, line: Recording) -> Int8Ranges:
    checkpoint = checkpoint_from_run(trained)
    calibration = calibration_set(line, checkpoint.spec, samples=128)
    return calibrated_ranges(checkpoint.student, calibration, kept_float=KEPT)


def quantized(order: QuantizeOrder, ranges: Int8Ranges, out: Path, journal=None) -> RunRecord:
    folders = RunFolders(out, learns_from=order.resume_key)
    unfinished = folders.unfinished.exists()
    make_room(folders, order.recipe, resume=unfinished, force=False)
    accelerator = accelerator_for(order.recipe.train)
    return quantize(order, lambda _student: ranges, folders, silent, journal, accelerator)


@pytest.fixture(scope="module")
def own(trained: Path, line: Recording, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By the real command, which calibrates by itself."""
    folder = tmp_path_factory.mktemp("own") / "run2"
    changes = [word for change in QUICKLY for word in ("--set", change)]
    words = ["distill", line.folder, "--quantize", trained, "--out", folder, *changes]
    status = main([*map(str, words)])
    assert status == (0 if came_nearer(read_record(folder)) else 1)
    return folder


def test_the_int8_self_is_a_run_that_says_whose_it_is(own: Path, trained: Path, line: Recording):
    record, before = read_record(own), read_record(trained)
    made = record.int8
    assert made is not None
    assert made.weights_digest == before.weights_digest != record.weights_digest
    assert made.recording_digest == before.recording_digest == line.digest()
    assert record.recipe == before.recipe
    assert [stage.name for stage in record.stages] == ["line", "int8"]
    assert record.spec.rule != before.spec.rule
    assert record.spec.classes == before.spec.classes
    assert len(record.losses_by_epoch) == 2
    assert set(record.losses_by_epoch[0]) == {"soft_labels", "score", "map", "features"}
    assert made.before.samples == made.after.samples == 36
    assert made.before != made.after
    shown = {"curves.png", "journal.jsonl", "tensorboard"}
    assert {path.name for path in own.iterdir()} == {p.name for p in trained.iterdir()} | shown


def test_its_weights_lie_where_int8_has_them_and_its_ranges_were_learned(
    own: Path, trained: Path, ranges: Int8Ranges
):
    made = read_record(own).int8
    assert made is not None
    assert made.calibrated == ranges
    assert [one.layers for one in made.inputs] == [one.layers for one in ranges.inputs]
    assert all(
        learned.covered != begun.covered and abs(learned.covered / begun.covered - 1.0) < 0.1
        for learned, begun in zip(made.inputs, ranges.inputs, strict=True)
    )
    student, old = checkpoint_from_run(own).student, checkpoint_from_run(trained).student
    assert student.state_dict().keys() == old.state_dict().keys()
    for one in made.inputs:
        for layer in one.layers:
            weight = student.get_submodule(layer).weight
            assert not torch.equal(weight, old.get_submodule(layer).weight)
            torch.testing.assert_close(weight, weight_in_int8(weight, 0), rtol=1e-6, atol=0.0)
            codes = (weight / (weight.abs().amax(1, keepdim=True) / 127)).detach()
            torch.testing.assert_close(codes, codes.round(), rtol=0.0, atol=1e-3)
    answers = zip(student.teacher_heads.parameters(), old.teacher_heads.parameters(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in answers)


def test_training_plays_what_export_writes_to_the_last_bits(own: Path, line: Recording):
    checkpoint, made = checkpoint_from_run(own), read_record(own).int8
    assert made is not None
    prepared = prepared_student(checkpoint.student, checkpoint.spec, kept_float=KEPT)
    take_trained_ranges(prepared, made.inputs)
    inputs = [model_inputs(line.read_sample(row), checkpoint.spec) for row in line.rows_in("test")]
    with prepared.playing("int8", prepared.units):
        exported = [prepared.score(one).anomaly_score for one in inputs]
    as_float = [prepared.score(one).anomaly_score for one in inputs]
    put_in_int8(checkpoint.student, made.inputs, learn_ranges=False)
    scorer = StudentScorer(checkpoint.student, checkpoint.spec)
    played = [scorer.score(one).anomaly_score for one in inputs]
    torch.testing.assert_close(torch.tensor(played), torch.tensor(exported), rtol=0.0, atol=2e-4)
    moved = max(abs(mine - theirs) for mine, theirs in zip(exported, as_float, strict=True))
    assert moved > 2e-4  # else this would say nothing


def test_experts_are_trained_in_int8_too(line: Recording, trained: Path):
    record = read_record(trained)
    shape = msgspec.structs.replace(record.recipe.student, experts=4)
    recipe = msgspec.structs.replace(record.recipe, student=shape)
    torch.manual_seed(0)
    student = Student(record.spec, recipe).eval()
    calibration = calibration_set(line, record.spec, samples=32)
    ranges = calibrated_ranges(student, calibration, kept_float=KEPT)
    layers = [layer for one in ranges.inputs for layer in one.layers]
    assert "joint_blocks.blocks.0.mlp.up_EDU" in layers
    names = set(student.state_dict())
    prepared = prepared_student(student, record.spec, kept_float=KEPT)
    take_trained_ranges(prepared, ranges.inputs)
    inputs = model_inputs(line.read_sample(line.rows[0]), record.spec)
    as_float = prepared.score(inputs)
    with prepared.playing("int8", prepared.units):
        exported = prepared.score(inputs)
    put_in_int8(student, ranges.inputs, learn_ranges=True)
    played = StudentScorer(student, record.spec).score(inputs)
    assert abs(played.anomaly_score - exported.anomaly_score) < 1e-5
    assert as_float.anomaly_score != exported.anomaly_score
    # A layer that several share a range with has it once more by each name.
    assert set(student.state_dict()) > names
    tensors = [torch.tensor(inputs[tensor.name]) for tensor in record.spec.inputs()]
    student(*tensors)[1].sum().backward()
    assert student.joint_blocks.blocks[0].mlp.up_EDU.grad.abs().sum() > 0
    assert as_trained(student, ranges.inputs)[0].layers == ranges.inputs[0].layers
    take_out_of_int8(student)
    assert set(student.state_dict()) == names
    weight = student.joint_blocks.blocks[0].mlp.up_EDU
    torch.testing.assert_close(weight, weight_in_int8(weight, 2), rtol=1e-6, atol=0.0)


def test_a_range_learns_by_what_it_clips_and_what_it_rounds():
    """LSQ's gradient of the step s (Esser et al., eq. 3): round(x/s) - x/s inside, 127 beyond."""
    x = torch.tensor([0.3, 10.2, -500.0, 500.0], requires_grad=True)
    one = InputRange(127.0, learns=True)  # a step of 1
    one(x).sum().backward()
    assert torch.equal(x.grad, torch.tensor([1.0, 1.0, 0.0, 0.0]))
    step_gradient = (0.0 - 0.3) + (10.0 - 10.2) - 127.0 + 127.0
    share = 1.0 / (4 * 127) ** 0.5
    assert one.log_range.grad.item() == pytest.approx(step_gradient * share, rel=1e-4)
    assert one(x).tolist() == pytest.approx([0.0, 10.0, -127.0, 127.0], rel=1e-5)


class _Stopped(AllOf):
    """Asks the training to stop after some steps, as a person does with Ctrl-C."""

    def step(self, news):
        if news.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_training_stopped_and_resumed_has_the_weights_and_ranges_of_the_unbroken_one(
    trained: Path, line: Recording, ranges: Int8Ranges, own: Path, tmp_path: Path
):
    order = order_for(trained, line, QUICKLY)
    with pytest.raises(KeyboardInterrupt):
        quantized(order, ranges, tmp_path / "run2", _Stopped())
    assert not (tmp_path / "run2").exists()
    kept = tmp_path / "run2.unfinished" / "int8.json"
    whole = kept.read_bytes()
    kept.write_bytes(whole[:-5])
    with pytest.raises(InputError, match="Begin again with --force"):
        quantized(order, ranges, tmp_path / "run2")
    kept.write_bytes(whole)
    others = msgspec.structs.replace(ranges, method="another", inputs=ranges.inputs[:1])
    record = quantized(order, others, tmp_path / "run2")  # is not asked again
    assert record.int8 == read_record(own).int8
    weights = [checkpoint_from_run(run).student.state_dict() for run in (own, tmp_path / "run2")]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_record_that_does_not_fit_its_weights_is_named(own: Path, tmp_path: Path):
    run = Path(shutil.copytree(own, tmp_path / "run"))
    record = json.loads((run / "run.json").read_bytes())
    record["recipe"]["student"]["hidden"] += 8
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"weights of the student that run\.json describes"):
        checkpoint_from_run(run)


def test_parts_need_no_labels_and_ranges_may_stay_as_calibrated(
    trained: Path,
    line: Recording,
    ranges: Int8Ranges,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    opened = []

    def counted(folder: Path) -> Checkpoint:
        opened.append(folder)
        return checkpoint_from_run(folder)

    monkeypatch.setattr("distill.quantization.quantize.checkpoint_from_run", counted)

    def unlabelled(row):
        return {**row, "label": ""} if row["split"] == "train" else row

    recording = changed_rows(line, tmp_path / "unlabelled", unlabelled)
    order = order_for(trained, recording, (*QUICKLY, "quantize.learn_ranges=false"))
    record = quantized(order, ranges, tmp_path / "run2")
    assert record.parts_by_label["unlabelled"] == 36
    assert record.losses_by_epoch[0]["score"] > 0.0
    assert record.int8 is not None
    begun = [one.covered for one in ranges.inputs]
    assert [one.covered for one in record.int8.inputs] == pytest.approx(begun, rel=1e-6)
    assert opened == [trained], "large weights are to be read and hashed once"


def test_a_training_that_made_nothing_better_says_so():
    near_N = np.linspace(0.001, 0.002, 9)
    far_N = near_N + np.linspace(0.001, 0.0011, 9)
    assert movement_remarks(far_N, near_N, "RUN") == ()
    (said,) = movement_remarks(near_N, far_N, "RUN")
    assert "did NOT bring the INT8 self nearer to its float teacher: export RUN" in said
    assert "did NOT bring" in movement_remarks(near_N, near_N, "RUN")[-1]


def test_a_gain_that_may_be_chance_is_called_that():
    before_N = np.array([0.0010, 0.0004, 0.0012, 0.0006, 0.0009, 0.0011, 0.0008, 0.0010])
    moved_N = np.array([3, -4, 2, 4, -3, 1, -2, 1]) * 1e-4
    (said,) = movement_remarks(before_N, before_N - moved_N, "RUN")
    error = moved_N.std(ddof=1) / 8**0.5 * 2.364624  # Student's t for 7 degrees of freedom
    between = f"{moved_N.mean() - error:+.5f} and {moved_N.mean() + error:+.5f}"
    assert (
        f"8 held-out samples are too few to tell what training did from chance: it brought the \
score between {between} nearer"
        in said
    )
    (said,) = movement_remarks(before_N[:1], before_N[:1] / 2, "RUN")
    assert said.startswith("1 held-out samples are too few")


@pytest.mark.parametrize("nearer", [True, False])
def test_what_to_export_is_what_is_nearer(
    own: Path, trained: Path, capsys: pytest.CaptureFixture[str], nearer: bool
):
    record = read_record(own)
    near, far = ScoreMovement(9, 0.001, 0.01), ScoreMovement(9, 0.002, 0.01)
    before, after = (far, near) if nearer else (near, far)
    made = msgspec.structs.replace(record.int8, before=before, after=after)
    words = Namespace(out=own, quantize=trained, recording=Path("rec"))
    _tell(msgspec.structs.replace(record, int8=made), words)
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"edge export {own if nearer else trained} --calibration rec" in last


def test_a_training_that_diverges_names_the_key_that_quantize_takes(
    trained: Path, line: Recording, ranges: Int8Ranges, tmp_path: Path
):
    order = order_for(trained, line, (*QUICKLY[:2], "quantize.learning_rate=1e30"))
    with pytest.raises(AnswerIsNo, match=r"--set quantize\.learning_rate=\.\.\."):
        quantized(order, ranges, tmp_path / "run2")


def test_few_parts_are_visited_often_and_keep_as_many_copies_as_that(
    trained: Path, line: Recording, tmp_path: Path
):
    """36 parts in batches of 8, for 2 epochs; of one part no more copies than visits are seen."""

    def copies(recording: Recording, *overrides: str) -> int:
        order = order_for(trained, recording, (*QUICKLY, "targets.copies=6", *overrides))
        return order.recipe.targets.copies

    assert len(line.rows_in("train")) == 36
    assert copies(line) == 2, "16 draws are fewer than parts: each is visited once an epoch"
    assert copies(line, "train.min_steps_per_epoch=5") == 4, "40 draws: some twice an epoch"
    assert copies(line, "train.min_steps_per_epoch=16") == 6, "128 draws: up to 4 times"
    assert copies(line, "train.min_steps_per_epoch=16", "targets.copies=1") == 1
    five = [row.sample_id for row in line.rows_in("train")][:5]
    few = changed_rows(
        line,
        tmp_path / "few",
        lambda row: row if row["split"] != "train" or row["sample_id"] in five else None,
    )
    assert copies(few, "train.min_steps_per_epoch=2") == 4, "a batch is no larger than 5 parts"


def refusal_of(run: Path, recording: Recording, *overrides: str) -> str:
    with pytest.raises(InputError) as refused:
        order_for(run, recording, overrides)
    return str(refused.value)


def test_what_cannot_teach_its_int8_self_is_refused(
    trained: Path, own: Path, line: Recording, tmp_path: Path
):
    assert "found the INT8 self of another run" in refusal_of(own, line)
    assert "expected a run" in refusal_of(tmp_path / "nothing", line)
    foreign = (VIBRATION[0], Channel("current", "A", 12000.0))
    other = small_recording(tmp_path / "foreign", Order(size=(32, 32), channels=foreign))
    assert "current" in refusal_of(trained, other)
    silent_line = small_recording(tmp_path / "silent", Order(size=(32, 32), channels=()))
    assert "channels" in refusal_of(trained, silent_line)
    renamed = Order(size=(32, 32), labels=("good", "scratch"))
    assert "normal class 'ok'" in refusal_of(trained, small_recording(tmp_path / "ok", renamed))
    untaught = changed_rows(line, tmp_path / "untaught", lambda row: {**row, "split": "val"})
    assert "split 'train'" in refusal_of(trained, untaught)
    bad = changed_rows(
        line,
        tmp_path / "bad",
        lambda row: None if (row["split"], row["label"]) == ("val", "ok") else row,
    )
    assert "expected normal parts" in refusal_of(trained, bad)
    assert "another 'student'" in refusal_of(trained, line, "student.width=32")
    assert "unknown key" in refusal_of(trained, line, "quantize.epoch=3")
    assert "Say --set quantize.epochs" in refusal_of(trained, line, "train.epochs=30")
    nothing = ("labels", "soft_labels", "score", "map", "features")
    assert "at least one loss" in refusal_of(trained, line, *(f"loss.{n}=0.0" for n in nothing))


def test_a_student_without_anything_wide_enough_for_int8_is_refused(line: Recording, trained: Path):
    record = read_record(trained)
    shape = msgspec.structs.replace(record.recipe.student, width=8, heads=1, hidden=8)
    student = Student(record.spec, msgspec.structs.replace(record.recipe, student=shape))
    calibration = calibration_set(line, record.spec, samples=32)
    with pytest.raises(AnswerIsNo, match="nothing that INT8 would make faster"):
        calibrated_ranges(student, calibration, kept_float=KEPT)


def test_contradictions_on_the_command_line_are_refused(
    trained: Path, line: Recording, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["distill", str(line.folder), "--quantize", str(trained), "--out"]
    out = str(tmp_path / "run2")
    assert main([*words, out, "--init-from", "weights.safetensors"]) == 2
    assert "Leave out --init-from" in capsys.readouterr().err
    assert main([*words, out, "--teacher", "efficientnet_lite2"]) == 2
    assert "Leave out --teacher" in capsys.readouterr().err
    for more in (["--recipe", "tiny"], []):
        with pytest.raises(SystemExit):
            main([*(words if more else [*words[:2], "--out"]), out, *more])
        assert "--quantize" in capsys.readouterr().err
    few = small_recording(tmp_path / "few", Order(size=(32, 32), per_label=2))
    assert main(["distill", str(few.folder), *words[2:], out]) == 2
    said = capsys.readouterr().err
    assert "at least 32 calibration samples" in said
    assert "Give a recording with 32 or more parts in 'train'; or" in said
    assert f"edge export {trained} --calibration {few.folder} --precision fp16" in said
    assert main([*words, str(trained)]) == 2  # a run that is there is kept
    assert read_record(trained).int8 is None
    assert not Path(out + ".unfinished").exists()


def test_corrupt_weights_are_refused_before_any_work(
    trained: Path, line: Recording, ranges: Int8Ranges, tmp_path: Path
):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_bytes((trained / "run.json").read_bytes())
    (run / "student.pt").write_bytes((trained / "student.pt").read_bytes()[:-1000])
    with pytest.raises(InputError, match="found other weights"):
        quantized(order_for(run, line, QUICKLY), ranges, tmp_path / "run2")
    assert not (tmp_path / "run2.unfinished" / "targets").exists()
