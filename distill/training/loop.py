"""The one training loop: a stage of a run, on however many processes there are.

Distribution, precision and accumulation are accelerate's. What stands here is the order of things
in a step, and when state is saved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch
from accelerate import Accelerator

from distill.journal.news import EpochNews, Journal, StageNews, StepNews
from distill.recipe import LossRecipe, Recipe, Stage
from distill.students.expert_use import ExpertUse, expert_text, expert_use
from distill.students.student import Student
from distill.training.averaging import keep_average, take_average
from distill.training.bad_batch import WorkedPiece, refuse_bad_batch
from distill.training.batches import Batches
from distill.training.learner import Learner
from distill.training.pieces import Piece, Pieces, on_device, read_ahead, told_of_dead_workers
from distill.training.processes import is_sharded, share_weights
from distill.training.saved_state import Position, SavedStates
from distill.training.schedule import seed_for, set_learning_rate
from distill.training.stopping import StopRequest

_SAVING_SHARE = 0.02  # of the time, that states at the ends of epochs may take


@dataclass(frozen=True)
class Run:
    """What all stages of a run share."""

    recipe: Recipe
    accelerator: Accelerator
    states: SavedStates
    journal: Journal
    folder: Path  # of the unfinished run: a bad batch is kept there
    learner: Callable[[Student, int, LossRecipe], Learner] = Learner  # one forward pass
    learning_rate_key: str = "train.learning_rate"  # of the last stage, as `--set` takes it

    def learning_rate_key_of(self, stage: Stage) -> str:
        """Name the key by which a person changes a stage's learning rate."""
        earlier = stage.name in self.recipe.stages
        return f"stages.{stage.name}.learning_rate" if earlier else self.learning_rate_key


@dataclass
class _StageUnderWay:
    """What a stage trains, as accelerate prepared it, and its clocks."""

    stage: Stage
    steps_per_epoch: int
    learner: Learner
    optimizer: torch.optim.Optimizer
    saved_at_s: float = field(default_factory=time.monotonic)
    saving_took_s: float = 0.0
    told_at_s: float = field(default_factory=time.monotonic)
    epoch_at_s: float = field(default_factory=time.monotonic)
    epoch_parts: float = 0.0

    def is_save_due(self, step: int, every_s: float) -> bool:
        """Tell whether the state after `step` is to be written.

        At the end of an epoch it is written sooner, unless epochs are so short that it costs.
        """
        since_s = time.monotonic() - self.saved_at_s
        if step % self.steps_per_epoch == 0:
            return since_s * _SAVING_SHARE >= self.saving_took_s or since_s >= every_s
        return since_s >= every_s


@dataclass(frozen=True)
class StepResult:
    """What all processes know of a step before its gradient is used. Means over the batch."""

    total: float  # what is minimised
    losses: dict[str, float]
    gradient_norm: float  # before it is clipped
    parts: float
    save_asked: bool
    stop_asked: bool


def run_stage(run: Run, student: Student, batches: Batches, position: Position) -> Position:
    """Train `student` through the stage at `position`; return where the next one begins.

    Its weights, averaged where the recipe asks for that, are then in `run.states`. Raises
    KeyboardInterrupt once the state is saved where Ctrl-C or SIGTERM came; AnswerIsNo where a loss
    is no number; InputError and MachineError for files, workers and disks that fail.
    """
    recipe, accelerator = run.recipe, run.accelerator
    stage = recipe.all_stages()[position.stage]
    steps = stage.epochs * batches.steps_per_epoch
    under_way = _prepared(run, student, batches, position)
    pieces = Pieces(batches, recipe.train, accelerator)
    with (
        run.journal.stage(_stage_news(recipe, position, steps)),
        StopRequest(alone=accelerator.num_processes == 1) as stop,
        told_of_dead_workers(),
        closing(read_ahead(pieces, position.step, steps, recipe.train.workers)) as ahead,
    ):
        for step in range(position.step, steps):
            rate = set_learning_rate(under_way.optimizer, stage, step, steps)
            worked = [_worked(run, under_way, position, next(ahead)) for _ in range(pieces.each)]
            result = _agreed(run, under_way, position, worked, stop)
            if not _is_sound(accelerator, result):
                where = f"stage '{stage.name}', step {step + 1} of {steps}"
                key = run.learning_rate_key_of(stage)
                try:
                    refuse_bad_batch(run.folder, where, worked, result.gradient_norm, key)
                finally:
                    accelerator.wait_for_everyone()  # the first to leave would end the others
            under_way.optimizer.step()
            under_way.optimizer.zero_grad()

            position = position.after_step(result.losses)
            epoch_ends = position.step % batches.steps_per_epoch == 0
            run.journal.step(_step_news(under_way, position, result, rate))
            if epoch_ends:
                position = position.after_epoch(batches.steps_per_epoch)
                news = _epoch_news(run, under_way, position, worked)
                run.journal.epoch(news)
            if position.step == steps:
                position = _stage_done(run, _with_experts(position, news), under_way)
            elif result.save_asked or result.stop_asked:
                _save(run, position, under_way)
            if result.stop_asked:
                raise KeyboardInterrupt
    return position


