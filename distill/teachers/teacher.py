"""The frozen teacher: dense features, a map of what is not normal, and a sensor's own distance.

`fit_teacher` looks at the normal training parts once; after that a `Teacher` says of any image and
window how far they are from normal. Parts that the memories were built from are measured against
memories built without them, so that what the teacher says of training parts is as honest as what
it says of new ones.

Shapes: B batch, H W pixels, N grid cells, D backbone features, F reduced features, C T sensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.dataset import STRIDE, Progress, TrainingParts, evenly, folds_by_group
from distill.features.spectral import SpectralFrames
from distill.recipe import Recipe
from distill.teachers.backbone import Backbone
from distill.teachers.normal_memory import Calibration, CrossFittedMemory, calibration_of

BATCH_IMAGES = 16
_FOLDS = 2
_CELL_LIMIT = 0.995  # quantile of held-out normal cells that counts as the limit
_PART_LIMIT = 0.95  # quantile of held-out normal parts that counts as the limit
_TOP_CELLS = 3
_SENSOR_POINTS = 2000


@dataclass(frozen=True)
class FeatureBasis:
    """Standardised principal components of the backbone's features."""

    mean_D: Tensor
    rotation_DF: Tensor

    def reduce(self, features_BND: Tensor) -> Tensor:
        """Return [B, N, F], scaled so that the components have variance 1 on average."""
        return (features_BND - self.mean_D) @ self.rotation_DF


@dataclass(frozen=True)
class ImageTeacher:
    """Dense features and the map of anomalies."""

    backbone: Backbone
    basis: FeatureBasis
    memory: CrossFittedMemory
    cells: Calibration
    parts: Calibration
    grid: tuple[int, int]

    def features(self, image_BHW3: Tensor) -> Tensor:
        """Return reduced dense features [B, N, F] of uint8 images."""
        return self.basis.reduce(self.backbone(image_BHW3, self.grid))

    def map_logits(self, features_NF: Tensor, fold: int | None) -> Tensor:
        """Return the log odds [N] that each cell of one image is anomalous."""
        return self.cells.logits(self.memory.distances(features_NF, fold))

    def part_probability(self, map_logits_N: Tensor) -> float:
        """Return how likely one part's image is anomalous, from its most anomalous cells."""
        return float(torch.sigmoid(self.parts.logits(_top(map_logits_N))))


@dataclass(frozen=True)
class SensorTeacher:
    """Spectral features of a window and their distance from normal windows."""

    frames: SpectralFrames
    memory: CrossFittedMemory
    parts: Calibration

    def features(self, window_CT: NDArray[np.float32]) -> Tensor:
        """Return one vector of standardised spectral features, averaged over time."""
        return _window_features(self.frames, window_CT)

    def part_probability(self, features_F: Tensor, fold: int | None) -> float:
        """Return how likely one part's window is anomalous."""
        distance = self.memory.distances(features_F[None], fold)
        return float(torch.sigmoid(self.parts.logits(distance))[0])


@dataclass(frozen=True)
class Teacher:
    """Both of them, and the fold of each normal part that the memories were built from."""

    image: ImageTeacher
    sensor: SensorTeacher | None
    fold_of: dict[int, int]  # index of the training part -> fold; others have none


def fit_teacher(
    parts: TrainingParts, recipe: Recipe, backbone: Backbone, progress: Progress
) -> Teacher:
    """Fit basis, memories and calibrations on the normal parts of `parts`."""
    normal = np.flatnonzero(parts.labels_N == 0)
    chosen = normal[evenly(len(normal), recipe.teacher.fit_parts)].tolist()
    folds = folds_by_group([parts.rows[i].part_id for i in chosen], _FOLDS).tolist()
    fold_of = dict(zip(chosen, folds, strict=True))
    image = _fit_image(parts, fold_of, recipe, backbone, progress)
    return Teacher(image, _fit_sensor(parts, fold_of, recipe), fold_of)


