"""What `edge adapt` is asked to do: which run, on which parts, by which recipe; with its refusals.

The run's contract (image size, channels, classes) and the student's shape stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from distill.checkpoint import RunRecord, read_record
from distill.dataset import Source, TrainingParts, require_normal_parts
from distill.recipe import TRAIN_SPLIT, LossRecipe, Recipe, refuse_contradictions
from edge.config import struct_from_table
from edge.errors import InputError
from edge.model_spec import ModelSpec
from edge.prepare import channels_text
from edge.recording.format import Recording

FEWEST_PARTS = 5
FEW_SHOT_PARTS = 50
"""Up to so many parts, adapting is few-shot."""

_OF_THE_RUN = ("name", "image", "sensor", "teacher", "student", "stages")  # tables


@dataclass(frozen=True)
class AdaptOrder:
    """A run, the parts of another line, and the recipe by which it learns from them."""

    run_folder: Path
    record: RunRecord  # of that run
    parts: TrainingParts  # read as that run's student meets them
    recipe: Recipe  # the run's, but for what is learned and how long

    @property
    def name(self) -> str:
        """Name what is adapted to what: a resume must be of the same."""
        return f"{self.record.weights_digest} to {self.parts.recording.digest()}"

    @property
    def part_count(self) -> int:
        """How many parts there are, however often each was seen."""
        return part_count(self.parts)

    @property
    def few_shot(self) -> bool:
        """Tell whether the parts are few."""
        return self.parts.few

    @property
    def unseen_classes(self) -> tuple[str, ...]:
        """The run's classes that no part is of."""
        seen = set(self.parts.labels_N.tolist())
        return tuple(name for i, name in enumerate(self.parts.spec.classes) if i not in seen)

    @property
    def teaches_classes(self) -> bool:
        """Tell whether the parts may teach classes.

        Only if they show all of them: taught some, a student learns that the others do not exist.
        """
        return len(self.parts.spec.classes) > 1 and not self.unseen_classes


def part_count(parts: TrainingParts) -> int:
    """Return how many parts there are, however often each was seen."""
    return len({row.part_id for row in parts.rows})


def order_for(
    run_folder: Path, recording: Recording, overrides: tuple[str, ...] = ()
) -> AdaptOrder:
    """Read the run's record and look at the recording's parts. Raises InputError."""
    record = read_record(run_folder)
    _refuse_other_channels(recording, record.spec)
    rows = recording.rows_in(TRAIN_SPLIT)
    require_normal_parts(recording, TRAIN_SPLIT)
    parts = TrainingParts((Source(recording, rows),), record.spec)
    asked = with_overrides(record.recipe, overrides)
    parts = replace(parts, few=part_count(parts) <= FEW_SHOT_PARTS)
    order = AdaptOrder(run_folder, record, parts, asked)
    if order.part_count < FEWEST_PARTS:
        raise InputError(
            where=f"{recording.folder}, split '{TRAIN_SPLIT}'",
            expected=f"at least {FEWEST_PARTS} parts: what fewer have in common is chance",
            found=f"{order.part_count} (counted by part_id)",
            do="Record more parts; where others lie in further splits, name the split in "
            "metadata.csv and import again.",
        )
    return replace(order, recipe=_recipe_for(order))


def _refuse_other_channels(recording: Recording, spec: ModelSpec) -> None:
    """Refuse windows of other sensors. A recording without any teaches the image alone."""
    has = recording.header.channels
    if spec.sensor is not None and has and has != spec.sensor.channels:
        raise InputError(
            where=recording.folder,
            expected=f"the run's channels {channels_text(spec.sensor.channels)}: its weights mean "
            "nothing for others",
            found=channels_text(has),
            do="Record with the same sensors, import without sensors to adapt to the image alone, "
            "or distil anew.",
        )


def with_overrides(recipe: Recipe, overrides: tuple[str, ...]) -> Recipe:
    """Apply `--set`, but for what the run's weights are bound to."""
    table = msgspec.to_builtins(recipe)
    asked = struct_from_table(table, Recipe, where="--set", overrides=overrides)
    changed = [name for name in _OF_THE_RUN if getattr(asked, name) != getattr(recipe, name)]
    if changed:
        raise InputError(
            where="--set",
            expected="keys that leave the run's student, its input and its teachers as they are",
            found=f"another '{changed[0]}'",
            do="Take it back, or distil anew.",
        )
    return asked


def _recipe_for(order: AdaptOrder) -> Recipe:
    """Return the recipe whose last stage is the adaptation."""
    recipe = order.recipe
    epochs, rate = recipe.adapt.epochs, recipe.adapt.learning_rate
    if order.few_shot:
        epochs, rate = recipe.adapt.few_shot_epochs, recipe.adapt.few_shot_learning_rate
    adapted = msgspec.structs.replace(
        recipe,
        loss=_loss_for(order),
        teacher=msgspec.structs.replace(recipe.teacher, runs=()),  # they know the old line
        targets=msgspec.structs.replace(recipe.targets, label_share=1.0),
        train=msgspec.structs.replace(
            recipe.train, epochs=epochs, learning_rate=rate, warmup_steps=recipe.adapt.warmup_steps
        ),
    )
    refuse_contradictions(adapted, order.run_folder)
    return adapted


def _loss_for(order: AdaptOrder) -> LossRecipe:
    """Return the run's weights without the lessons that mean nothing here.

    Teachers' features are reduced to a basis that is fitted on each recording: what the student
    answers is in the old one.
    """
    loss = msgspec.structs.replace(order.recipe.loss, features=0.0, summary=0.0, window=0.0)
    if not order.teaches_classes:
        loss = msgspec.structs.replace(loss, labels=0.0, soft_labels=0.0)
    if loss.score or loss.map or loss.labels or loss.soft_labels:
        return loss
    raise InputError(
        where=order.run_folder,
        expected="a run that learned scores, maps or labels",
        found="a recipe that gives weight to teachers' features alone",
        do="Say --set loss.score=1.0 --set loss.map=10.0, or distil anew.",
    )
