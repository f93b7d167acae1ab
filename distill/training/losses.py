"""What the student learns: pure functions from what it reads and what it should have read.

Every loss is a sum over parts, each with a weight of its own. `batches` makes the weights such that
the sum over a whole batch is a mean; where a batch is worked through in pieces, on one process or
several, the mean over the pieces is that same number, whichever part lies in which piece.

Shapes: B parts of this piece, K classes, h w map grid, G cells, F teacher features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own spelling)

from distill.recipe import LossRecipe
from distill.students.student import Reading


class Lesson(NamedTuple):
    """What a batch should have been read as. Weights are 0 where nobody knows."""

    label_B: Tensor  # class number; distill.dataset.UNKNOWN where nobody named one
    label_weight_B: Tensor
    soft_BK: Tensor  # class probabilities, by the teacher's heads for what is shown of the part
    soft_weight_B: Tensor
    score_B: Tensor  # probability that the part is not normal
    score_weight_B: Tensor
    map_Bhw: Tensor  # probability that the cell is anomalous
    map_weight_B: Tensor
    features: tuple[Tensor, ...]  # of each teacher [B, G, F]
    summaries: tuple[Tensor, ...]  # of each teacher [B, F]
    seen_weight_B: Tensor  # of features and summaries: parts whose image is shown
    window_BF: Tensor | None  # of the sensor teacher
    window_weight_B: Tensor
    present_B2: Tensor  # 1 where (image, sensor) are shown


def losses_of(reading: Reading, lesson: Lesson, recipe: LossRecipe) -> dict[str, Tensor]:
    """Return each loss by its name in the recipe; 0 for those that nothing is there to teach."""
    seen_B, nothing = lesson.seen_weight_B, reading.score_logit_B.new_zeros(())
    return {
        "labels": label_loss(reading.class_logits_BK, lesson.label_B, lesson.label_weight_B),
        "soft_labels": soft_label_loss(
            reading.class_logits_BK, lesson.soft_BK, lesson.soft_weight_B, recipe.temperature
        ),
        "score": score_loss(reading.score_logit_B, lesson.score_B, lesson.score_weight_B),
        "map": map_loss(reading.map_logits_Bhw, lesson.map_Bhw, lesson.map_weight_B),
        "features": mean_over_teachers(
            [
                dense_feature_loss(own_BGF, theirs_BGF, seen_B)
                for own_BGF, theirs_BGF in zip(reading.features, lesson.features, strict=True)
            ]
            or [nothing]
        ),
        "summary": mean_over_teachers(
            [
                summary_loss(own_BF, theirs_BF, seen_B)
                for own_BF, theirs_BF in zip(reading.summaries, lesson.summaries, strict=True)
            ]
            or [nothing]
        ),
        "window": (
            nothing
            if reading.window_BF is None or lesson.window_BF is None
            else summary_loss(reading.window_BF, lesson.window_BF, lesson.window_weight_B)
        ),
    }


def weighted_sum(losses: dict[str, Tensor], weights: LossRecipe) -> Tensor:
    """Return the one number that is minimised."""
    return torch.stack([getattr(weights, name) * loss for name, loss in losses.items()]).sum()


def label_loss(logits_BK: Tensor, label_B: Tensor, weight_B: Tensor) -> Tensor:
    """Cross entropy with the class that a person named: sum_b w_b (-log softmax(z_b)[y_b]).

    Bishop, "Pattern Recognition and Machine Learning", 2006, eq. 4.108.
    """
    entropy_B = F.cross_entropy(logits_BK, label_B.clamp_min(0), reduction="none")
    return (entropy_B * weight_B).sum()


def soft_label_loss(
    logits_BK: Tensor, soft_BK: Tensor, weight_B: Tensor, temperature: float
) -> Tensor:
    """Cross entropy with the teacher's probabilities p at temperature T, times T squared.

    sum_b w_b T^2 (-sum_k q_bk log softmax(z_b / T)_k), q = softmax(log(p) / T); the factor keeps
    the gradient's size as T changes (Hinton, Vinyals and Dean, arXiv 1503.02531, section 2).
    """
    softer_BK = torch.softmax(soft_BK.clamp_min(1e-8).log() / temperature, 1)
    entropy_B = F.cross_entropy(logits_BK / temperature, softer_BK, reduction="none")
    return (entropy_B * weight_B).sum() * temperature**2


def score_loss(logit_B: Tensor, score_B: Tensor, weight_B: Tensor) -> Tensor:
    """Binary cross entropy of the anomaly score with the probability that the part is not normal.

    sum_b w_b (-s_b log sigmoid(z_b) - (1 - s_b) log(1 - sigmoid(z_b))); Bishop, eq. 4.90.
    """
    entropy_B = F.binary_cross_entropy_with_logits(logit_B, score_B, reduction="none")
    return (entropy_B * weight_B).sum()


def map_loss(logits_Bhw: Tensor, map_Bhw: Tensor, weight_B: Tensor) -> Tensor:
    """Binary cross entropy of each cell, averaged over the cells of a part.

    sum_b w_b mean_hw (-m log sigmoid(z) - (1 - m) log(1 - sigmoid(z))), at each cell of m_b and
    z_b: the pixel-wise cross entropy of U-Net (Ronneberger et al., arXiv 1505.04597, eq. 1) with
    two classes and probabilities for targets.
    """
    entropy_Bhw = F.binary_cross_entropy_with_logits(logits_Bhw, map_Bhw, reduction="none")
    return (entropy_Bhw.mean((1, 2)) * weight_B).sum()


def dense_feature_loss(own_BGF: Tensor, theirs_BGF: Tensor, weight_B: Tensor) -> Tensor:
    """Smooth L1 between the student's and a teacher's features of each cell, a mean over both.

    With d = |own - theirs|: d^2 / 2 below 1, d - 1/2 above (Girshick, arXiv 1504.08083, eq. 3). The
    teacher's features have variance 1 on average, so the bend lies at one standard deviation.
    """
    distance_BGF = F.smooth_l1_loss(own_BGF, theirs_BGF, reduction="none")
    return (distance_BGF.mean((1, 2)) * weight_B).sum()


def summary_loss(own_BF: Tensor, theirs_BF: Tensor, weight_B: Tensor) -> Tensor:
    """One minus the cosine between the student's and a teacher's one vector for a part.

    Direction alone, as AM-RADIO matches summaries (Ranzinger et al., arXiv 2312.06709, eq. 2): the
    length of a summary says more about a teacher's norm layers than about the part.
    """
    distance_B = 1.0 - F.cosine_similarity(own_BF, theirs_BF, dim=1, eps=1e-6)
    return (distance_B * weight_B).sum()


def mean_over_teachers(losses: list[Tensor]) -> Tensor:
    """Average, so that no teacher counts for more by having company."""
    return torch.stack(losses).mean()
