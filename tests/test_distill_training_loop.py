"""One stage of training: its steps, its workers, its average, and what ends it."""

import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from benchmarks.big_step import measure
from small_distillation import Order, here, quick_recipe, silent, small_recording
from small_training import BARE, assert_same_weights, bare_recipe, trained, weights_of

from distill.augment.copies import Copies
from distill.checkpoint import student_from_run
from distill.dataset import training_parts
from distill.journal.news import AllOf
from distill.recipe import Recipe, StageRecipe
from distill.students.trunk import Block, BlockShape, layout_for
from distill.targets.compute import targets_in
from distill.train import fresh_student
from distill.training.averaging import keep_average, take_average
from distill.training.batches import Batches
from distill.training.learner import Learner
from distill.training.loop import Run
from distill.training.pieces import Pieces, read_ahead
from distill.training.processes import accelerator_for
from distill.training.saved_state import SavedStates
from distill.training.schedule import learning_rate_factor
from distill.training.standardisation import fit_standardisation
from edge.errors import AnswerIsNo, InputError, MachineError
from edge.recording.format import Recording


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return small_recording(tmp_path_factory.mktemp("loop") / "rec", Order(size=(32, 32)))


class Heard(AllOf):
    """A journal that keeps what it is told, and may act on a step."""

    def __init__(self, act=lambda step: None) -> None:
        super().__init__()
        self.steps, self.epochs, self.saves, self.act = [], [], [], act

    def step(self, news, /) -> None:
        self.steps.append(news)
        self.act(news.step)

    def epoch(self, news, /) -> None:
        self.epochs.append(news)

    def saved(self, step: int, /) -> None:
        self.saves.append(step)


def batches_of(recording: Recording, recipe: Recipe, folder: Path) -> Batches:
    (stage,) = recipe.all_stages()
    parts = training_parts(recording, recipe)
    student = fresh_student(parts, recipe)
    targets = targets_in(folder, parts, recipe, stage, student, silent)
    return Batches(Copies(parts, recipe), targets, recipe, stage)


