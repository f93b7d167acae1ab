"""What the student learns, all at once. Every loss is a mean over the batch.

Shapes: B batch, K classes, h w map grid, G cells, F teacher features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own spelling)

from distill.recipe import LossRecipe
from distill.students.student import Reading


@dataclass(frozen=True)
class Lesson:
    """What a batch should have been read as."""

    class_probabilities_BK: Tensor
    score_B: Tensor  # probability that the part is not normal
    map_Bhw: Tensor  # probability that the cell is anomalous
    features_BGF: Tensor
    present_B2: Tensor


def losses_of(reading: Reading, lesson: Lesson) -> dict[str, Tensor]:
    """Return each loss by its name in the recipe.

    Map and features are asked only of parts whose image the student saw.
    """
    has_image_B = lesson.present_B2[:, 0]
    seen = has_image_B.sum().clamp_min(1.0)
    map_B = F.binary_cross_entropy_with_logits(
        reading.map_logits_Bhw, lesson.map_Bhw, reduction="none"
    ).mean((1, 2))
    features_B = F.smooth_l1_loss(reading.features_BGF, lesson.features_BGF, reduction="none").mean(
        (1, 2)
    )
    return {
        "classes": F.cross_entropy(reading.class_logits_BK, lesson.class_probabilities_BK),
        "score": F.binary_cross_entropy_with_logits(reading.score_logit_B, lesson.score_B),
        "map": (map_B * has_image_B).sum() / seen,
        "features": (features_B * has_image_B).sum() / seen,
    }


def weighted_sum(losses: dict[str, Tensor], weights: LossRecipe) -> Tensor:
    """Return the one number that is minimised."""
    return torch.stack([getattr(weights, name) * loss for name, loss in losses.items()]).sum()
