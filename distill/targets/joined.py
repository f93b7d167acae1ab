"""What teachers say of a copy, joined with what a person, or a made defect, says of it.

nan stands where neither has a word. Shapes: H W image, G grid cells, F features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (torch's own spelling)

from distill.augment.copies import BROKEN_IMAGE, BROKEN_SENSOR, Copies
from distill.dataset import STRIDE
from distill.teachers.teacher import Teachers


def map_target(
    copies: Copies, index: int, mask_HW: NDArray[np.uint8] | None, logits_G: Tensor | None
) -> NDArray[np.float32]:
    """Return how likely each cell [G] is anomalous.

    A mask says where the defect is, and a part labelled normal has none beside made ones. Where a
    defect has no mask (nobody drew one, or it does not show), or nobody labelled the part, the
    teachers' word stands. With labelled defects the two are mixed by `targets.teacher_share`;
    without, a cell is as bad as the worse of the two says.
    """
    parts = copies.parts
    cells = (parts.spec.image.height // STRIDE) * (parts.spec.image.width // STRIDE)
    taught = None if logits_G is None else torch.sigmoid(logits_G).numpy()
    said = None if mask_HW is None else cells_of(mask_HW)
    normal = parts.normal_N[index] == 1.0
    if said is None and normal and (parts.has_defects or taught is None):
        said = np.zeros(cells, np.float32)
    if np.isnan(parts.normal_N[index]) and taught is None:
        said = None  # beside a made defect there may be a real one
    if taught is None or said is None:
        word = said if taught is None else taught
        return np.full(cells, np.nan, np.float32) if word is None else word
    if not parts.has_defects:
        return np.asarray(np.maximum(taught, said))
    share = copies.recipe.targets.teacher_share
    return np.asarray(share * taught + (1.0 - share) * said, dtype=np.float32)


def cells_of(mask_HW: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return [G]: 1 where any pixel of the cell is defect."""
    mask = torch.tensor(mask_HW)[None, None].float() / 255.0
    return np.asarray(F.max_pool2d(mask, STRIDE).flatten().numpy())


def score_targets(
    teachers: Teachers,
    copies: Copies,
    copy: tuple[int, int],
    logits_G: Tensor | None,
    vector_F: Tensor | None,
) -> tuple[float, float, float]:
    """Return how likely image, sensor and both of a copy (part, round) are anomalous, by memories.

    Of the two together they have no word of their own, which is nan.

    A made defect is one for certain; a part labelled normal is normal where no teacher is asked.
    """
    index, number = copy
    unasked = 0.0 if copies.parts.normal_N[index] == 1.0 else float("nan")
    image = sensor = unasked
    if logits_G is not None:
        image = teachers.part_probability(logits_G)
    if vector_F is not None and teachers.sensor is not None and teachers.sensor.memory is not None:
        sensor = teachers.sensor.part_probability(vector_F, teachers.fold_of.get(index))
    broken = copies.broken(index, number)
    return with_made_defects((image, sensor, float("nan")), broken)


def with_made_defects(scores: Sequence[float], broken: int) -> tuple[float, float, float]:
    """Return a copy's scores (image, sensor, both), 1 where it carries a made defect (flags)."""
    image, sensor, both = scores
    return (
        1.0 if broken & BROKEN_IMAGE else image,
        1.0 if broken & BROKEN_SENSOR else sensor,
        1.0 if broken else both,
    )