def test_the_learning_rate_rises_then_falls_to_nothing():
    rates = [learning_rate_factor(step, 100, 10) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == max(rates[5:15])
    assert rates[100] == pytest.approx(0.0)


def test_the_journal_hears_every_step_and_epoch_and_save(recording: Recording, tmp_path: Path):
    recipe = bare_recipe("train.epochs=2", "train.min_steps_per_epoch=4", "train.warmup_steps=1")
    heard = Heard()
    record = trained(recording, tmp_path / "run", recipe, heard)
    assert [news.step for news in heard.steps] == list(range(1, 9))
    assert {news.steps for news in heard.steps} == {8}
    assert [news.epoch for news in heard.steps] == [1] * 4 + [2] * 4
    assert heard.steps[0].learning_rate > heard.steps[-1].learning_rate > 0.0
    assert all(news.gradient_norm > 0.0 for news in heard.steps)
    assert heard.saves == [4], "the last epoch's weights are the run itself"
    for number, losses in enumerate(record.losses_by_epoch):
        mine = [news.losses["score"] for news in heard.steps[4 * number : 4 * number + 4]]
        assert losses["score"] == pytest.approx(sum(mine) / 4)
        assert heard.epochs[number].losses == losses
        steps = heard.steps[4 * number : 4 * number + 4]
        assert heard.epochs[number].total == pytest.approx(sum(s.total for s in steps) / 4)


def test_a_batch_in_pieces_teaches_what_it_teaches_whole(recording: Recording, tmp_path: Path):
    still = ("student.dropout=0", "student.token_noise=0", "train.epochs=1")
    whole = trained(recording, tmp_path / "whole", bare_recipe(*still))
    pieces = trained(recording, tmp_path / "pieces", bare_recipe(*still, "train.accumulate=3"))
    for one, other in zip(whole.losses_by_epoch, pieces.losses_by_epoch, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    theirs = weights_of(tmp_path / "pieces")
    for name, tensor in weights_of(tmp_path / "whole").items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-4, rtol=1e-3)


def test_workers_make_the_very_same_pieces(recording: Recording, tmp_path: Path):
    recipe = quick_recipe("train.accumulate=2")
    batches = batches_of(recording, recipe, tmp_path / "targets")
    accelerator = accelerator_for(recipe.train)
    both = [
        read_ahead(Pieces(batches, recipe.train, accelerator), 1, 5, workers) for workers in (0, 2)
    ]
    count = 0
    for one, other in zip(*both, strict=True):
        assert one.number == other.number
        assert one.batch.samples == other.batch.samples
        assert_same(one.batch.stem_BGS, other.batch.stem_BGS)
        assert_same(one.batch.sensor_BCT, other.batch.sensor_BCT)
        for value, theirs in zip(one.batch.lesson, other.batch.lesson, strict=True):
            assert_same(value, theirs)
        count += 1
    assert count == 8, "4 steps of 2 pieces"


def assert_same(value, other) -> None:
    if isinstance(value, tuple):
        assert len(value) == len(other)
        for one, theirs in zip(value, other, strict=True):
            assert_same(one, theirs)
    elif value is None:
        assert other is None
    else:
        assert value.dtype == other.dtype
        assert torch.equal(value, other)


def test_a_run_with_workers_has_the_weights_of_one_without(recording: Recording, tmp_path: Path):
    trained(recording, tmp_path / "alone", bare_recipe())
    trained(recording, tmp_path / "workers", bare_recipe("train.workers=2"))
    assert_same_weights(tmp_path / "alone", tmp_path / "workers")


def test_a_killed_data_worker_ends_in_words_and_the_run_can_go_on(
    recording: Recording, tmp_path: Path
):
    recipe = bare_recipe("train.workers=1", "train.epochs=2", "train.min_steps_per_epoch=40")

    def kill(step: int) -> None:
        if step == 45:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)

    with pytest.raises(MachineError, match=r"train\.workers.*--resume"):
        trained(recording, tmp_path / "run", recipe, Heard(kill))
    trained(recording, tmp_path / "run", recipe)
    trained(recording, tmp_path / "unbroken", recipe)
    assert_same_weights(tmp_path / "run", tmp_path / "unbroken")


def test_a_file_that_vanishes_is_named_by_the_worker_that_reads_it(tmp_path: Path):
    fragile = small_recording(tmp_path / "rec", Order(size=(32, 32)))
    recipe = bare_recipe("train.withhold=0")
    kept = batches_of(fragile, recipe, tmp_path / "targets")
    unread = replace(kept.targets, readings=None)  # as where windows are read from their files
    batches = Batches(Copies(training_parts(fragile, recipe), recipe), unread, recipe, kept.stage)
    for row in fragile.rows_in("train"):
        fragile.path_of(row.sensor).unlink()
    pieces = Pieces(batches, recipe.train, accelerator_for(recipe.train))
    with pytest.raises(InputError, match=r"train_\d+\.npy"):
        next(read_ahead(pieces, 0, 2, workers=1))


def test_a_training_that_diverges_stops_before_the_weights_and_keeps_the_batch(
    recording: Recording, tmp_path: Path
):
    recipe = bare_recipe("train.learning_rate=1e30", "train.warmup_steps=1")
    with pytest.raises(
        AnswerIsNo, match=r"finite.*samples train_.*--set train\.learning_rate=\.\.\."
    ):
        trained(recording, tmp_path / "run", recipe)
    assert not (tmp_path / "run").exists()
    (path,) = (tmp_path / "run.unfinished").glob("bad_batch-*.pt")
    (kept,) = torch.load(path, weights_only=True)
    assert set(kept["samples"]) <= {row.sample_id for row in recording.rows_in("train")}
    assert len(kept["samples"]) == len(kept["stem"]) == len(kept["sensor"])
    assert kept["lesson"]["present_B2"].shape == (len(kept["samples"]), 2)


