"""One image teacher: a backbone's features, standardised, and their distance from normal parts.

Fitting it looks at each part once. What it holds meanwhile is bounded, however many parts there
are: a sample of raw features for the basis, a sample of reduced ones for the memory, and the
reduced features of as many parts as calibrate it.

Shapes: B batch, H W pixels, N parts, G grid cells, D raw and F reduced dense features, S raw
summary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.dataset import STRIDE, Progress, TrainingParts, evenly
from distill.recipe import Recipe
from distill.teachers.backbone import Backbone, Grid, Seen
from distill.teachers.chosen import Chosen
from distill.teachers.normal_memory import (
    Calibration,
    Candidates,
    CrossFittedMemory,
    calibration_of,
)
from distill.teachers.standardise import Basis, basis_of

BATCH_IMAGES = 16
_CELL_LIMIT = 0.995  # quantile of held-out normal cells that counts as the limit
_BASIS_BYTES = 128 << 20  # raw features that the basis is made from, at most,
_BASIS_POINTS = 50_000  # and so many cells
_SUMMARIES = 2000  # that the summary's basis is made from, at most
_CALIBRATION_BYTES = 256 << 20  # reduced features of the parts that calibrate, at most


@dataclass(frozen=True)
class ImageTeacher:
    """Standardised features, and how far each cell is from normal where normal parts were known."""

    backbone: Backbone
    grid: Grid
    dense: Basis
    summary: Basis
    memory: CrossFittedMemory | None
    cells: Calibration | None

    def see(self, image_BHW3: Tensor) -> Seen:
        """Return standardised features of uint8 images: dense [B, G, F] and summary [B, F]."""
        seen = self.backbone(image_BHW3, self.grid)
        return Seen(self.dense.reduce(seen.dense_BND), self.summary.reduce(seen.summary_BS))

    def map_logits(self, dense_GF: Tensor, fold: int | None) -> Tensor:
        """Return the log odds [G] that each cell of one image is anomalous."""
        assert self.memory is not None
        assert self.cells is not None
        return self.cells.logits(self.memory.distances(dense_GF, fold))


@dataclass(frozen=True)
class FittedImageTeacher:
    """The teacher, its word on held-out normal parts, and what a person should know of it."""

    teacher: ImageTeacher
    map_logits: tuple[Tensor, ...]  # [G] of each of the same normal parts, whoever the teacher is
    remark: str


def fit_image_teacher(
    parts: TrainingParts,
    chosen: Chosen,
    recipe: Recipe,
    backbone: Backbone,
    progress: Progress,
) -> FittedImageTeacher:
    """Fit bases on the `chosen` parts, and memory and calibration where they have folds."""
    grid, fold_of = grid_of(parts), chosen.fold_of
    look = _Look(recipe, fold_of, _calibrating(tuple(fold_of), grid, recipe))
    walk = progress(
        f"{backbone.name} looks at {len(chosen.indices)} parts, holding at most "
        f"{_megabytes(look.most_bytes(grid))} of their features"
    )
    for index, dense_GD, summary_S in _looked_at(parts, chosen.indices, backbone, grid, walk):
        look.take(index, dense_GD, summary_S, last=index == chosen.indices[-1])
    assert look.basis is not None
    summaries = Candidates.points_of([look.summaries])
    summary = basis_of(summaries, recipe.teacher.feature_size)
    if not fold_of:
        teacher = ImageTeacher(backbone, grid, look.basis, summary, None, None)
        return FittedImageTeacher(
            teacher, (), f"{backbone.name}: features only, no memory of normal parts"
        )
    memory = CrossFittedMemory(look.candidates, size=recipe.teacher.memory_patches)
    distances = {
        index: memory.distances(dense_GF, fold_of[index]) for index, dense_GF in look.held.items()
    }
    cells = calibration_of(torch.cat(list(distances.values())), _CELL_LIMIT)
    teacher = ImageTeacher(backbone, grid, look.basis, summary, memory, cells)
    maps = tuple(cells.logits(distances[index]) for index in sorted(distances))
    return FittedImageTeacher(teacher, maps, _remark(teacher, memory, look))


def grid_of(parts: TrainingParts) -> Grid:
    """Return the cells of the student's map, down and across."""
    return parts.spec.image.height // STRIDE, parts.spec.image.width // STRIDE