def image_batch(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Stack images into a uint8 tensor [B, H, W, 3]."""
    return torch.from_numpy(np.stack(images))


def _fit_image(
    parts: TrainingParts,
    fold_of: dict[int, int],
    recipe: Recipe,
    backbone: Backbone,
    progress: Progress,
) -> ImageTeacher:
    grid = (parts.spec.image.height // STRIDE, parts.spec.image.width // STRIDE)
    chosen, folds = list(fold_of), list(fold_of.values())
    raw: list[Tensor] = []
    for start in progress("teacher looks at normal parts")(range(0, len(chosen), BATCH_IMAGES)):
        images = [parts.image(i) for i in chosen[start : start + BATCH_IMAGES]]
        raw.extend(backbone(image_batch(images), grid).half())
    basis = _basis_of(raw, recipe.teacher.feature_size)
    features = [basis.reduce(part.float()) for part in raw]
    memory = CrossFittedMemory(
        features,
        folds,
        size=recipe.teacher.memory_patches,
        candidates=recipe.teacher.memory_candidates,
        seed=recipe.seed,
    )
    distances = [memory.distances(f, fold) for f, fold in zip(features, folds, strict=True)]
    cells = calibration_of(torch.cat(distances), _CELL_LIMIT)
    tops = torch.stack([_top(cells.logits(part)) for part in distances])
    part_calibration = calibration_of(tops, _PART_LIMIT)
    return ImageTeacher(backbone, basis, memory, cells, part_calibration, grid)


def _fit_sensor(
    parts: TrainingParts,
    fold_of: dict[int, int],
    recipe: Recipe,
) -> SensorTeacher | None:
    """Fit on the windows of normal parts; None where there are fewer than two of them."""
    windows = [(parts.window(index), fold) for index, fold in fold_of.items()]
    present = [(window, fold) for window, fold in windows if window is not None]
    if parts.spec.sensor is None or len(present) < _FOLDS:
        return None
    frames = SpectralFrames(
        len(parts.spec.sensor.channels),
        parts.spec.sensor.samples,
        recipe.sensor.frame_samples,
        recipe.sensor.time_tokens,
    )
    frames.fit(torch.from_numpy(np.stack([window for window, _ in present])))
    points = [_window_features(frames, window)[None] for window, _ in present]
    own_folds = [fold for _, fold in present]
    memory = CrossFittedMemory(
        points, own_folds, size=_SENSOR_POINTS, candidates=_SENSOR_POINTS, seed=recipe.seed
    )
    distances = [memory.distances(p, fold) for p, fold in zip(points, own_folds, strict=True)]
    return SensorTeacher(frames, memory, calibration_of(torch.cat(distances), _PART_LIMIT))


def _basis_of(raw: Sequence[Tensor], size: int) -> FeatureBasis:
    """Standardise each feature, then keep the strongest principal components."""
    most = evenly(len(raw), max(1, 50_000 // max(1, len(raw[0]))))
    points_PD = torch.cat([raw[i] for i in most]).double()
    mean_D = points_PD.mean(0)
    scale_D = points_PD.std(0).clamp_min(1e-6)
    standard_PD = (points_PD - mean_D) / scale_D
    variances, vectors_DD = torch.linalg.eigh(standard_PD.T @ standard_PD / len(standard_PD))
    kept = min(size, len(mean_D))
    rotation_DF = vectors_DD[:, -kept:].flip(1)
    average = variances[-kept:].mean().clamp_min(1e-12).sqrt()
    rotation_DF = rotation_DF / scale_D[:, None] / average
    # A backbone with fewer features than the recipe asks for leaves the rest at 0.
    padded_DF = torch.nn.functional.pad(rotation_DF, (0, size - kept))
    return FeatureBasis(mean_D.float(), padded_DF.float())


@torch.inference_mode()
def _window_features(frames: SpectralFrames, window_CT: NDArray[np.float32]) -> Tensor:
    features_CND: Tensor = frames(torch.from_numpy(window_CT)[None])[0]
    return features_CND.mean(1).flatten()


def _top(map_N: Tensor) -> Tensor:
    return map_N.topk(min(_TOP_CELLS, len(map_N))).values.mean()