def test_the_learning_rate_of_an_earlier_stage_has_a_key_of_its_own(tmp_path: Path):
    recipe = bare_recipe()
    earlier = StageRecipe(("rec",), (), 1, 0.01, 1, recipe.loss)
    recipe = msgspec.structs.replace(recipe, stages={"general": earlier})
    states, accelerator = SavedStates(tmp_path), accelerator_for(recipe.train)
    run = Run(recipe, accelerator, states, AllOf(), tmp_path, learning_rate_key="its.own")
    keys = [run.learning_rate_key_of(stage) for stage in recipe.all_stages()]
    assert keys == ["stages.general.learning_rate", "its.own"]


def test_the_piece_that_gave_no_number_is_kept_and_its_sample_named(
    recording: Recording, tmp_path: Path
):
    pieces = ("train.accumulate=8", "train.min_steps_per_epoch=6", "train.withhold=0")
    recipe = bare_recipe("student.stem='efficientnet_lite0'", *pieces)
    targets = tmp_path / "run.unfinished" / "targets" / "line"

    def spoil(step: int) -> None:
        if step == 1:
            np.load(targets / "stem.npy", mmap_mode="r+")[:, 7] = np.inf

    name = recording.rows_in("train")[7].sample_id
    with pytest.raises(AnswerIsNo, match=rf"samples {name}\. What was saved"):
        trained(recording, tmp_path / "run", recipe, Heard(spoil))
    (path,) = (tmp_path / "run.unfinished").glob("bad_batch-*.pt")
    (kept,) = torch.load(path, weights_only=True)
    assert kept["samples"] == [name]
    assert kept["stem"].isinf().all()


def test_the_average_is_that_of_the_formula():
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    keep_average(optimizer, 0.5)
    expected = None
    for step in range(1, 6):
        weight.grad = torch.tensor([1.0, -1.0])
        optimizer.step()
        decay = min(0.5, (1 + step) / (10 + step))
        now = weight.detach().clone()
        expected = now if expected is None else decay * expected + (1 - decay) * now
    assert not torch.allclose(weight, expected)
    take_average(optimizer)
    torch.testing.assert_close(weight.detach(), expected)


def test_the_exported_weights_are_the_average(recording: Recording, tmp_path: Path):
    trained(recording, tmp_path / "last", bare_recipe())
    trained(recording, tmp_path / "average", bare_recipe("train.ema_decay=0.99"))
    last, average = weights_of(tmp_path / "last"), weights_of(tmp_path / "average")
    assert not torch.equal(last["heads.map.weight"], average["heads.map.weight"])
    assert torch.equal(last["image_tokens.mean_S"], average["image_tokens.mean_S"])


@pytest.mark.parametrize("windowed", [False, True])
def test_recomputing_changes_memory_and_nothing_else(windowed: bool):
    layout = layout_for(2, (4, 4), 4 if windowed else 0)
    x_BND = torch.randn(2, 18, 16, generator=torch.Generator().manual_seed(1))
    gradients, kept = [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        shape = BlockShape(16, 2, 32, dropout=0.3, recompute=recompute)
        block = Block(shape, layout, windowed=windowed)
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, saved=saved: (saved.append(tensor.numel()), tensor)[1],
            lambda tensor: tensor,
        ):
            loss = block(x_BND.clone().requires_grad_()).square().sum()
        loss.backward()
        gradients.append([weight.grad for weight in block.parameters() if weight.grad is not None])
        kept.append(sum(saved))
    assert kept[1] < kept[0] / 4
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


