"""What `edge distill --quantize` is asked to do: which run, on which parts; with its refusals.

The run's contract (image size, channels, classes) and its student's shape stay as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import msgspec

from distill.adaptation.order import with_overrides
from distill.checkpoint import RunRecord, read_record
from distill.dataset import Source, TrainingParts, require_normal_parts
from distill.quantization.lessons import untaught
from distill.recipe import (
    TRAIN_SPLIT,
    LossRecipe,
    Recipe,
    Stage,
    TrainRecipe,
    refuse_contradictions,
)
from edge.errors import InputError
from edge.prepare import channels_text
from edge.recording.format import Recording

_SCHEDULE = ("epochs", "learning_rate", "warmup_steps")


@dataclass(frozen=True)
class QuantizeOrder:
    """A finished run, the parts that it meets again as INT8, and the recipe of that."""

    run_folder: Path
    record: RunRecord  # of that run
    parts: TrainingParts  # read as that run's student meets them
    recipe: Recipe  # the run's, but for what is learned and how long

    @property
    def resume_key(self) -> str:
        """Name what is trained on what: a resume must be of the same."""
        return f"int8 of {self.record.weights_digest} on {self.parts.recording.digest()}"

    @property
    def stage(self) -> Stage:
        """The one stage, as its targets see it."""
        return untaught(self.recipe.all_stages()[0])


def order_for(
    run_folder: Path, recording: Recording, overrides: tuple[str, ...] = ()
) -> QuantizeOrder:
    """Read the run's record and look at the recording. Raises InputError."""
    record = read_record(run_folder)
    if record.int8 is not None:
        raise InputError(
            where=run_folder,
            expected="a run that computes in float, to be the teacher of its INT8 self",
            found=f"the INT8 self of another run ({record.int8.weights_digest[:12]})",
            do="Quantise that run again, or export this one: "
            f"edge export {run_folder} --calibration {recording.folder} --out BUNDLE",
        )
    _refuse_another_line(recording, record)
    asked = with_overrides(record.recipe, overrides)
    _refuse_unheard(asked, record.recipe)
    rows = recording.rows_in(TRAIN_SPLIT)
    recipe = _recipe_for(asked, run_folder, len(rows))
    require_normal_parts(recording, recipe.threshold.split)
    parts = TrainingParts((Source(recording, rows),), record.spec)
    return QuantizeOrder(run_folder, record, parts, recipe)


def _refuse_another_line(recording: Recording, record: RunRecord) -> None:
    """Refuse a recording on which ranges, or the float student's word, would mean nothing."""
    sensor, has = record.spec.sensor, recording.header.channels
    do = "Give the recording that the run was trained on, or another one of the same line."
    if sensor is not None and has != sensor.channels:
        raise InputError(
            where=recording.folder,
            expected=f"the run's channels {channels_text(sensor.channels)}",
            found=channels_text(has),
            do=do,
        )
    if recording.normal_class != record.spec.classes[0]:
        raise InputError(
            where=recording.folder,
            expected=f"the run's normal class '{record.spec.classes[0]}'",
            found=f"'{recording.normal_class}'",
            do=do,
        )


def _refuse_unheard(asked: Recipe, own: Recipe) -> None:
    """Refuse to be told the schedule of the training that is over."""
    for name in _SCHEDULE:
        if getattr(asked.train, name) != getattr(own.train, name):
            raise InputError(
                where="--set",
                expected="the schedule of the INT8 self, which is that of [quantize]",
                found=f"train.{name}",
                do=f"Say --set quantize.{name}=...",
            )


def _recipe_for(asked: Recipe, run_folder: Path, parts: int) -> Recipe:
    """Return the recipe of one short stage, in which nobody teaches but the float student.

    Of each part no more copies are made than it has visits in all epochs: no more could be seen.
    The weights are the run's: what it gave to labels and to soft labels, both are the float
    student's soft labels now, and what it gave to teachers' features the embedding has.
    """
    loss, quantize = asked.loss, asked.quantize
    visits = quantize.epochs * _visits_per_epoch(asked.train, parts)
    recipe = msgspec.structs.replace(
        asked,
        stages={},
        teacher=msgspec.structs.replace(asked.teacher, sensor_epochs=0),
        # Else no teacher and no label would mean "from labels alone", which parts may not have.
        targets=msgspec.structs.replace(
            asked.targets,
            copies=min(asked.targets.copies, visits),
            teacher_share=1.0,
            label_share=1.0,
        ),
        loss=LossRecipe(
            labels=0.0,
            soft_labels=loss.labels + loss.soft_labels,
            temperature=loss.temperature,
            score=loss.score,
            map=loss.map,
            features=loss.features + loss.summary,
            summary=0.0,
            window=0.0,
        ),
        train=msgspec.structs.replace(
            asked.train,
            epochs=quantize.epochs,
            learning_rate=quantize.learning_rate,
            warmup_steps=quantize.warmup_steps,
        ),
    )
    refuse_contradictions(recipe, run_folder)
    return recipe


def _visits_per_epoch(train: TrainRecipe, parts: int) -> int:
    """Return how often an epoch shows a part at most: more than once where parts are few.

    As `distill.training.drawn` draws them, all parts having a lesson here.
    """
    least_draws = train.min_steps_per_epoch * min(train.batch, parts)
    return max(1, math.ceil(least_draws / parts))