def _prepared(run: Run, student: Student, batches: Batches, position: Position) -> _StageUnderWay:
    """Hand the student and its optimizer to accelerate, as they were at `position`."""
    recipe, accelerator = run.recipe, run.accelerator
    stage = recipe.all_stages()[position.stage]
    learner = run.learner(student, position.stage, stage.loss).to(accelerator.device)
    share_weights(learner)
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(
        learner.learning(), lr=stage.learning_rate, weight_decay=recipe.train.weight_decay
    )
    keep_average(optimizer, recipe.train.ema_decay)
    learner, optimizer = accelerator.prepare(learner, optimizer)
    if position.step:
        run.states.load(accelerator, position)
    learner.train()
    return _StageUnderWay(stage, batches.steps_per_epoch, learner, optimizer)


def _worked(run: Run, under_way: _StageUnderWay, position: Position, piece: Piece) -> WorkedPiece:
    """Run one piece forwards and backwards; its gradient is added to the step's."""
    # Dropout and token noise: the same whoever works on this piece, and after whatever stop.
    torch.manual_seed(seed_for(run.recipe.seed, position.stage, position.step, piece.number))
    batch = on_device(piece.batch, run.accelerator.device)
    with run.accelerator.accumulate(under_way.learner):
        total, losses = under_way.learner(batch)
        run.accelerator.backward(total)
    return WorkedPiece(piece, tuple(losses), torch.stack([total, *losses.values()]).detach())


def _agreed(
    run: Run,
    under_way: _StageUnderWay,
    position: Position,
    worked: list[WorkedPiece],
    stop: StopRequest,
) -> StepResult:
    """Clip the gradient and let all processes know the same of the step, in one small message."""
    accelerator, limit = run.accelerator, run.recipe.train.gradient_limit
    norm = _whole(accelerator.clip_grad_norm_(under_way.learner.parameters(), limit))
    save_due = under_way.is_save_due(position.step + 1, run.recipe.train.save_every_s)
    flags = (sum(len(each.piece.batch.samples) for each in worked), save_due, stop.asked)
    values = torch.stack([each.values for each in worked]).mean(0)
    message = torch.cat([values, norm.to(values).reshape(1), values.new_tensor(flags)])
    total, *losses, gradient_norm, parts, save, asked = accelerator.reduce(message, "mean").tolist()
    return StepResult(
        total=total,
        losses=dict(zip(worked[0].names, losses, strict=True)),
        gradient_norm=gradient_norm,
        parts=parts * accelerator.num_processes,
        save_asked=save > 0,
        stop_asked=asked > 0,
    )


def _is_sound(accelerator: Accelerator, result: StepResult) -> bool:
    """Tell whether the step may reach the weights.

    In fp16 a gradient beyond its range is usual: the scaler leaves that step out and scales less.
    Not so once it has scaled away everything.
    """
    if not all(map(math.isfinite, (result.total, *result.losses.values()))):
        return False
    if accelerator.scaler is not None:
        return bool(accelerator.scaler.get_scale() >= 1.0)
    return math.isfinite(result.gradient_norm)