FORMS = {
    "two modalities": (Order(size=(32, 32)), ()),
    "no sensor": (Order(size=(32, 32), channels=()), ()),
    "normal parts only": (Order(labels=("good",), size=(32, 32)), ()),
    "experts, windows and gates": (
        Order(size=(64, 64)),
        (
            "student.image_depth=0",
            "student.sensor_depth=0",
            "student.experts=4",
            "student.joint_depth=2",
            "student.window_tokens=8",
            "student.global_every=2",
            "student.gated=true",
        ),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_all_that_learns_gets_a_gradient_or_many_processes_would_wait(form: str, tmp_path: Path):
    order, overrides = FORMS[form]
    recording = small_recording(tmp_path / "rec", order)
    recipe = quick_recipe(*BARE, *overrides)
    batches = batches_of(recording, recipe, tmp_path / "targets")
    learner = Learner(fresh_student(batches.copies.parts, recipe), 0, recipe.loss)
    total, _ = learner(batches.piece(0, 0, 0, 1))
    total.backward()
    lacking = [n for n, w in learner.named_parameters() if w.requires_grad and w.grad is None]
    assert lacking == []
    assert len(list(learner.learning())) > 10


def test_half_precision_trains_and_leaves_float32_weights(recording: Recording, tmp_path: Path):
    record = trained(recording, tmp_path / "run", bare_recipe("train.precision='bf16'"))
    kinds = {tensor.dtype for tensor in weights_of(tmp_path / "run").values()}
    assert torch.float32 in kinds
    assert torch.bfloat16 not in kinds
    whole = trained(recording, tmp_path / "whole", bare_recipe())
    assert record.losses_by_epoch[0] == pytest.approx(whole.losses_by_epoch[0], abs=0.05)
    assert record.losses_by_epoch[0] != whole.losses_by_epoch[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="A GPU IS HERE: it computes in fp16")
def test_fp16_without_a_gpu_is_refused_and_not_left_out_in_silence():
    with pytest.raises(MachineError, match=r"fp16.*train\.precision=fp32"):
        accelerator_for(bare_recipe("train.precision='fp16'").train)


@pytest.mark.skipif(torch.cuda.is_available(), reason="A GPU IS HERE: there is nothing to refuse")
def test_processes_without_a_gpu_do_not_become_many_runs_of_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MachineError, match="ACCELERATE_USE_CPU=true"):
        accelerator_for(bare_recipe().train)


def test_the_largest_step_is_measured_by_this_very_loop_and_survives_its_file():
    figures = measure("tiny")
    assert figures["outputs equal after save and load"]
    assert len(figures["seconds of each step"]) == 2


def test_a_run_gives_the_same_outputs_whenever_it_is_loaded(recording: Recording, tmp_path: Path):
    trained(recording, tmp_path / "run", bare_recipe())
    image = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    inputs = (image, torch.randn(1, 2, 128), torch.ones(1, 2))
    one, other = (student_from_run(tmp_path / "run")(*inputs) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_config_files_are_found_by_name():
    def said(name: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "distill.launch", name]
        return subprocess.run(command, capture_output=True, text=True, env=here())

    for name in ("one", "ddp", "fsdp2", "zero3"):
        path = Path(said(name).stdout.strip())
        assert load_config_from_file(str(path)).mixed_precision == "no", "the recipe says it"
    wrong = said("dpd")
    assert wrong.returncode == 2
    assert "Did you mean 'ddp'?" in wrong.stderr


def test_losses_are_taken_in_float32_and_only_those_with_a_weight_are_told(
    recording: Recording, tmp_path: Path
):
    recipe = quick_recipe("loss.features=0.25", "loss.map=0")
    batches = batches_of(recording, recipe, tmp_path / "targets")
    learner = Learner(fresh_student(batches.copies.parts, recipe), 0, recipe.loss)
    with torch.autocast("cpu", torch.bfloat16):
        total, losses = learner(batches.piece(0, 0, 0, 1))
    assert sorted(losses) == ["features", "labels", "score", "soft_labels"]
    assert {loss.dtype for loss in (total, *losses.values())} == {torch.float32}
    weighted = sum(getattr(recipe.loss, name) * loss for name, loss in losses.items())
    torch.testing.assert_close(total, weighted)


def test_the_image_is_standardised_part_by_part_as_all_at_once(
    recording: Recording, tmp_path: Path
):
    recipe = bare_recipe()
    batches = batches_of(recording, recipe, tmp_path / "targets")
    student = fresh_student(batches.copies.parts, recipe)
    fit_standardisation(student, batches.targets, batches.copies, first_stage=True)
    stem_PS = torch.from_numpy(batches.targets.stem[0]).double().flatten(0, 1)
    tokens = student.image_tokens
    torch.testing.assert_close(tokens.mean_S, stem_PS.mean(0).float())
    torch.testing.assert_close(tokens.scale_S, stem_PS.std(0).clamp_min(1e-3).float())
