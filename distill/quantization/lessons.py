"""What the INT8 self is taught: to say of every copy what the float student says of it.

No label and no other teacher is asked, so every part teaches. The float student reads the very
batch that its INT8 self reads, with the same modalities withheld; nothing of what it says needs a
place on the disk.

Shapes: B batch, b piece of it, G cells, D width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.dataset import TrainingParts
from distill.recipe import LossRecipe, Stage
from distill.students.float32 import in_float32
from distill.students.student import Reading, Student
from distill.training.batches import Batch, Batches
from distill.training.drawn import Drawn
from distill.training.learner import Learner, float32_reading
from distill.training.losses import Lesson, losses_of, weighted_sum

_NOBODY = LossRecipe(
    labels=0.0,
    soft_labels=0.0,
    temperature=1.0,
    score=0.0,
    map=0.0,
    features=0.0,
    summary=0.0,
    window=0.0,
)


def untaught(stage: Stage) -> Stage:
    """Return the stage as its targets see it: no teacher and no person is asked for anything."""
    return Stage(
        name=stage.name,
        recordings=(),
        backbones=(),
        epochs=stage.epochs,
        learning_rate=stage.learning_rate,
        warmup_steps=stage.warmup_steps,
        loss=_NOBODY,
    )


class OwnBatches(Batches):
    """Batches whose lessons are yet to be said by the float student, of all parts."""

    @cached_property
    def _lessons(self) -> OwnLessons:
        return OwnLessons(self.copies.parts)


@dataclass(frozen=True)
class OwnLessons:
    """Lessons with weights, and nothing in them yet."""

    parts: TrainingParts

    def of(self, drawn: Drawn, mine: slice, factor: float) -> Lesson:
        """Return the weights of the parts `mine` of a batch, shares of it times `factor`."""
        shown_B2 = drawn.shown_B2
        image_b = torch.from_numpy(shown_B2[mine, 0].copy())
        each = factor / len(shown_B2)
        every_b = torch.full_like(image_b, each)
        nothing_b, spec = torch.zeros_like(image_b), self.parts.spec
        cells = (spec.map_height, spec.map_width)
        return Lesson(
            label_B=torch.zeros(len(image_b), dtype=torch.int64),
            label_weight_B=nothing_b,
            soft_BK=torch.zeros(len(image_b), len(spec.classes)),
            soft_weight_B=every_b,
            score_B=nothing_b,
            score_weight_B=every_b,
            map_Bhw=torch.zeros(len(image_b), *cells),
            # Where the image is withheld, its map is of nothing.
            map_weight_B=image_b * (factor / max(1.0, float(shown_B2[:, 0].sum()))),
            features=(),
            summaries=(),
            seen_weight_B=every_b,
            window_BF=None,
            window_weight_B=nothing_b,
            present_B2=torch.from_numpy(shown_B2[mine].copy()),
        )

    def parts_with_one(self) -> NDArray[np.int64]:
        """Return all parts."""
        return np.arange(len(self.parts))


class SelfTaught(Learner):
    """An INT8 student and the float one that it came from."""

    def __init__(self, float_self: Student, student: Student, stage: int, loss: LossRecipe) -> None:
        super().__init__(student, stage, loss)
        student.teacher_heads.requires_grad_(False)  # nobody asks for their answers
        # In a tuple it is no submodule: it is neither trained nor saved nor sharded.
        self._float_self = (float_self,)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the one number that is minimised, and each loss that has a weight in it.

        From each loss what the float student itself would have is taken off: a cross entropy
        becomes a Kullback-Leibler divergence, and 0 means "says the same".
        """
        own = _answers(self._read(self.student, batch))
        with torch.no_grad(), in_float32(batch.stem_BGS):
            theirs = _answers(self._read(self._float_self[0], batch))
            lesson = _lesson_by(theirs, batch.lesson)
            floor = losses_of(theirs, lesson, self.loss)
        with in_float32(batch.stem_BGS):
            losses = losses_of(own, lesson, self.loss)
            losses = {name: loss - floor[name] for name, loss in losses.items()}
            total = weighted_sum(losses, self.loss)
        return total, {name: loss for name, loss in losses.items() if getattr(self.loss, name)}

    def _read(self, student: Student, batch: Batch) -> Reading:
        return student.read(batch.stem_BGS, batch.sensor_BCT, batch.lesson.present_B2, self.stage)


def _answers(reading: Reading) -> Reading:
    """Return what the two are compared by: for features, the embedding [B, 1, D].

    It is a LayerNorm's output, so its entries are near 1, as those of teachers' features are. The
    image's cells need no loss of their own: the map is a Linear of them.
    """
    whole = float32_reading(reading)
    return whole._replace(features=(whole.embedding_BD[:, None],), summaries=(), window_BF=None)


def _lesson_by(theirs: Reading, weights: Lesson) -> Lesson:
    """Fill in what the float student says."""
    return weights._replace(
        soft_BK=torch.softmax(theirs.class_logits_BK, 1),
        score_B=torch.sigmoid(theirs.score_logit_B),
        map_Bhw=torch.sigmoid(theirs.map_logits_Bhw),
        features=theirs.features,
    )