def _save(run: Run, position: Position, under_way: _StageUnderWay) -> None:
    started_s = time.monotonic()
    run.states.write(run.accelerator, position)
    run.journal.saved(position.step)
    under_way.saved_at_s = time.monotonic()
    under_way.saving_took_s = under_way.saved_at_s - started_s


def _stage_done(run: Run, position: Position, under_way: _StageUnderWay) -> Position:
    """Put the average in the weights' place, where one was kept, and save them for what comes."""
    take_average(under_way.optimizer)
    weights = run.accelerator.get_state_dict(under_way.learner)
    after = msgspec.structs.replace(position, stage=position.stage + 1, step=0)
    prefix = "student."
    run.states.write_weights(
        run.accelerator, after, {name.removeprefix(prefix): w for name, w in weights.items()}
    )
    run.accelerator.free_memory()
    return after


def _stage_news(recipe: Recipe, position: Position, steps: int) -> StageNews:
    stages = recipe.all_stages()
    stage = stages[position.stage]
    weights = msgspec.structs.asdict(stage.loss)
    del weights["temperature"]
    return StageNews(
        stage=stage.name,
        number=position.stage + 1,
        stages=len(stages),
        step=position.step,
        steps=steps,
        epochs=stage.epochs,
        weights=weights,
    )


def _step_news(
    under_way: _StageUnderWay, position: Position, result: StepResult, rate: float
) -> StepNews:
    stage, now_s = under_way.stage, time.monotonic()
    before_s, under_way.told_at_s = under_way.told_at_s, now_s
    under_way.epoch_parts += result.parts
    return StepNews(
        stage=stage.name,
        epoch=(position.step - 1) // under_way.steps_per_epoch + 1,
        step=position.step,
        steps=stage.epochs * under_way.steps_per_epoch,
        losses=result.losses,
        total=result.total,
        learning_rate=rate,
        gradient_norm=result.gradient_norm,
        parts_per_second=result.parts / (now_s - before_s),
    )


def _epoch_news(
    run: Run, under_way: _StageUnderWay, position: Position, worked: list[WorkedPiece]
) -> EpochNews:
    stage, now_s = under_way.stage, time.monotonic()
    speed = under_way.epoch_parts / (now_s - under_way.epoch_at_s)
    under_way.epoch_parts, under_way.epoch_at_s = 0.0, now_s
    losses = position.losses_by_epoch[-1]
    return EpochNews(
        stage=stage.name,
        epoch=position.step // under_way.steps_per_epoch,
        step=position.step,
        losses=losses,
        total=_total(losses, stage.loss),
        parts_per_second=speed,
        experts=_expert_use(run, under_way, worked[-1]),
    )


def _expert_use(run: Run, under_way: _StageUnderWay, worked: WorkedPiece) -> tuple[ExpertUse, ...]:
    """Measure it on a piece just seen, on the main process; nowhere if the student is sharded."""
    accelerator = run.accelerator
    if not accelerator.is_main_process or is_sharded(accelerator):
        return ()
    if not run.recipe.student.experts:
        return ()
    learner = accelerator.unwrap_model(under_way.learner)
    batch = on_device(worked.piece.batch, accelerator.device)
    return expert_use(learner.student, lambda: learner(batch))


def _with_experts(position: Position, last: EpochNews) -> Position:
    """Let the run's record say how the stage's last epoch used the experts, where there are any."""
    if not last.experts:
        return position
    remark = f"stage '{last.stage}', {expert_text(last.experts)}"
    return msgspec.structs.replace(position, remarks=(*position.remarks, remark))


def _total(losses: dict[str, float], weights: LossRecipe) -> float:
    return sum(float(getattr(weights, name)) * loss for name, loss in losses.items())


def _whole(norm: torch.Tensor | float | None) -> torch.Tensor:
    """Return a gradient's norm; of a sharded student, each process holds a share of it."""
    if norm is None:  # DeepSpeed, before its first step
        return torch.zeros(())
    gather = getattr(norm, "full_tensor", None)
    return torch.as_tensor(norm) if gather is None else gather()
