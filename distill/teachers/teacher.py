"""All teachers of a stage: what they see of a part, and what they say of it together.

`fit_teachers` looks at the stage's parts once. Parts that the memories were built from are measured
against memories built without them, so that what the teachers say of training parts is as honest as
what they say of new ones.

Shapes: B batch, H W pixels, G grid cells, F reduced features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.dataset import Progress, TrainingParts
from distill.recipe import Recipe, Stage
from distill.teachers.backbone import Backbone
from distill.teachers.chosen import chosen_parts
from distill.teachers.image_teacher import (
    FittedImageTeacher,
    ImageTeacher,
    fit_image_teacher,
    grid_of,
)
from distill.teachers.normal_memory import Calibration, calibration_of
from distill.teachers.sensor_teacher import PART_LIMIT, SensorTeacher, fit_sensor_teacher
from distill.teachers.trained_runs import TrainedRuns, trained_runs

_TOP_CELLS = 3


@dataclass(frozen=True)
class Teachers:
    """All of them, and the fold of each normal part that the memories were built from."""

    images: tuple[ImageTeacher, ...]
    sensor: SensorTeacher | None
    fold_of: dict[int, int]  # index of the training part -> fold; others have none
    parts: Calibration | None  # of the strongest cells of a whole part
    remarks: tuple[str, ...]  # what a person should know of them
    runs: TrainedRuns | None = None  # they judge, where there are any, and memories are not made

    @property
    def has_map(self) -> bool:
        """Tell whether there is an image teacher with a memory of normal parts."""
        return self.parts is not None

    def map_logits(self, dense: Sequence[Tensor], fold: int | None) -> Tensor:
        """Return the log odds [G] that each cell is anomalous, by all image teachers together.

        `dense` holds each one's standardised features [G, F] of the same image. Each has a memory
        and a calibration of its own, after which its normal median and limit are everybody's; the
        mean of their log odds is the word of all, a logarithmic opinion pool of equal weights
        (Genest and Zidek, Statistical Science 1, 1986).
        """
        return _pooled(
            [
                teacher.map_logits(dense_GF, fold)
                for teacher, dense_GF in zip(self.images, dense, strict=True)
            ]
        )

    def part_probability(self, map_logits_G: Tensor) -> float:
        """Return how likely one part's image is anomalous, from its most anomalous cells."""
        assert self.parts is not None
        return float(torch.sigmoid(self.parts.logits(_top(map_logits_G))))


def fit_teachers(
    parts: TrainingParts,
    recipe: Recipe,
    stage: Stage,
    backbones: tuple[Backbone, ...],
    progress: Progress,
) -> Teachers:
    """Fit all teachers of a stage.

    Where none of its losses needs normal parts, no memory is made and parts need no labels. Raises
    InputError where a backbone's patches do not fit the student's grid, before any long work, and
    where normal parts are needed and none is labelled so.
    """
    for backbone in backbones:
        refuse_unfit(backbone, parts)
    chosen = chosen_parts(parts, recipe, stage)
    fitted = [
        fit_image_teacher(parts, chosen, recipe, backbone, progress) for backbone in backbones
    ]
    runs = trained_runs(stage.runs, parts, recipe)
    return Teachers(
        images=tuple(one.teacher for one in fitted),
        sensor=fit_sensor_teacher(parts, chosen, recipe, progress),
        fold_of=chosen.fold_of,
        parts=_part_calibration(fitted) if chosen.fold_of and fitted else None,
        remarks=tuple(one.remark for one in fitted) + (() if runs is None else runs.remarks),
        runs=runs,
    )


def refuse_unfit(backbone: Backbone, parts: TrainingParts) -> None:
    """Raise InputError where a backbone's patches do not fit the student's grid."""
    image = parts.spec.image
    backbone(torch.zeros(1, image.height, image.width, 3, dtype=torch.uint8), grid_of(parts))


def _part_calibration(fitted: Sequence[FittedImageTeacher]) -> Calibration:
    """Calibrate the pooled map's strongest cells on the same held-out normal parts."""
    maps = zip(*(one.map_logits for one in fitted), strict=True)
    return calibration_of(torch.stack([_top(_pooled(these)) for these in maps]), PART_LIMIT)


def _pooled(logits: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(logits)).mean(0)


def _top(map_G: Tensor) -> Tensor:
    return map_G.topk(min(_TOP_CELLS, len(map_G))).values.mean()