def image_batch(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Stack images into a uint8 tensor [B, H, W, 3]."""
    return torch.from_numpy(np.stack(images))


def _looked_at(
    parts: TrainingParts,
    chosen: Sequence[int],
    backbone: Backbone,
    grid: Grid,
    walk: Callable[[Sequence[int]], Iterable[int]],
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Show the backbone the chosen parts, batch by batch."""
    for start in walk(range(0, len(chosen), BATCH_IMAGES)):
        batch = chosen[start : start + BATCH_IMAGES]
        seen = backbone(image_batch([parts.image(index) for index in batch]), grid)
        yield from zip(batch, seen.dense_BND, seen.summary_BS, strict=True)


def _calibrating(normal: Sequence[int], grid: Grid, recipe: Recipe) -> frozenset[int]:
    most = max(2, _CALIBRATION_BYTES // _part_bytes(grid, recipe))
    return frozenset(normal[i] for i in evenly(len(normal), most)) if normal else frozenset()


def _part_bytes(grid: Grid, recipe: Recipe) -> int:
    return grid[0] * grid[1] * recipe.teacher.feature_size * 2


@dataclass
class _Look:
    """What is kept of the parts while they pass by."""

    recipe: Recipe
    fold_of: dict[int, int]
    calibrating: frozenset[int]
    basis: Basis | None = None
    raw: list[tuple[int, Tensor]] = field(default_factory=list)  # until there is a basis
    raw_bytes: int = 0
    held: dict[int, Tensor] = field(default_factory=dict)  # reduced, of the calibrating parts
    candidates: dict[int, Candidates] = field(default_factory=dict)  # by fold
    summaries: Candidates = field(init=False)

    def __post_init__(self) -> None:
        self.summaries = Candidates(_SUMMARIES, self.recipe.seed, torch.float32)

    def most_bytes(self, grid: Grid) -> int:
        """Return what the dense features that are kept will take at most."""
        folds = len(set(self.fold_of.values()))
        per_candidate = self.recipe.teacher.feature_size * 2 + 8
        candidates = folds * self.recipe.teacher.memory_candidates * per_candidate
        return _BASIS_BYTES + candidates + len(self.calibrating) * _part_bytes(grid, self.recipe)

    def take(self, index: int, dense_GD: Tensor, summary_S: Tensor, *, last: bool) -> None:
        """Take one part; the basis is made as soon as enough of them were seen."""
        self.summaries.see(summary_S[None])
        if self.basis is not None:
            self._keep(index, dense_GD)
            return
        self.raw.append((index, dense_GD))
        self.raw_bytes += dense_GD.nbytes
        full = self.raw_bytes + dense_GD.nbytes > _BASIS_BYTES
        enough = full or len(self.raw) * len(dense_GD) >= _BASIS_POINTS
        if enough or last:
            points_PD = torch.cat([dense_GD for _, dense_GD in self.raw])
            self.basis = basis_of(points_PD, self.recipe.teacher.feature_size)
            for earlier, earlier_GD in self.raw:
                self._keep(earlier, earlier_GD)
            self.raw.clear()

    def _keep(self, index: int, dense_GD: Tensor) -> None:
        fold = self.fold_of.get(index)
        if fold is None:
            return
        assert self.basis is not None
        dense_GF = self.basis.reduce(dense_GD)
        if fold not in self.candidates:
            seed = self.recipe.seed * 1000 + fold  # keys of different folds must not be alike
            self.candidates[fold] = Candidates(self.recipe.teacher.memory_candidates, seed)
        self.candidates[fold].see(dense_GF)
        if index in self.calibrating:
            self.held[index] = dense_GF.half()


def _remark(teacher: ImageTeacher, memory: CrossFittedMemory, look: _Look) -> str:
    sampled = sum(candidates.size_bytes for candidates in look.candidates.values())
    held = sum(part_GF.nbytes for part_GF in look.held.values())
    most = look.raw_bytes + sampled + held
    return (
        f"{teacher.backbone.name}: a memory of {memory.points} patches "
        f"({_megabytes(memory.size_bytes)} with those that leave a fold out), calibrated on "
        f"{len(look.held)} normal parts; fitting it held {_megabytes(most)} of features"
    )


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
