"""What a stage asks of its teachers and of persons, and the refusal of what nobody can answer."""

from __future__ import annotations

from distill.augment.made_defects import SHAPES
from distill.dataset import UNKNOWN, TrainingParts
from distill.recipe import JUDGED, Recipe, Stage
from edge.errors import InputError

FEWEST_NORMAL = 2  # parts: each is measured against a memory that was built without it


def labels_alone(recipe: Recipe, stage: Stage) -> bool:
    """Tell whether the student learns from persons alone, so that no teacher is asked."""
    loss = stage.loss
    by_teachers = (loss.soft_labels, loss.features, loss.summary, loss.window)
    return not any(by_teachers) and recipe.targets.teacher_share == 0.0 and not stage.runs


def backbones_asked(recipe: Recipe, stage: Stage) -> tuple[str, ...]:
    """Name the backbones that have something to say: where runs judge, only their features."""
    described = stage.loss.features or stage.loss.summary
    if labels_alone(recipe, stage) or (stage.runs and not described):
        return ()
    return stage.backbones


def asks_normal_parts(recipe: Recipe, stage: Stage) -> bool:
    """Tell whether the teachers must know what is normal: they judge, not only describe.

    Trained runs know already.
    """
    judged = any(getattr(stage.loss, name) for name in JUDGED)
    return judged and not labels_alone(recipe, stage) and not stage.runs


def refuse_unanswerable(parts: TrainingParts, recipe: Recipe, stage: Stage) -> None:
    """Refuse a stage whose losses need what its parts have not. Raises InputError."""
    normal = int((parts.normal_N == 1.0).sum())
    if asks_normal_parts(recipe, stage) and normal < FEWEST_NORMAL:
        raise _refusal(
            parts,
            stage,
            f"at least {FEWEST_NORMAL} parts labelled normal, which the teachers judge others by",
            f"{normal} of {len(parts)} training parts (targets.label_share is "
            f"{recipe.targets.label_share:g})",
            "Label more normal parts, raise targets.label_share, or set the stage's weights of "
            "labels, soft_labels, score and map to 0: features need no labels.",
        )
    needs_classes = stage.loss.labels or stage.loss.soft_labels
    if needs_classes and not stage.runs and (parts.labels_N == UNKNOWN).all():
        raise _refusal(
            parts,
            stage,
            f"parts with a label that the model knows ({', '.join(parts.spec.classes)})",
            "none",
            "Label some, or set the stage's weights of labels and soft_labels to 0.",
        )
    if labels_alone(recipe, stage) and not (parts.normal_N >= 0.0).any():
        raise _refusal(
            parts,
            stage,
            "labelled parts, for no teacher is asked (its losses weigh 0)",
            f"{len(parts)} parts without a label",
            "Label some, or give soft_labels, features or summary a weight.",
        )
    targets = recipe.targets
    if targets.copies and targets.broken_share and _lacks_made_defects(parts, recipe, stage):
        raise _refusal(
            parts,
            stage,
            f"made defects in {targets.broken_share:.0%} of the copies (targets.broken_share), for "
            "no part has a defect of its own",
            "no way to make one: what augment.defect_* and sensor_fault allow is 0",
            "Give one of them a value above 0, or set targets.broken_share to 0.",
        )
    if stage.loss.window and not parts.windows_N.any():
        raise _refusal(
            parts,
            stage,
            "sensor windows to learn 'window' from",
            "no part with a window of the model's channels",
            "Set the stage's weight of window to 0, or use a recording of those sensors.",
        )


def _lacks_made_defects(parts: TrainingParts, recipe: Recipe, stage: Stage) -> bool:
    """Tell whether what is normal is learned with no defect to tell it from, not even made ones."""
    judged = any(getattr(stage.loss, name) for name in JUDGED)
    painted = any(getattr(recipe.augment, shape) for shape in SHAPES)
    faulty = recipe.augment.sensor_fault and parts.windows_N.any()
    return judged and not stage.runs and not parts.has_defects and not painted and not faulty


def _refusal(parts: TrainingParts, stage: Stage, expected: str, found: str, do: str) -> InputError:
    folders = ", ".join(str(source.recording.folder) for source in parts.sources)
    return InputError(
        where=f"stage '{stage.name}', {folders}", expected=expected, found=found, do=do
    )
