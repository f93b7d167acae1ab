"""Class probabilities of each original part, by heads that never saw it, for each view of it.

Shapes: N parts, E what a head sees, K classes, V views (all, image alone, sensor alone).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distill.dataset import UNKNOWN, TrainingParts
from distill.teachers.label_head import held_out_probabilities, probabilities_by_labelled

Floats = NDArray[np.float32]


def soft_labels_by(
    parts: TrainingParts, image_NE: Floats | None, sensor_NE: Floats | None, scores_N2: Floats
) -> Floats:
    """Return [V, N, K] from what the teachers see of images and windows; nan where they see none.

    The heads also see how anomalous the teachers find each.
    """
    scores_N2 = _logit(np.nan_to_num(scores_N2))
    views: list[Floats | None] = []
    image = None if image_NE is None else np.concatenate([image_NE, scores_N2[:, :1]], 1)
    sensor = None if sensor_NE is None else np.concatenate([sensor_NE, scores_N2[:, 1:]], 1)
    if parts.spec.sensor is None:
        views = [image]
    elif image is None or sensor is None:
        one = sensor if image is None else image
        views = [one, image, sensor]
    else:
        views = [np.concatenate([image, sensor], 1), image, sensor]
    return np.stack([_soft_labels(parts, view) for view in views])


def _soft_labels(parts: TrainingParts, view_NE: Floats | None) -> Floats:
    """Return [N, K]: labelled parts by heads without them, the unlabelled by one of all labels.

    nan for a part with a label that the model has not: it is of none of the classes.
    """
    classes, known = len(parts.spec.classes), parts.labels_N != UNKNOWN
    soft_NK = np.full((len(parts), classes), np.nan, np.float32)
    if view_NE is None:
        return soft_NK
    labelled_ME, labels_M = view_NE[known], parts.labels_N[known]
    groups = [parts.rows[index].part_id for index in np.flatnonzero(known)]
    soft_NK[known] = held_out_probabilities(labelled_ME, labels_M, groups, classes)
    unlabelled = np.isnan(parts.normal_N)
    soft_NK[unlabelled] = probabilities_by_labelled(
        view_NE[unlabelled], labelled_ME, labels_M, classes
    )
    return soft_NK


def _logit(probability: Floats) -> Floats:
    clipped = np.clip(probability, 1e-4, 1.0 - 1e-4)
    return np.asarray(np.log(clipped / (1.0 - clipped)), dtype=np.float32)
